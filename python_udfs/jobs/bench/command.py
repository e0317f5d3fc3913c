"""`marketprism bench`: which parts run, and what they print."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.jobs.bench.environment import THREADS, peers_python
from python_udfs.jobs.bench.figures import Aim
from python_udfs.settings import settings

console = Console()


class Part(StrEnum):
    THROUGHPUT = "throughput"
    TOPICS = "topics"
    ASSEMBLY = "assembly"
    SCORE = "score"
    LIVE = "live"


def _sizes(text: str) -> list[float]:
    try:
        found = [float(x) for x in text.split(",") if x.strip()]
    except ValueError as e:
        raise typer.BadParameter(f"{text!r}: write sizes in millions, such as 1,5,20") from e
    if any(not 0 < m < 1000 for m in found):
        raise typer.BadParameter(f"{text!r}: a size is more than 0 and less than 1000 million trades")
    return found


def _peers(allowed: bool) -> Path | None:
    """The interpreter with the peers; without one it says why, and the rest is measured."""
    if not allowed:
        console.print("--no-peers: without Feast and DuckDB")
        return None
    try:
        return peers_python(console)
    except UserError as e:
        console.print(str(e), style="yellow")
        return None


def _show(found: Iterable[Table | str | Aim]) -> list[Aim]:
    """Prints what comes, as it comes; returns the aims."""
    aims = []
    for shown in found:
        if isinstance(shown, Aim):
            aims.append(shown)
        else:
            console.print(shown, soft_wrap=isinstance(shown, str), markup=False)
    return aims


def bench_command(
    *,
    only: Annotated[
        list[Part] | None, typer.Option(help="This part; may be repeated. Else all five.")
    ] = None,
    millions: Annotated[
        str, typer.Option(help="throughput: sizes of the generated market, in millions of trades.")
    ] = "1,5,20",
    runs: Annotated[int, typer.Option(help="Runs of which the median is printed.", min=1)] = 3,
    calls: Annotated[int, typer.Option(help="Calls per latency.", min=20)] = 500,
    rows: Annotated[
        int, typer.Option(help="assembly: labelled rows, and as many feature rows; 0: none.", min=0)
    ] = 1_000_000,
    feast_rows: Annotated[
        int,
        typer.Option(
            help="assembly: the same where Feast takes part, whose work grows with the square.", min=0
        ),
    ] = 10_000,
    seconds: Annotated[
        int,
        typer.Option(help="live: how long a market arrives, and how much of one in a burst.", min=5, max=500),
    ] = 60,
    instruments: Annotated[int, typer.Option(help="live: instruments of a burst.", min=1)] = 1000,
    peers: Annotated[
        bool,
        typer.Option(help="Compare with Feast and DuckDB, in .venv-bench (made on first use: 70 packages)."),
    ] = True,
) -> None:
    """Measure what this costs, each figure beside a bound or a peer of the same run.

    throughput: ingest, the clock and the full build, beside a scan.

    topics: the cost of each topic of features.

    assembly: training sets as of known_at, beside Feast, DuckDB and polars.

    score: latency p50 and p99 of baseline and student, beside ONNX Runtime and Feast's online read.

    live: from the closing trade to the feature row, beside `dbt run`; 1,000 instruments in one pass.

    In databases of its own, dropped at the end. On a busy machine compare ratios, not times.
    """
    sizes = _sizes(millions)
    parts = set(only or Part)
    if settings().db_prefix != "bench_":
        os.environ["MARKETPRISM_DB_PREFIX"] = "bench_"
        settings.cache_clear()
    from python_udfs.migrate import drop_all, migrate

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    with db.connect() as c:
        version = c.execute("select version()")[0][0]
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB, load {os.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}, ClickHouse {version}",
        soft_wrap=True,
    )
    python = _peers(peers) if parts & {Part.ASSEMBLY, Part.SCORE} else None

    def found() -> Iterator[Table | str | Aim]:
        from python_udfs.jobs.bench import assembly, live, score, throughput

        if Part.ASSEMBLY in parts:
            migrate()
            yield from assembly.assembly(
                console, rows, feast_rows, runs=runs, peers=python, local=Path(sys.executable)
            )
        if Part.SCORE in parts:
            yield from score.score(console, calls, python)
        if Part.LIVE in parts:
            yield from live.live(console, seconds, instruments)
        if Part.THROUGHPUT in parts:
            yield from throughput.throughput(console, sizes, runs)
        if Part.TOPICS in parts:
            yield from throughput.topics(console, calls)

    try:
        aims = _show(found())
    finally:
        drop_all()
    for aim in aims:
        console.print(str(aim), style={True: "green", False: "red", None: "yellow"}[aim.met], soft_wrap=True)
    console.print(f"load {os.getloadavg()[0]:.1f} at the end; {THREADS} threads for each engine")
