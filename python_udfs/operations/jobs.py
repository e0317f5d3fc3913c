"""Scheduled jobs: each runs under a lock, with a log file and a row in `job_runs`, and may run late or twice.

The schedule is the list `JOBS`; the crontab and the systemd units are printed from it. Nothing is tried again: what
failed is a row, and the next run by schedule is the next try.
"""

from __future__ import annotations

import logging
import shlex
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final

from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors

from python_udfs import db
from python_udfs.dbt import Dbt
from python_udfs.errors import UserError
from python_udfs.operations import archive
from python_udfs.operations.locks import BUILD, BUILD_WAIT_S, BUSY, BusyError, held
from python_udfs.settings import REPOSITORY, settings

_MONITORING: Final = "path:dbt_project/models/monitoring"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """One line of the schedule, UTC.

    Attributes:
        cron: five fields of a crontab; empty: only on demand.
        calendar: the same as systemd's OnCalendar.
        action: does it and says in one line what came of it.
    """

    name: str
    cron: str
    calendar: str
    does: str
    action: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Run:
    """How a run ended: status `ok`, `failed` or `skipped`, and why."""

    job: str
    run_id: uuid.UUID
    status: str
    detail: str
    log: Path

    @property
    def exit_code(self) -> int:
        """0 ok, 1 failed, 75 try later."""
        return {"ok": 0, "skipped": BUSY}.get(self.status, 1)


def run(name: str) -> Run:
    """Runs a job now. A second run at the same time is skipped.

    Raises:
        UserError: no such job, or no ClickHouse to write its row to.
    """
    job = find(name)
    run_id, started = uuid.uuid4(), datetime.now(UTC)
    with _logging_to(log_of(job)) as log:
        _log.info("%s %s", job.name, run_id)

        def write(c: Client, status: str, detail: str) -> None:
            finished = None if status == "running" else datetime.now(UTC)
            row = (job.name, run_id, started, finished, status, detail[:2000], socket.gethostname())
            c.execute(
                "insert into job_runs (job, run_id, started_at, finished_at, status, detail, host) values",
                [row],
            )

        def end(status: str, detail: str) -> Run:
            _log.log(logging.INFO if status == "ok" else logging.ERROR, "%s: %s", status, detail)
            with _serving() as c:
                write(c, status, detail)
            return Run(job.name, run_id, status, detail, log)

        try:
            with held(f"job-{job.name}", f"job {job.name}"):
                with _serving() as c:
                    _close_killed(c, job, run_id)
                    write(c, "running", "")
                return end("ok", job.action())
        except BusyError as e:
            return end("skipped", str(e))
        except UserError as e:
            return end("failed", str(e))
        except BaseException as e:  # a bug or ctrl-C: the row says so, the traceback goes on
            _log.exception("%s", job.name)
            end("failed", f"{type(e).__name__}: {e}")
            raise


def find(name: str) -> Job:
    """The job of that name.

    Raises:
        UserError: there is none.
    """
    for job in JOBS:
        if job.name == name:
            return job
    raise UserError(f"no job {name!r}: there are {', '.join(j.name for j in JOBS)}")


def log_of(job: Job) -> Path:
    """The job's log file."""
    s = settings()
    return s.data_dir / "log" / "jobs" / f"{s.db_prefix}{job.name}.log"


def last_runs() -> dict[str, dict[str, Any]]:
    """The newest row of each job that ever ran."""
    with _serving() as c:
        found = db.rows(c, "select * from job_runs final order by started_at desc limit 1 by job")
    return {row["job"]: row for row in found}


# ---- what they do ----------------------------------------------------------------------------------------


def _candidates() -> str:
    from python_udfs.jobs.candidates import refresh

    done = refresh()
    return f"{done.new_runs} new runs, {done.levels} levels, {len(done.stale)} of {len(done.newest)} instruments stale"


def _calibration() -> str:
    """q_bucket of the anchors that have come since; every build does the same, so that late or twice changes nothing."""
    count = "select count(), countIf(is_calibrated) from bucket_config"
    with db.connect(settings().database("features")) as c:
        exists = c.execute("exists table bucket_config")[0][0]
        before = c.execute(count)[0] if exists else (0, 0)
        _build("calibration", "bucket_config")
        after = c.execute(count)[0]
        [(from_seed,)] = c.execute(
            "select count() from (select is_calibrated from bucket_config order by valid_from desc "
            "limit 1 by exchange, market_type, symbol) where not is_calibrated"
        )
    return (
        f"{after[0] - before[0]} new anchors, {after[1] - before[1]} of them calibrated; "
        f"{from_seed} instruments still have the seed's q_bucket"
    )


def _parity() -> str:
    return _build("parity", "feature_parity_rows", "feature_parity")


def _drift() -> str:
    return _build("drift", f"{_MONITORING}/*drift*")


