"""Live equals batch: what refreshable views append while data arrive is what one build makes of all of it, bit for bit.

On a generated market and on recorded ones, with the chain of feature_vector v1. The whole chain, all families and the labels, takes
minutes: `MARKETPRISM_LIVE_CHAIN=v2 pytest tests/integration/test_live_path.py` (and wherever MARKETPRISM_CHAOS_ROUNDS is set).
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.ingest.detect import readers_for
from python_udfs.ingest.generator import MarketConfig, write
from python_udfs.live import views
from python_udfs.live.replay import Step, replay
from python_udfs.migrate import drop_all, migrate
from python_udfs.server import start as start_server
from python_udfs.settings import Settings, settings
from tests.support import dbt, execute, query, table_hash

LONG = os.environ.get("MARKETPRISM_LIVE_CHAIN") == "v2" or "MARKETPRISM_CHAOS_ROUNDS" in os.environ
CHAIN: views.Chain = "v2" if LONG else "v1"
VARS: dict[str, Any] = {"t_target_s": 10, "t_max_s": 20}
START = 1_767_571_080 * 1_000_000  # 2026-01-04 23:58:00 UTC: two minutes before a day, and an anchor, ends
PASS_S = 300.0
if LONG:
    pytestmark = pytest.mark.timeout(3600)
# Around the end of 2024-08-08; spot books need the snapshot at the beginning of the capture.
RECORDED = {
    "spot_btcusdt_20240808.gz": 60_000,
    "spot_btcusdt_20240809.gz": 15_000,
    "cm_btcusd_perp_20240808.gz": 20_000,
}
Hashes = dict[str, dict[str, Any]]


@dataclass
class Story:
    """What the live path did, step by step, and what a build made of the same rows after it."""

    steps: list[Step] = field(default_factory=list)
    buckets: list[int] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    live: Hashes = field(default_factory=dict)
    again: Hashes = field(default_factory=dict)
    batch: Hashes = field(default_factory=dict)
    refused: str = ""
    freshness: list[dict[str, Any]] = field(default_factory=list)
    refreshes: list[dict[str, Any]] = field(default_factory=list)
    passes_left: int = -1


def kill_while_refreshing(s: Settings) -> None:
    """kill -9, while at least one view is being refreshed; then the server starts anew and a pass is begun."""
    with db.connect(s.database("features")) as c:
        deadline = time.monotonic() + PASS_S
        while views.status(c).running < 1 and time.monotonic() < deadline:
            time.sleep(0.002)
    record = json.loads((s.data_dir / "clickhouse" / "server.pid").read_text())
    os.kill(int(record["pid"]), signal.SIGKILL)
    start_server(wait_s=120)
    with db.connect(s.database("features")) as c:
        while views.status(c).running:
            time.sleep(0.01)
        views.begin_pass(c)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("market") / "generated"
    write(
        MarketConfig(start=START, minutes=10, trades_per_second=8, book_levels=5, book_interval_ms=500),
        folder,
    )
    return folder


@pytest.fixture(scope="module")
def captured(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first lines of some captures."""
    folder = tmp_path_factory.mktemp("captured")
    for name, lines in RECORDED.items():
        with (
            gzip.open(recorded / "hftbacktest-binance-20240808" / name) as whole,
            gzip.open(folder / name, "wb") as part,
        ):
            part.writelines(islice(whole, lines))
    return folder


