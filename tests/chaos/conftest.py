"""One server of its own, one clean run to compare with, and a table of outcomes.

With all tests runs a short form: kills, a full disk, a renamed column. MARKETPRISM_CHAOS_ROUNDS (2) is the number of kills,
MARKETPRISM_CHAOS_HOURS (0) that of simulated hours; with either set every fault is tried, and the outcomes are also written to
`<data_dir>/chaos.md`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from python_udfs import db
from python_udfs.ingest.generator import GeneratedReader, MarketConfig, write
from python_udfs.ingest.loader import load
from python_udfs.migrate import migrate
from python_udfs.server import start, stop
from python_udfs.settings import REPOSITORY, Settings, settings
from tests.support import dbt, shorten_the_readers_queries, table_hash

ROUNDS = int(os.environ.get("MARKETPRISM_CHAOS_ROUNDS", "2"))
HOURS = int(os.environ.get("MARKETPRISM_CHAOS_HOURS", "0"))
LONG = bool({"MARKETPRISM_CHAOS_ROUNDS", "MARKETPRISM_CHAOS_HOURS"} & os.environ.keys())
BIN = Path(sys.executable).parent
RAW = ("trades", "orderbooks", "funding_rates")
BUILT = ("bucket_config", "bucket_tapes", "trade_flow")
MODELS = ["stg_trades", "stg_orderbooks", "stg_watermarks", "unified_buckets", "late_trades", *BUILT]
SEEDS = ["source_availability", "instruments", "bucket_defaults"]
CLOCK = {"t_target_s": 5, "t_max_s": 10}
# 23:59 to 00:01: two days, two anchors
START = int(datetime(2026, 1, 4, 23, 59, tzinfo=UTC).timestamp()) * 10**6
Hashes = dict[str, dict[str, Any]]


@dataclass
class Chaos:
    """The store that faults are let loose on.

    Attributes:
        market: a generated market of two minutes around midnight.
        clean: hashes of raw and built tables after one undisturbed run of it.
        own: the server's settings.
    """

    market: Path
    clean: Hashes
    own: Settings
    outcomes: list[tuple[str, str]]

    def reader(self) -> GeneratedReader:
        return GeneratedReader(self.market)

    def tell(self, fault: str, outcome: str) -> None:
        """A line of the table of outcomes: after the asserts, so that it is true."""
        self.outcomes.append((fault, outcome))
        print(f"\n{fault}: {outcome}")


def fresh() -> None:
    """Empty tables; the seeds stay. Dropped, not truncated: a table remembers the blocks that it had."""
    features = settings().database("features")
    with db.connect() as c:
        for layer in ("hot", "serving"):
            c.execute(f"drop database if exists {settings().database(layer)} sync")
        for (table,) in c.execute("show tables from " + features):
            if table not in SEEDS:
                c.execute(f"drop table {features}.{db.names([table])} sync")
    migrate()


def build(**variables: object) -> None:
    dbt("run", select=" ".join(MODELS), **{**CLOCK, **variables})


def hashes(tables: tuple[str, ...] = (*RAW, *BUILT)) -> Hashes:
    """Count and checksum of every byte: of raw rows without the time when they were written."""
    hot = settings().database("hot")
    return {
        t: table_hash(f"{hot}.{t} final", columns="* except (created_at)") if t in RAW else table_hash(t)
        for t in tables
    }


def command(*words: str) -> subprocess.Popen[str]:
    """A command of the project, as cron runs it: to be killed, or to be waited for."""
    target = str(settings().data_dir / "target")
    return subprocess.Popen(
        [str(BIN / words[0]), *words[1:]],
        cwd=REPOSITORY,
        env={**os.environ, "DBT_TARGET_PATH": target, "DBT_LOG_PATH": target},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def done(process: subprocess.Popen[str]) -> str:
    """Waits for a command that must succeed. Returns what it printed."""
    output = process.communicate()[0]
    assert process.returncode == 0, output[-3000:]
    return output


@pytest.fixture(scope="module")
def chaos(
    tmp_path_factory: pytest.TempPathFactory,
    environment: Callable[..., AbstractContextManager[None]],
    free_ports: Callable[[int], list[int]],
) -> Iterator[Chaos]:
    folder = tmp_path_factory.mktemp("chaos")
    market = folder / "market"
    write(MarketConfig(start=START, minutes=2, book_levels=1, truths=()), market)
    port, http_port = free_ports(2)
    report = settings().data_dir / "chaos.md"
    with environment(
        target="local", host="127.0.0.1", port=str(port), http_port=str(http_port), user="default", password="",
        secure="0", db_prefix="chaos_", data_dir=str(folder),
    ):  # fmt: skip
        shorten_the_readers_queries(folder, "chaos_", 3)
        start()
        try:
            migrate()
            dbt("seed", select=" ".join(SEEDS))
            load(GeneratedReader(market))
            build()
            chaos = Chaos(market, hashes(), settings(), [])
            assert chaos.clean["trades"]["n"] > 2000
            assert chaos.clean["trade_flow"]["n"] > 50
            yield chaos
        finally:
            stop(s=settings())
    lines = [f"| {fault} | {outcome} |" for fault, outcome in chaos.outcomes]
    table = "\n".join(["| fault | outcome |", "| --- | --- |", *lines])
    print(f"\n{table}")
    if LONG:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(
            f"Chaos, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {ROUNDS} rounds of kills\n\n{table}\n"
        )