def _whole_build() -> str:
    return _build("build")


def _build(use: str, *select: str) -> str:
    """dbt build with its data tests; those that only warn are in the detail."""
    # a test that also reads a model behind the selected ones says nothing of these
    chosen = ["--select", *select, "--indirect-selection=buildable"] if select else []
    words = [*chosen, "--exclude-resource-type", "unit_test"]
    # a daily job waits: it would not come again for a day
    with held(BUILD, f"job {use}", wait_s=BUILD_WAIT_S):
        results = Dbt("jobs").run("build", *words)  # one folder: the project is parsed once for all of them
    if not results:
        raise UserError(f"dbt found nothing to build for {' '.join(select)}")
    warned = [f"{r.name}: {r.message}" for r in results if r.status == "warn"]
    for line in warned:
        _log.warning("%s", line)
    return "; ".join([f"{len(results)} models and tests, {len(warned)} warnings", *warned[:5]])


JOBS: Final = (
    Job("candidates", "*/5 * * * *", "*-*-* *:00/5:00", "footprint levels up to now", _candidates),
    Job("archive", "7 * * * *", "*-*-* *:07:00", "old raw rows from hot to cold", lambda: str(archive.run())),
    Job("calibration", "12 0 * * *", "*-*-* 00:12:00", "q_bucket of new anchors", _calibration),
    Job("parity", "27 0 * * *", "*-*-* 00:27:00", "features as served against features as stored", _parity),
    Job("drift", "42 0 * * *", "*-*-* 00:42:00", "distributions of features and predictions", _drift),
    Job("build", "", "", "everything that dbt owns", _whole_build),
)


# ---- the schedule, written out ---------------------------------------------------------------------------


def crontab(env_file: Path | None = None) -> str:
    """The schedule for `crontab -`. env_file: shell lines that set MARKETPRISM_* (and secrets) before each job."""
    lines = ["# written by `marketprism job crontab`; times are UTC", "CRON_TZ=UTC", "SHELL=/bin/bash"]
    load = f"set -a && . {shlex.quote(str(env_file.resolve()))} && set +a && " if env_file else ""
    for job in JOBS:
        if job.cron:
            # cron turns % into a line break
            command = f"cd {shlex.quote(str(REPOSITORY))} && {load}{_command(job)} > /dev/null".replace(
                "%", "\\%"
            )
            lines.append(f"{job.cron} {command}")
    return "\n".join(lines) + "\n"


def systemd_units(env_file: Path | None = None) -> dict[str, str]:
    """A service and a timer for each scheduled job: file name to text. env_file: as systemd's EnvironmentFile."""
    units = {}
    environment = f"EnvironmentFile={_escaped(str(env_file.resolve()))}\n" if env_file else ""
    for job in JOBS:
        if not job.calendar:
            continue
        name = f"marketprism-{job.name}"
        units[f"{name}.service"] = (
            f"[Unit]\nDescription=MarketPrism: {job.does}\nAfter=network.target\n\n"
            f"[Service]\nType=oneshot\nWorkingDirectory={_escaped(str(REPOSITORY))}\n{environment}"
            f"ExecStart={_escaped(_command(job))}\nSuccessExitStatus={BUSY}\n"
        )
        units[f"{name}.timer"] = (
            f"[Unit]\nDescription=MarketPrism: {job.does}\n\n"
            f"[Timer]\nOnCalendar={job.calendar} UTC\nPersistent=true\nUnit={name}.service\n\n"
            "[Install]\nWantedBy=timers.target\n"
        )
    return units


def _command(job: Job) -> str:
    return f"{shlex.quote(str(Path(sys.executable).parent / 'marketprism'))} job run {job.name}"


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


# ---- rows and logs ---------------------------------------------------------------------------------------


@contextmanager
def _serving() -> Iterator[Client]:
    with db.connect(settings().database("serving")) as c:
        try:
            yield c
        except driver_errors.ServerException as e:
            if e.code == driver_errors.ErrorCodes.UNKNOWN_TABLE:
                raise UserError("there is no table job_runs yet: run `make migrate`") from e
            raise


def _close_killed(c: Client, job: Job, run_id: uuid.UUID) -> None:
    """Rows of this machine that say `running`, though their lock is ours now: their process was killed."""
    c.execute(
        "insert into job_runs select job, run_id, started_at, now64(3, 'UTC'), 'failed', %(detail)s, host "
        "from job_runs final where job = %(job)s and host = %(host)s and status = 'running'",
        {
            "detail": f"killed: it ended without a word; closed by run {run_id}",
            "job": job.name,
            "host": socket.gethostname(),
        },
    )


@contextmanager
def _logging_to(path: Path) -> Iterator[Path]:
    """The package's log lines also go to this file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(path, maxBytes=5_000_000, backupCount=3)
    formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    package = logging.getLogger("python_udfs")
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield path
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()