@pytest.fixture(scope="module", params=["generated", pytest.param("captured", marks=pytest.mark.recorded)])
def market(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def story(module_store: Settings, market: Path) -> Story:
    drop_all()  # the market before this one
    migrate()
    try:
        return tell(module_store, market)
    finally:
        views.stop()


def tell(module_store: Settings, market: Path) -> Story:
    told = Story()
    select = " ".join(views.CHAINS[CHAIN])
    if CHAIN == "v2":
        select += " path:dbt_project/models/live"

    def on_step(step: Step) -> None:
        told.steps.append(step)
        if len(told.steps) == 1:
            dbt("seed", **VARS)  # not `build`, which would parse the project once more
            dbt("run", select=f"{select} freshness view_refreshes +freshness", **VARS)
            views.start(CHAIN, VARS)
        if len(told.steps) == 3:
            kill_while_refreshing(module_store)
        with db.connect(settings().database("features")) as c:
            views.wait_for_pass(c, PASS_S)
        told.buckets.append(query("select count() as n from feature_vector_v1")[0]["n"])

    assert replay(readers_for([market]), 0, step_s=150, on_step=on_step)
    with db.connect(settings().database("features")) as c:
        told.tables = [
            name.removesuffix("_live")
            for name in views.views(c)
            if "arrivals" not in name and "passes" not in name
        ]
    told.live = {table: table_hash(table) for table in told.tables}
    told.freshness = query("select * from freshness")
    told.refreshes = query("select * from view_refreshes")
    with pytest.raises(AssertionError) as caught:
        dbt("run", select="trade_flow", **VARS)
    told.refused = str(caught.value)

    assert replay(readers_for([market]), 0, step_s=150, on_step=told.steps.append)
    with db.connect(settings().database("features")) as c:
        views.wait_for_pass(c, PASS_S)
    told.again = {table: table_hash(table) for table in told.tables}

    views.stop()
    told.passes_left = query(f"select count() as n from {settings().database('hot')}.live_passes")[0]["n"]
    dbt("run", select=select, full_refresh=True, **VARS)
    told.batch = {table: table_hash(table) for table in told.tables}
    return told


def test_there_is_something_to_compare(story: Story) -> None:
    assert {"bucket_config", "bucket_tapes", "book_updates", "top_of_book", "feature_vector_v1"} <= set(
        story.tables
    )
    empty = [table for table, found in story.live.items() if not found["n"]]
    # of the long chain: ten minutes are too short for two, and captures have none of the other
    assert set(empty) <= ({"pair_lead_lag", "pair_spreads", "slow_series"} if LONG else set()), empty
    assert len(story.buckets) >= 4
    assert story.buckets == sorted(set(story.buckets)), "each step publishes more"
    assert query("select uniqExact(toDate(bucket_ts_start)) as days from feature_vector_v1")[0]["days"] == 2


def test_live_equals_batch(story: Story) -> None:
    """Through a day's and an anchor's end, and a server that was killed in the middle of a refresh."""
    differing = [table for table in story.tables if story.live[table] != story.batch[table]]
    assert not differing, ", ".join(differing)


def test_the_same_data_again_change_nothing(story: Story) -> None:
    assert story.again == story.live
    first, second = story.steps[: len(story.steps) // 2], story.steps[len(story.steps) // 2 :]
    assert [step.until for step in first] == [step.until for step in second]
    assert all(step.result.skipped for step in second)


def test_a_build_is_refused_while_views_write(story: Story) -> None:
    assert "marketprism live stop" in story.refused


def test_stop_leaves_nothing(story: Story) -> None:
    assert story.passes_left == 0
    with db.connect(settings().database("features")) as c:
        assert views.views(c) == []
        assert views.status(c).views == 0
    assert views.stop() == 0


def test_freshness_counts_what_the_views_published(story: Story) -> None:
    total = {row["feature_vector"]: row["row_count"] for row in story.freshness if row["symbol"] == ""}
    parts = [row for row in story.freshness if row["symbol"] and row["feature_vector"] == "feature_vector_v1"]
    assert total["feature_vector_v1"] == sum(row["row_count"] for row in parts) > 10
    assert total["feature_vector_v1"] <= story.buckets[-1]
    assert all(0 <= row["p50_s"] <= row["p99_s"] <= row["max_s"] for row in story.freshness)


def test_refreshes_are_told(story: Story) -> None:
    names = {row["name"] for row in story.refreshes}
    assert {f"{table}_live" for table in story.tables} <= names
    assert "live_passes_live" in names
    assert all(row["exception"] == "" and row["last_success_at"] for row in story.refreshes)


def test_views_that_wait_for_the_same_one_can_be_refreshed_side_by_side(story: Story) -> None:
    """clickhouse-local has two schedule threads, of which one alone refreshes views."""
    threads = query(
        "select toUInt32(value) as n from system.server_settings where name = 'background_schedule_pool_size'"
    )
    assert threads[0]["n"] > len(story.tables)


def test_a_bucket_waits_for_the_books(story: Story) -> None:
    """Nothing is published beyond what every feed was complete to when the pass began."""
    late = query(
        "select count() as n from feature_vector_v1 where bucket_ts_end >= "
        f"(select max(watermark) from {settings().database('hot')}.watermarks where kind = 'orderbooks')"
    )
    assert late[0]["n"] == 0


def test_views_need_what_is_written_on_insert(store: Settings) -> None:
    execute("create table book_levels_stored (known_at DateTime) engine = Memory", layer="features")
    with pytest.raises(UserError, match=r"^book_levels_stored would not get .* Run `make build`"):
        views.start("v1", VARS)


def test_replay_stops_when_asked(store: Settings, generated: Path) -> None:
    """After the load under way; a second run goes on behind it."""
    stop = threading.Event()
    steps: list[Step] = []

    def on_step(step: Step) -> None:
        steps.append(step)
        stop.set()

    assert not replay(readers_for([generated]), 0, step_s=150, on_step=on_step, stop=stop)
    assert len(steps) == 1
    assert replay(readers_for([generated]), 0, step_s=150, on_step=steps.append)
    assert steps[1].result.skipped
    assert not any(step.result.skipped for step in steps[2:])
    n = execute_count("trades")
    assert n == sum(step.result.rows.get("trades", 0) for step in steps if not step.result.skipped)


def execute_count(table: str) -> int:
    """Rows of a hot table."""
    return int(query(f"select count() as n from {settings().database('hot')}.{table}")[0]["n"])


def test_replay_needs_data(store: Settings) -> None:
    with pytest.raises(UserError, match="nothing to replay"):
        replay([], 1)
