"""Ingest, the clock, the full build and each topic on generated markets, beside a scan of the same trades."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.jobs.demo import GENERATED_CLOCK
from python_udfs.settings import REPOSITORY, settings

CLOCK = "stg_trades stg_watermarks stg_orderbooks bucket_config bucket_tapes"


@dataclass
class Size:
    """What one size of market cost, in seconds; `build` is the median of the runs."""

    trades: int
    books: int = 0
    ingest_s: float = 0.0
    clock_s: list[float] = field(default_factory=list)
    scan_s: list[float] = field(default_factory=list)
    build_s: list[float] = field(default_factory=list)


def dbt(*words: str) -> float:
    """Seconds of one dbt command, its start and parse included: what a user waits for."""
    began = time.perf_counter()
    done = subprocess.run(
        [str(Path(sys.executable).parent / "dbt"), *words, "--quiet"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(f"dbt {' '.join(words)} failed:\n{done.stdout[-2000:]}")
    return time.perf_counter() - began


def _query_seconds(node: str) -> float:
    """Server-side seconds of the last finished INSERT of a dbt model."""
    with db.connect() as c:
        c.execute("system flush logs")
        found = c.execute(
            "select query_duration_ms / 1000 from system.query_log where type = 'QueryFinish' "
            "and query_kind = 'Insert' and query like %(node)s order by event_time_microseconds desc limit 1",
            {"node": f'%"node_id": "model.marketprism.{node}"%'},
        )
    return float(found[0][0])


def _scan_seconds() -> float:
    """The bound: reading the same trades, grouped and sorted into tapes, and nothing else."""
    query = (
        "select sum(length(tape)) from (select arraySort(groupArray((timestamp, trade_seq, price, quantity, side))) "
        "as tape from stg_trades group by exchange, market_type, symbol, toStartOfHour(timestamp))"
    )
    with db.connect(settings().database("features")) as c:
        began = time.perf_counter()
        c.execute(query)
        return time.perf_counter() - began


def _size(millions: float, runs: int) -> Size:
    from python_udfs.ingest.generator import GeneratedReader, MarketConfig, write
    from python_udfs.ingest.loader import load
    from python_udfs.migrate import drop_all, migrate

    drop_all()
    migrate()
    config = MarketConfig.benchmark(int(millions * 1e6))
    folder = settings().data_dir / "generated" / f"bench-{millions:g}m"
    write(config, folder)
    result = load(GeneratedReader(folder))
    size = Size(trades=result.rows["trades"], books=result.rows.get("orderbooks", 0), ingest_s=result.seconds)
    dbt("seed")
    for _ in range(runs):
        dbt("run", "--full-refresh", "--select", *CLOCK.split())
        size.clock_s.append(_query_seconds("bucket_tapes"))
        size.scan_s.append(_scan_seconds())
        size.build_s.append(dbt("build", "--full-refresh", "--exclude-resource-type", "unit_test"))
    return size


def _throughput(sizes: list[Size]) -> Table:
    table = Table(title="throughput (medians)")
    for name in (
        "trades",
        "books",
        "ingest rows/s",
        "buckets trades/s",
        "x scan and sort",
        "dbt build s",
        "µs per trade",
    ):
        table.add_column(name, justify="right")
    for s in sizes:
        clock, scan, build = (statistics.median(x) for x in (s.clock_s, s.scan_s, s.build_s))
        table.add_row(
            f"{s.trades:,}",
            f"{s.books:,}",
            f"{(s.trades + s.books) / s.ingest_s:,.0f}",
            f"{s.trades / clock:,.0f}",
            f"{clock / scan:.1f}",
            f"{build:.1f}",
            f"{build / s.trades * 1e6:.2f}",
        )
    return table


# Why a topic may cost more than COSTLY scans.
COSTLY = 10
REASONS = {
    "cross_market": "21 lags by two methods for every pair of markets, on books",
    "order_book": "parses the JSON of every book and compares successive ones level by level; the scan reads trades only",
    "tape": "the levels of every book on a 100 ms grid",
    "trade_flow": "every trade is joined to the book before and after it; a Hawkes fit a minute",
    "heatmap": "a clustering of 200 trades for each bucket",
    "derivatives": "eight small models: at this size dbt's cost of a model is two scans",
    "event_tokens": "trades and book changes in one order: more than a million events",
    "volatility": "154 mids looked up for each bucket, and a wavelet transform",
    "footprint": "candidates of three windows of up to a day, each five minutes, and their clusters",
    "(serving)": "joins all families into one row, and five of them once more for version 1",
    "(labels)": "every trade is joined to three later books",
    "(buckets)": "the cuts of every trade, then the path through them: see DECISIONS.md, how the clock is built",
    "(live)": "books and trades are read again for the minutes",
    "(monitoring)": "views; the time is dbt's own",
    "(training)": "joins the vector and the labels whole",
}


def _topic_seconds() -> dict[str, float]:
    """Seconds of the last dbt command's models by topic: features by their folder, the rest by their layer."""
    nodes = json.loads((REPOSITORY / "target" / "manifest.json").read_text())["nodes"]
    found: dict[str, float] = {}
    for result in json.loads((REPOSITORY / "target" / "run_results.json").read_text())["results"]:
        node = nodes.get(result["unique_id"])
        if node is None or node["resource_type"] != "model":
            continue
        layer, *rest = Path(node["path"]).parts
        topic = rest[0] if layer == "features" else f"({layer})"
        found[topic] = found.get(topic, 0) + float(result["execution_time"])
    return found


