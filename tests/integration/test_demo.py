"""The demo's one build: an append, or a rebuild of the days that were loaded behind what is published."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from python_udfs.cli import app
from python_udfs.errors import UserError
from python_udfs.jobs import demo
from python_udfs.jobs.demo import days_behind
from python_udfs.operations.locks import BUILD, BUSY, BusyError, held
from python_udfs.settings import Settings
from tests.oracles.clock import Trade
from tests.support import dbt, insert_trades, insert_watermark, query

DAY = datetime(2026, 1, 5, 10, tzinfo=UTC)
SPOT = ("alpha", "spot", "AAAUSDT")
PERP = ("alpha", "linear", "AAAUSDT")


def _trades(day: datetime, instrument: tuple[str, str, str] = SPOT) -> None:
    start = int(day.timestamp()) * 10**6
    at = [start + n * 10**6 for n in range(60)]
    insert_trades([Trade(t, 0, str(t), 10**8, t) for t in at], instrument)


def _now() -> datetime:
    """Later, by the second, than every row there is: rows say to the second when they were loaded."""
    time.sleep(1.1)
    return datetime.now(UTC)


def test_only_history_loaded_behind_published_buckets_asks_for_a_range(store: Settings) -> None:
    since = _now()
    _trades(DAY)
    assert days_behind(since) == {}, "nothing is published in an empty store"
    insert_watermark(SPOT, "trades", int(DAY.timestamp() + 3600) * 10**6)
    dbt("seed")
    dbt("run", select="+unified_buckets", t_target_s=5, t_max_s=10)
    assert query("select count() as n from unified_buckets")[0]["n"] > 5
    assert days_behind(since) == {"start": "2026-01-05", "end": "2026-01-06"}

    since = _now()
    assert days_behind(since) == {}, "nothing was loaded"
    _trades(DAY + timedelta(days=1))
    _trades(DAY - timedelta(days=3), PERP)
    assert days_behind(since) == {}, "newer trades, and an instrument that has no bucket yet"
    _trades(DAY - timedelta(days=2))
    assert days_behind(since) == {"start": "2026-01-02", "end": "2026-01-07"}


def test_it_builds_beside_no_other_build(
    store: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its steps are only written down: the build runs under the lock, and not at all while another holds it."""
    ran: list[tuple[str, bool]] = []

    def step(*command: str) -> None:
        try:
            with held(BUILD, "another build"):
                ran.append((command[0], False))
        except BusyError:
            ran.append((command[0], True))
        if command[1] == "train":
            raise UserError("far enough")

    monkeypatch.setattr(demo, "_run", step)
    monkeypatch.setattr(demo, "BUILD_WAIT_S", 0.0)
    words = ["demo", "--data", str(tmp_path)]
    CliRunner().invoke(app, words)
    assert ran == [("marketprism", False), ("dbt", True), ("marketprism", False)]

    ran.clear()
    with held(BUILD, "job build"):
        done = CliRunner().invoke(app, words)
    assert done.exit_code == BUSY, done.output
    assert "demo: job build holds" in done.output
    assert ran == [("marketprism", True)], "nothing after the ingest"
