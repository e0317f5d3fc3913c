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
from tests.support import execute, query

CAPTURES = (
    ("spot_btcusdt_20240808.gz", "spot_btcusdt_20240809.gz"),
    ("usdm_btcusdt_20240808.gz",),
    ("cm_btcusd_perp_20240808.gz",),
)
# small buckets, so that ten minutes hold some hundreds of them; the hour after midnight is calibrated from the minutes before it
CLOCKS = {
    ("binance", "spot"): ("volume", "hour", 2, 5, 1, 0.01, 100, 50, 20, 50, 24, 3, ""),
    ("binance", "linear"): ("hybrid", "hour", 1, 3, 4, 0.01, 100, 50, 10, 50, 24, 3, ""),
    ("binance", "inverse"): ("event", "hour", 2, 5, 100, 1, 10000, 50, 20, 25, 24, 3, ""),
}


@pytest.fixture(scope="module")
def loaded(module_store: Settings, recorded: Path) -> Loaded:
    for names in CAPTURES:
        load(BinanceWebsocketReader([recorded / "hftbacktest-binance-20240808" / name for name in names]))
    # the capture is the truth: it goes by that name, and what it was called makes way
    for kind in (*COLUMNS, "watermarks"):
        columns = [
            r["name"]
            for r in query(
                "select name from system.columns where database = %(d)s and table = %(t)s and default_kind != 'MATERIALIZED'",
                d=module_store.database("hot"), t=kind,
            )
        ]  # fmt: skip
        renamed = ", ".join(f"'{FULL}'" if c == "symbol" else c for c in columns)
        execute(f"insert into {kind} ({', '.join(columns)}) select {renamed} from {kind} final where symbol != '{FULL}'")
        execute(f"delete from {kind} where symbol != '{FULL}'")
    return Loaded(
        [(*market, "*", *row) for market, row in CLOCKS.items()],
        {market: 100 if market[1] == "inverse" else 1 for market in CLOCKS},
    )


class TestRecorded(LeakageSuite):
    def test_there_is_what_was_recorded(self, built: Story) -> None:
        counts = query(
            f"select market_type, count() as buckets, uniqExact(anchor_ts) as anchors from {built.build.features}.unified_buckets "
            f"where symbol = '{FULL}' group by market_type"
        )
        assert {r["market_type"] for r in counts} == {"spot", "linear", "inverse"}
        assert all(r["buckets"] > 100 for r in counts), counts
        assert max(r["anchors"] for r in counts) == 2