def _footprint(calls: int) -> Table:
    """The candidates' refresh, and the online level features from 200 clusters, on what `_families` has built."""
    from python_udfs.jobs.candidates import measure_candidates

    ms = measure_candidates(calls)
    table = Table(title=f"footprint, ms: refresh {min(calls, 10)} times, online {calls} calls")
    for name in ("what", "p50", "p99", "p50 / SELECT 1"):
        table.add_column(name, justify="left" if name == "what" else "right")
    rows = (
        ("5-minute candidate refresh, the whole command", "refresh"),
        ("… of it in ClickHouse", "refresh_server"),
        ("online features of 200 levels, as the caller sees it", "online"),
        ("… of it in ClickHouse", "online_server"),
    )
    for what, name in rows:
        p50, p99 = ms[f"{name}_p50_ms"], ms[f"{name}_p99_ms"]
        table.add_row(what, f"{p50:.1f}", f"{p99:.1f}", f"{p50 / ms['select_1_p50_ms']:.0f}")
    return table


def _families() -> Iterator[Table | str]:
    """What each topic costs on the demo's market, whose books have twenty levels."""
    from python_udfs.ingest.generator import GeneratedReader, MarketConfig, write
    from python_udfs.ingest.loader import load
    from python_udfs.migrate import drop_all, migrate

    drop_all()
    migrate()
    folder = settings().data_dir / "generated" / "bench-families"
    write(MarketConfig(), folder)
    rows = load(GeneratedReader(folder)).rows
    clock = ("--vars", json.dumps(GENERATED_CLOCK))
    dbt("seed")
    # one at a time: what a model takes is its own
    dbt("run", "--full-refresh", "--threads", "1", *clock)
    seconds = _topic_seconds()
    build = dbt("build", "--full-refresh", "--exclude-resource-type", "unit_test", *clock)
    scan = statistics.median(_scan_seconds() for _ in range(5))
    trades, books, total = rows["trades"], rows["orderbooks"], sum(seconds.values())
    table = Table(
        title=f"cost by topic: {trades:,} trades, {books:,} books of 20 levels; scan and sort {scan:.2f} s; "
        f"dbt build with data tests {build:.0f} s"
    )
    for name in ("topic", "s", "trades/s", "share of the models", "x scan and sort"):
        table.add_column(name, justify="left" if name == "topic" else "right")
    for topic, s in sorted(seconds.items(), key=lambda x: -x[1]):
        table.add_row(topic, f"{s:.2f}", f"{trades / s:,.0f}", f"{s / total:.1%}", f"{s / scan:.1f}")
    yield table
    for topic, s in seconds.items():
        if s > COSTLY * scan:
            yield f"{topic} costs {s / scan:.0f} scans: {REASONS.get(topic, 'no reason is known')}"


def throughput(console: Console, millions: Sequence[float], runs: int) -> Iterator[Table | str]:
    """One table after each size of market, in millions of trades, and one of all at the end."""
    sizes = []
    for m in millions:
        with console.status(f"throughput: {m:g} M trades"):
            sizes.append(_size(m, runs))
        yield _throughput(sizes[-1:])
    if len(sizes) > 1:
        yield _throughput(sizes)


def topics(console: Console, calls: int) -> Iterator[Table | str]:
    """What each topic costs, and the latency of footprint's candidates and levels on what was built for it."""
    with console.status("topics"):
        yield from _families()
        yield _footprint(calls)
