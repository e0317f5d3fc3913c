"""Funding, open interest, ratios and the volatility index as they were really published. The trades are made up: a clock to read them by."""

from __future__ import annotations

import csv
import json
from bisect import bisect_right
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from python_udfs.ingest.loader import load
from python_udfs.ingest.series import SeriesReader
from python_udfs.settings import Settings
from tests.oracles.clock import HOUR_US, SECOND_US, Trade
from tests.support import Instrument, dbt, insert_trades, insert_watermark, query, us

SOL: Final[Instrument] = ("okx", "linear", "SOL-USDT-SWAP")
POLLED: Final[Instrument] = ("okx", "linear", "BTC-USDT-SWAP")
BTC: Final[Instrument] = ("binance", "linear", "BTCUSDT")
SPANS: Final = (
    (SOL, "2026-06-11T18:00", "2026-06-26T14:00"),
    (POLLED, "2026-04-13T06:00", "2026-04-15T00:00"),
    (BTC, "2024-08-08T00:00", "2024-08-11T00:00"),
    (BTC, "2026-03-06T00:00", "2026-03-12T00:00"),
)
FILES: Final = (
    *(
        f"okx-sol-swap-derivatives-202606/{n}.csv"
        for n in ("funding_rate", "open_interest", "long_short_ratio")
    ),
    *(
        f"okx-multi-lsr-funding-202604/{n}.json"
        for n in ("funding_rates", "open_interest", "long_short_ratio")
    ),
    *(f"deribit-dvol-binance-funding-2022-2025/{n}.json" for n in ("dvol_btc", "funding_rate_btc")),
    *(f"binance-btcusdt-oi-lsr-202603/{n}.json" for n in ("open_interest", "long_short_ratio")),
)


def _us(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND_US


@pytest.fixture(scope="module")
def built(module_store: Settings, recorded: Path) -> Path:
    for file in FILES:
        load(SeriesReader(recorded / file))
    for instrument, first, last in SPANS:
        times = range(_us(first), _us(last), HOUR_US // 2)
        insert_trades([Trade(t, i, str(i), 10**8, t) for i, t in enumerate(times, 1)], instrument)
        insert_watermark(instrument, "trades", _us(last))
    dbt("seed")
    # daily DVOL is known at the end of its day, and holds for the next
    dbt("run", select="+stale_sources", t_target_s=30, t_max_s=60, volatility_index_max_lag_s=2 * 86_400 + 60)
    return recorded


def _rows(model: str, of: Instrument) -> list[dict[str, Any]]:
    return query(
        f"select *, {us('bucket_ts_end')} as end_us from {model} where (exchange, market_type, symbol) = {of} order by bucket_id"
    )


def _as_of(path: Path, column: str, lag_s: int) -> Any:
    """The file's value that is known at a time (µs), read from the file itself."""
    with path.open(encoding="utf-8") as file:
        rows = sorted(
            (int(r["ts"]) * 1000 + lag_s * SECOND_US, float(r[column])) for r in csv.DictReader(file)
        )
    times = [t for t, _ in rows]
    return lambda at: rows[bisect_right(times, at) - 1][1]


def test_okx_series_are_the_last_ones_known(built: Path) -> None:
    folder = built / "okx-sol-swap-derivatives-202606"
    rate = _as_of(folder / "funding_rate.csv", "fundingRate", 0)
    ratio = _as_of(folder / "long_short_ratio.csv", "ratio", 60)
    funding, ratios = _rows("funding", SOL), _rows("long_short_bias", SOL)
    assert len(funding) > 700
    for row in funding:
        assert row["funding_rate"] == pytest.approx(rate(row["end_us"]), abs=1e-8)
    for row in ratios:
        # long / short = ratio and long + short = 1
        expected = (ratio(row["end_us"]) - 1) / (ratio(row["end_us"]) + 1)
        assert row["long_short_bias_accounts"] == pytest.approx(expected, abs=1e-7)
        assert row["long_short_bias_positions"] is None  # OKX gives none
    assert sum(r["funding_rate_z"] is not None for r in funding) > 300


def test_open_interest_is_the_last_one_known(built: Path) -> None:
    rows = json.loads((built / "binance-btcusdt-oi-lsr-202603" / "open_interest.json").read_text())
    found = [r for r in _rows("open_interest", BTC) if r["bucket_ts_end"].year == 2026]
    assert len(found) > 250
    for row in found:
        known = [r["openInterest"] for r in rows if r["time"] * 1000 + 60 * SECOND_US <= row["end_us"]]
        assert row["open_interest"] == pytest.approx(known[-1], abs=1e-8)
    scores = [r["open_interest_change_z"] for r in found if r["open_interest_change_z"] is not None]
    assert len(scores) > 250
    assert 1 < max(map(abs, scores)) < 30


def test_dvol_is_known_at_the_end_of_its_day(built: Path) -> None:
    days = json.loads((built / "deribit-dvol-binance-funding-2022-2025" / "dvol_btc.json").read_text())
    stamped = {datetime.fromtimestamp(t / 1000, UTC).date(): v for t, v in days}
    rows = [r for r in _rows("implied_volatility", BTC) if r["bucket_ts_end"].year == 2024]
    assert len(rows) > 100
    for row in rows:
        yesterday = (row["bucket_ts_end"] - timedelta(days=1)).date()
        assert row["implied_volatility"] == stamped[yesterday]


def test_binance_funding_is_a_fraction_and_steps_at_settlements(built: Path) -> None:
    rates = json.loads(
        (built / "deribit-dvol-binance-funding-2022-2025" / "funding_rate_btc.json").read_text()
    )
    rows = [r for r in _rows("funding", BTC) if r["funding_rate"] is not None]
    assert len(rows) > 100
    for row in rows:
        percent = [v for t, v in rates if t * 1000 <= row["end_us"]][-1]
        assert row["funding_rate"] == pytest.approx(percent / 100, abs=1e-8)


@pytest.mark.parametrize(
    ("of", "reason"),
    [
        (SOL, "zero"),  # given in USD alone: the coins are said to be 0
        (POLLED, "missing"),  # 434 polls of zero: the reader lets none in
    ],
)
def test_a_feed_of_zeros_is_no_open_interest(built: Path, of: Instrument, reason: str) -> None:
    rows = _rows("open_interest", of)
    assert len(rows) > 50
    assert {r["open_interest"] for r in rows} == {None}
    stopped = query(
        f"select * from stale_sources where (exchange, market_type, symbol) = {of} and kind = 'open_interests'"
    )
    assert {r["reason"] for r in stopped} == {reason}
    # what is missing has its time (2 h) to come
    assert sum(r["buckets"] for r in stopped) == len(rows) - (4 if reason == "missing" else 0)
