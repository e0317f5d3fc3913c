"""Who moves first on the recorder's clock: Binance spot, USD-M and COIN-M, five minutes of 2024-08-08.

Measured (lag of the strongest correlation, 10 ms grid of returns; COIN-M follows both):

| ticks | USD-M -> COIN-M | spot -> COIN-M |
| --- | --- | --- |
| bookTicker messages | 20 ms (0.16; 0.13 to 0.16 from 20 to 50 ms) | 30 ms (0.32) |
| trades | 40 ms (0.23) | 20 ms (0.15) |

The table `orderbooks` cannot show the second: spot books come from diffs that are sent each 100 ms, and spot then
seems to trail by 60 ms. So the messages themselves are read here, with their receive times, and put through the
analysis (its macros are those of `pair_lead_lag`).
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import pytest

from python_udfs.settings import Settings
from tests.support import dbt, execute, query

CAPTURES: Final = {
    "spot": "spot_btcusdt_20240808.gz",
    "linear": "usdm_btcusdt_20240808.gz",
    "inverse": "cm_btcusd_perp_20240808.gz",
}
STEP_US: Final = 10_000
STEPS: Final = 20
Ticks = dict[str, dict[str, list[tuple[int, float]]]]  # stream -> market -> (receive time in µs, price)


@pytest.fixture(scope="module")
def ticks(recorded: Path) -> Ticks:
    out: Ticks = {"bookTicker": {m: [] for m in CAPTURES}, "trade": {m: [] for m in CAPTURES}}
    for market, name in CAPTURES.items():
        with gzip.open(recorded / "hftbacktest-binance-20240808" / name) as lines:
            for line in lines:
                stamp, _, body = line.partition(b" ")
                message = orjson.loads(body) if body.strip() else {}
                stream, data = message.get("stream", "").partition("@")[2], message.get("data", {})
                if stream == "bookTicker":
                    out[stream][market].append(
                        (int(stamp) // 1000, (float(data["b"]) + float(data["a"])) / 2)
                    )
                elif stream == "trade" and data.get("X", "MARKET") == "MARKET":
                    out[stream][market].append((int(stamp) // 1000, float(data["p"])))
    return out


def _analysis(
    store: Settings, ticks: dict[str, list[tuple[int, float]]]
) -> dict[tuple[str, str], dict[str, Any]]:
    """The compiled analysis on these ticks: a row for each two markets."""
    table = f"{store.database('hot')}.receive_clock_ticks"
    execute(f"drop table if exists {table}")
    execute(
        f"create table {table} (market_type String, received_us Int64, sequence UInt64, mid Float64, exchange String "
        "default 'binance', symbol String default 'BTC', received_at DateTime64(6, 'UTC') "
        "alias fromUnixTimestamp64Micro(received_us, 'UTC')) engine = Memory"
    )
    execute(
        f"insert into {table} (market_type, received_us, sequence, mid) values",
        [(market, us, i, mid) for market, rows in ticks.items() for i, (us, mid) in enumerate(rows)],
    )
    name = "lead_lag_on_the_receive_clock"
    dbt("compile", select=name, receive_clock_ticks=table)
    target = store.data_dir / "dbt" / store.db_prefix / "compiled" / "marketprism"
    sql = (target / "dbt_project" / "analyses" / f"{name}.sql").read_text()
    return {(r["first_market"][1], r["second_market"][1]): r for r in query(sql)}


def _oracle(ticks: dict[str, list[tuple[int, float]]]) -> dict[tuple[str, str], list[float]]:
    """corr(r_first(t), r_second(t + lag)) by numpy, on the span that all markets have in common."""
    arrays = {m: np.array(rows) for m, rows in ticks.items()}
    first = int(max(a[0, 0] for a in arrays.values())) // STEP_US * STEP_US + STEP_US
    grid = np.arange(first, int(min(a[-1, 0] for a in arrays.values())), STEP_US)
    returns = {}
    for market, a in arrays.items():
        at = np.searchsorted(a[:, 0], grid, side="right") - 1
        mids = np.where(grid - a[at, 0] <= 10_000_000, a[at, 1], np.nan)
        returns[market] = np.diff(np.log(mids))
    out = {}
    for x in returns:
        for y in returns:
            lags = []
            for k in range(-STEPS, STEPS + 1):
                r = returns[x][max(0, -k) : len(returns[x]) - max(0, k)]
                s = returns[y][max(0, k) : len(returns[y]) - max(0, -k)]
                known = ~np.isnan(r + s)
                lags.append(float(np.corrcoef(r[known], s[known])[0, 1]))
            out[x, y] = lags
    return out


def test_both_markets_are_ahead_of_coin_m_by_about_30_ms(store: Settings, ticks: Ticks) -> None:
    found, oracle = _analysis(store, ticks["bookTicker"]), _oracle(ticks["bookTicker"])
    assert len(found) == 6
    for pair, row in found.items():
        np.testing.assert_allclose(row["correlations"], oracle[pair], rtol=1e-6, atol=1e-9)
    for leader in ("linear", "spot"):
        row, back = found[leader, "inverse"], found["inverse", leader]
        assert row["lag_ms"] == -back["lag_ms"]
        assert abs(row["lag_ms"] - 30) <= 10, row["lag_ms"]
        assert row["correlation"] > 0.15
        # not one spike: what COIN-M does within 100 ms after them weighs more than five times what it does before
        squares = np.array(row["correlations"]) ** 2
        assert squares[STEPS + 1 : STEPS + 11].sum() > 5 * squares[STEPS - 10 : STEPS].sum()
    # between the two leaders it is a step
    assert abs(found["linear", "spot"]["lag_ms"]) <= 10


def test_trades_say_the_same(store: Settings, ticks: Ticks) -> None:
    found = _analysis(store, ticks["trade"])
    for leader in ("linear", "spot"):
        assert 10 <= found[leader, "inverse"]["lag_ms"] <= 50
