"""The leakage suite on recorded Binance data: ten minutes across midnight, spot and both perpetuals."""

from __future__ import annotations

from pathlib import Path

import pytest

from python_udfs.ingest.binance_ws import BinanceWebsocketReader
from python_udfs.ingest.loader import load
from python_udfs.ingest.records import COLUMNS
from python_udfs.settings import Settings
from tests.leakage.conftest import Loaded, Story
from tests.leakage.market import FULL
from tests.leakage.suite import LeakageSuite
from tests.leakage.variants import raw_columns
from tests.support import execute, query

CAPTURES = (
    ("spot_btcusdt_20240808.gz", "spot_btcusdt_20240809.gz"),
    ("usdm_btcusdt_20240808.gz",),
    ("cm_btcusd_perp_20240808.gz",),
)
# Small buckets, so that ten minutes hold hundreds of them; min_minutes is low: what comes after midnight is
# calibrated from the minutes before it.
CLOCKS = {
    ("binance", "spot"): ("volume", "hour", 2, 5, 1, 0.01, 100, 50, 20, 50, 24, 3, ""),
    ("binance", "linear"): ("hybrid", "hour", 1, 3, 4, 0.01, 100, 50, 10, 50, 24, 3, ""),
    ("binance", "inverse"): ("event", "hour", 2, 5, 100, 1, 10000, 50, 20, 25, 24, 3, ""),
}


@pytest.fixture(scope="module")
def loaded(module_store: Settings, recorded: Path) -> Loaded:
    for names in CAPTURES:
        load(BinanceWebsocketReader([recorded / "hftbacktest-binance-20240808" / name for name in names]))
    # the capture is the truth and goes by that name; what it was called makes way
    for table in (*COLUMNS, "watermarks"):
        columns = raw_columns(table)
        renamed = ", ".join(f"'{FULL}'" if c == "symbol" else c for c in columns)
        execute(
            f"insert into {table} ({', '.join(columns)}) select {renamed} from {table} final "
            f"where symbol != '{FULL}'"
        )
        execute(f"delete from {table} where symbol != '{FULL}'")
    return Loaded(
        [(*of, "*", *row) for of, row in CLOCKS.items()],
        {of: 100 if of[1] == "inverse" else 1 for of in CLOCKS},
    )


class TestRecorded(LeakageSuite):
    def test_there_is_what_was_recorded(self, built: Story) -> None:
        counts = query(
            "select market_type, count() as buckets, uniqExact(anchor_ts) as anchors "
            f"from {built.build.features}.unified_buckets where symbol = '{FULL}' group by market_type"
        )
        assert {r["market_type"] for r in counts} == {"spot", "linear", "inverse"}
        assert all(r["buckets"] > 100 for r in counts), counts
        assert max(r["anchors"] for r in counts) == 2
