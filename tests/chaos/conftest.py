"""One server of its own, one clean run to compare with, and a table of outcomes.

With all tests runs a short form: three kills, a full disk, a renamed column. MARKETPRISM_CHAOS_ROUNDS (3) is the number of kills,
MARKETPRISM_CHAOS_HOURS (0) that of simulated hours; with either set every fault is tried, and the outcomes are also written to
`<data_dir>/chaos.md`.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from clickhouse_driver import Client

from python_udfs import db
from python_udfs.ingest.generator import GeneratedReader, MarketConfig, write
from python_udfs.ingest.loader import load
from python_udfs.live import views
from python_udfs.migrate import migrate
from python_udfs.server import start, stop
from python_udfs.settings import REPOSITORY, Settings, settings
from tests import support
from tests.support import dbt, execute, query, shorten_the_readers_queries, table_hash

ROUNDS = int(os.environ.get("MARKETPRISM_CHAOS_ROUNDS", "3"))
HOURS = int(os.environ.get("MARKETPRISM_CHAOS_HOURS", "0"))
LONG = bool({"MARKETPRISM_CHAOS_ROUNDS", "MARKETPRISM_CHAOS_HOURS"} & os.environ.keys())
BIN = Path(sys.executable).parent
PREFIX = "chaos0000_"  # as long as that of other tests' stores: what those parsed serves here
RAW = ("trades", "orderbooks", "funding_rates", "watermarks")
BUILT = ("bucket_config", "bucket_tapes", "trade_flow")
MODELS = ("stg_trades", "stg_orderbooks", "stg_watermarks", "unified_buckets", "late_trades", *BUILT)
SEEDS = ("source_availability", "instruments", "bucket_defaults")
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
        asked: how many queries the undisturbed ingest and refresh sent.
        own: the server's settings.
        outcomes: the table's lines.
        kills: how many of a kind there were; a line each.
    """

    market: Path
    clean: Hashes
    asked: dict[str, int]
    own: Settings
    outcomes: list[tuple[str, str]] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)

    def reader(self) -> GeneratedReader:
        return GeneratedReader(self.market)

    def raw(self) -> Hashes:
        """What the raw tables of a clean run are."""
        return {table: self.clean[table] for table in RAW}

    def tell(self, fault: str, outcome: str) -> None:
        """A line of the table of outcomes: after the asserts, so that it is true."""
        self.outcomes.append((fault, outcome))
        print(f"\n{fault}: {outcome}", flush=True)

    def tell_kill(self, victims: str, outcome: str) -> None:
        """Many kills of a kind are one line of the table: each did what all of its kind did."""
        self.kills[victims] += 1
        print(f"\nkill -9 of {victims}: {outcome}", flush=True)

    def table(self) -> str:
        kills = [
            (f"kill -9 of {victims}, {n} times at random points", "nothing lost, nothing doubled")
            for victims, n in sorted(self.kills.items())
        ]
        lines = [f"| {fault} | {outcome} |" for fault, outcome in [*kills, *self.outcomes]]
        return "\n".join(["| fault | outcome |", "| --- | --- |", *lines])


def create_raw() -> None:
    """Raw tables, and a view that sums up trades as they are inserted."""
    migrate()
    execute(
        "create materialized view sums engine = SummingMergeTree order by symbol settings non_replicated_deduplication_window = 1000 "
        "as select symbol, count() as n, sum(quantity) as quantity from trades group by symbol"
    )


def fresh() -> None:
    """Empty raw tables; nothing is built, the seeds stay. Dropped, not truncated: a table remembers the blocks that it had."""
    unbuilt()
    with db.connect() as c:
        for layer in ("hot", "serving"):
            c.execute(f"drop database if exists {settings().database(layer)} sync")
    create_raw()


def unbuilt() -> None:
    """No model is built, none is live."""
    views.stop()
    features = settings().database("features")
    with db.connect() as c:
        for (table,) in c.execute("show tables from " + features):
            if table not in SEEDS:
                c.execute(f"drop table {features}.{db.names([table])} sync")


def build(*models: str, **variables: object) -> None:
    """dbt run of all of `MODELS`, or of these."""
    dbt("run", select=" ".join(models or MODELS), **{**CLOCK, **variables})


def hashes(tables: tuple[str, ...] = (*RAW, *BUILT)) -> Hashes:
    """Count and checksum of every byte: of raw rows without the time when they were written."""
    hot = settings().database("hot")
    return {
        t: table_hash(f"{hot}.{t} final", columns="* except (created_at)") if t in RAW else table_hash(t)
        for t in tables
    }


def check_loaded(chaos: Chaos) -> None:
    """The market was loaded once: raw tables, what views made of the inserts, the list of loads; nothing is pending."""
    hot = settings().database("hot")
    assert hashes(RAW) == chaos.raw()
    by_symbol = "group by symbol order by symbol"
    assert query(
        f"select symbol, sum(n) as n, sum(quantity) as quantity from {hot}.sums {by_symbol}"
    ) == query(f"select symbol, count() as n, sum(quantity) as quantity from {hot}.trades final {by_symbol}")
    assert query(f"select count() as n from {hot}.loads final")[0]["n"] == 1
    assert private_tables("_journal") == 0


def private_tables(end: str = "") -> int:
    """How many tables of loads there are, or those of an end: a journal is that of a load that goes on; the others go in time."""
    return int(query(f"select count() as n from system.tables where match(name, '^_load_.*{end}$')")[0]["n"])


def asked(c: Client) -> int:
    """How many queries the server was sent since its start, this one included."""
    [(n,)] = c.execute("select value from system.events where event = 'Query'")
    return int(n)


def counted(action: Callable[[], object]) -> int:
    """How many queries it sends."""
    with db.connect() as c:
        before = asked(c)
        action()
        return asked(c) - before - 1


# What cron's jobs do, in a process of its own: dbt by its Python interface, on the project as it was parsed before.
REFRESH = (
    "import pickle, sys; from pathlib import Path; from tests import support; "
    "support._PARSED.update(pickle.loads(Path(sys.argv[1]).read_bytes())); from tests.chaos.conftest import build; build()"
)


def command(*words: str) -> subprocess.Popen[str]:
    """A command of the project, as cron runs it, or `refresh`: to be killed, or to be waited for."""
    if words == ("refresh",):
        file = settings().data_dir / "parsed.pickle"
        file.write_bytes(pickle.dumps(support._PARSED))
        words = ("python", "-c", REFRESH, str(file))
    return subprocess.Popen(
        [str(BIN / words[0]), *words[1:]],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


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
        secure="0", db_prefix=PREFIX, data_dir=str(folder),
    ):  # fmt: skip
        shorten_the_readers_queries(folder, PREFIX, 3)
        start()
        try:
            create_raw()
            dbt("seed", select=" ".join(SEEDS))
            queries = {"ingest": counted(lambda: load(GeneratedReader(market))), "refresh": counted(build)}
            chaos = Chaos(market, hashes(), queries, settings())
            assert chaos.clean["trades"]["n"] > 2000
            assert chaos.clean["trade_flow"]["n"] > 50
            assert chaos.clean["watermarks"]["n"] > 0
            yield chaos
        finally:
            stop(s=settings())
    table = chaos.table()
    print(f"\n{table}")
    if LONG:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(f"Chaos, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC\n\n{table}\n")
