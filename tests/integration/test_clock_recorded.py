"""The buckets of recorded markets equal the plain state machine, row for row, in every mode."""

from __future__ import annotations

from pathlib import Path

import pytest

from python_udfs.ingest.detect import readers_for
from python_udfs.ingest.loader import load
from python_udfs.settings import Settings
from tests.integration.test_clock import CLOCK, built_buckets
from tests.oracles import clock
from tests.oracles.clock import SECOND_US, Config, Trade
from tests.support import dbt, query, us


@pytest.fixture(scope="module")
def recorded_store(recorded: Path, module_store: Settings) -> Settings:
    """The three markets of 2024-08-08, loaded as a user would."""
    for reader in readers_for([recorded / "hftbacktest-binance-20240808"]):
        load(reader)
    dbt("seed")
    return module_store


@pytest.mark.parametrize("mode", ["volume", "count", "hybrid", "event"])
def test_recorded_markets_are_cut_like_the_state_machine(recorded_store: Settings, mode: str) -> None:
    dbt("run", select=CLOCK, full_refresh=True, mode=mode, t_target_s=2, t_max_s=3)
    instruments = [
        (r["exchange"], r["market_type"], r["symbol"])
        for r in query("select distinct exchange, market_type, symbol from stg_trades order by 1, 2, 3")
    ]
    assert len(instruments) == 3
    for instrument in instruments:
        where = f"(exchange, market_type, symbol) = {instrument!r}"
        trades = [
            Trade(r["t"], r["trade_seq"], r["trade_id"], r["q"], r["k"])
            for r in query(
                f"select {us('timestamp')} as t, trade_seq, trade_id, reinterpret(quantity, 'Int64') as q, "
                f"{us('known_at')} as k from stg_trades where {where}"
            )
        ]
        books = [r["k"] for r in query(f"select {us('known_at')} as k from stg_orderbooks where {where}")]
        configs = {
            r["a"] * SECOND_US: Config(
                mode=r["mode"],
                t_max_us=r["t_max_us"],
                q_bucket_e8=r["q"],
                t_target_us=r["t_target_us"],
                n_trades=r["n_trades"],
                n_min=r["n_min"],
                n_updates=r["n_updates"],
            )
            for r in query(
                "select toUnixTimestamp(valid_from) as a, toString(mode) as mode, t_max_us, t_target_us, n_trades, n_min, "
                f"n_updates, reinterpret(q_bucket, 'Int64') as q from bucket_config where {where}"
            )
        }
        [mark] = query(
            f"select max({us('watermark')}) as w from stg_watermarks where kind = 'trades' and {where}"
        )
        expected = clock.buckets(trades, configs, book_times=books, watermark=mark["w"])
        assert len(expected) > 40
        assert built_buckets(instrument) == expected
