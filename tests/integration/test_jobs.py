"""Jobs: one at a time, each with a row and a log, whatever becomes of it; late or twice changes nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from python_udfs.cli import app
from python_udfs.errors import UserError
from python_udfs.operations import jobs
from python_udfs.operations.locks import BUILD, BUSY, held
from python_udfs.settings import REPOSITORY, Settings
from tests.health import create_relations
from tests.oracles.clock import HOUR_US, SECOND_US, Trade
from tests.support import dbt, execute, insert_trades, query

Environment = Callable[..., AbstractContextManager[None]]
START = 1_767_571_200 * SECOND_US


def rows(store: Settings) -> list[dict[str, Any]]:
    return query(f"select * from {store.database('serving')}.job_runs final order by started_at")


def test_a_run_has_a_row_and_a_log(store: Settings) -> None:
    done = jobs.run("archive")
    [row] = rows(store)
    assert (row["job"], row["status"], row["run_id"]) == ("archive", "ok", done.run_id)
    assert row["detail"].startswith("off:")
    assert row["started_at"] <= row["finished_at"]
    log = done.log.read_text()
    assert str(done.run_id) in log
    assert "ok: off:" in log
    listed = CliRunner().invoke(app, ["job", "list"], env={"COLUMNS": "200"})
    assert listed.exit_code == 0
    assert all(job.name in listed.output for job in jobs.JOBS)
    assert "never" in listed.output


def test_a_failure_is_a_row_with_its_reason(store: Settings, environment: Environment) -> None:
    with environment(archive_after_days="30", hot_ttl_days="7"):
        done = CliRunner().invoke(app, ["job", "run", "archive"])
    assert done.exit_code == 1
    assert "archive: failed: MARKETPRISM_HOT_TTL_DAYS would remove rows" in done.output
    [row] = rows(store)
    assert row["status"] == "failed"
    assert "never verified" in row["detail"]


def test_a_bug_is_a_row_too(store: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(jobs, "JOBS", (jobs.Job("broken", "", "", "nothing", broken),))
    with pytest.raises(ZeroDivisionError):
        jobs.run("broken")
    [row] = rows(store)
    assert (row["status"], row["detail"]) == ("failed", "ZeroDivisionError: by zero")
    assert "Traceback" in jobs.log_of(jobs.JOBS[0]).read_text()


def test_a_second_run_is_skipped(store: Settings) -> None:
    with held("job-archive", "job archive"):
        done = CliRunner().invoke(app, ["job", "run", "archive"])
    assert done.exit_code == BUSY
    assert "archive: skipped: job archive: job archive holds" in done.output
    assert [row["status"] for row in rows(store)] == ["skipped"]
    assert jobs.run("archive").status == "ok"
    with pytest.raises(UserError, match="no job 'dance': there are candidates, archive"):
        jobs.run("dance")


def test_calibration_waits_for_a_build_survives_kill_nine_and_runs_twice(module_store: Settings) -> None:
    store = module_store  # dbt parses the project once for the jobs of a store
    trade = [
        Trade(START + i * 20 * SECOND_US, i + 1, str(i + 1), (1 + i % 7) * 10**8, START + i * 20 * SECOND_US)
        for i in range(3 * HOUR_US // (20 * SECOND_US))
    ]
    insert_trades(trade)
    dbt("seed", select="bucket_defaults source_availability")
    dbt("run", select="stg_trades")
    command = [str(Path(sys.executable).parent / "marketprism"), "job", "run", "calibration"]
    with held(BUILD, "dbt build"):
        process = subprocess.Popen(command, cwd=REPOSITORY, env=os.environ)
        try:
            deadline = time.monotonic() + 60
            while not rows(store) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert [row["status"] for row in rows(store)] == ["running"]
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert [row["status"] for row in rows(store)] == ["running"], "it died without a word"

    first, second = jobs.run("calibration"), jobs.run("calibration")
    killed, *others = rows(store)
    assert killed["status"] == "failed"
    assert f"killed: it ended without a word; closed by run {first.run_id}" == killed["detail"]
    assert killed["finished_at"] is not None
    assert [(row["run_id"], row["status"]) for row in others] == [
        (first.run_id, "ok"),
        (second.run_id, "ok"),
    ]
    # the first hour has no history; the seed needs 30 minutes of it
    assert first.detail == "3 new anchors, 2 of them calibrated; 0 instruments still have the seed's q_bucket"
    assert second.detail.startswith("0 new anchors, 0 of them calibrated")
    [row] = query("select count() as n, countIf(is_calibrated) as k from bucket_config")
    assert row == {"n": 3, "k": 2}


def test_parity_fails_with_a_reason_on_an_empty_store_and_drift_may_run_twice(module_store: Settings) -> None:
    before = len(rows(module_store))
    done = CliRunner().invoke(app, ["job", "run", "parity"])
    assert done.exit_code == 1
    [row] = rows(module_store)[before:]
    assert (row["job"], row["status"]) == ("parity", "failed")
    assert row["detail"].startswith("dbt build --select feature_parity_rows feature_parity")
    assert "Was `make build` run once?" in row["detail"]
    assert f"log: {jobs.log_of(jobs.find('parity'))}" in done.output

    create_relations()
    execute(
        "insert into feature_vector_v2 (exchange, market_type, symbol, bucket_id, bucket_ts_start, bucket_ts_end, ofi) "
        "select 'x', 'spot', 'S', number, now64(6) - toIntervalSecond(number * 600) as at, at, sipHash64(number) % 1000 "
        "from numbers(2100)",
        layer="features",
    )
    dbt("seed", select="feature_catalog")
    dbt("run", select="scored_buckets")
    for _ in range(2):
        done = CliRunner().invoke(app, ["job", "run", "drift"])
        assert done.exit_code == 0, done.output
        assert ", 0 warnings" in done.output
    assert [(r["job"], r["status"]) for r in rows(module_store)[before + 1 :]] == [("drift", "ok")] * 2
    grain = "(subject, reference, exchange, market_type, symbol, feature, reference_from, reference_to)"
    assert query(f"select count() > 0 as some, count() - uniqExact({grain}) as twice from drift_bins") == [
        {"some": 1, "twice": 0}
    ]
    assert query("select feature, isFinite(psi) as finite from feature_drift where feature = 'ofi'") == [
        {"feature": "ofi", "finite": 1}
    ]


def test_a_killed_run_of_another_machine_is_left_alone(store: Settings) -> None:
    execute(
        "insert into job_runs values ('archive', generateUUIDv4(), now64(3), null, 'running', '', 'elsewhere')",
        layer="serving",
    )
    jobs.run("archive")
    assert {row["host"]: row["status"] for row in rows(store)}["elsewhere"] == "running"
