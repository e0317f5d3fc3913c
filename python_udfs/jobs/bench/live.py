"""Live views: how fresh a row is on a market that arrives as it once did, and many instruments in one pass."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from clickhouse_driver import Client
from rich.console import Console
from rich.status import Status
from rich.table import Table

from python_udfs import db
from python_udfs.jobs.bench.figures import Aim, ratio, times
from python_udfs.jobs.bench.throughput import dbt
from python_udfs.jobs.demo import GENERATED_CLOCK
from python_udfs.live import views
from python_udfs.live.replay import SECOND_US, Step, replay
from python_udfs.settings import settings

_START: Final = datetime(2026, 1, 5, 12, tzinfo=UTC)
_HISTORY_MIN: Final = 20
_NEXT_MIN: Final = 10  # at most so much arrives live
_STEP_S: Final = 0.5
_BATCH_S: Final = 10
_PASS_S: Final = 300.0
_RATE: Final = 8  # trades a second, all instruments together: some each bucket
_CLOCK: Final = ("--vars", json.dumps(GENERATED_CLOCK))


def _markets() -> tuple[Path, Path]:
    """What is there before the views, and what arrives while they run: eight instruments."""
    from python_udfs.ingest.generator import MarketConfig, write

    folders = (
        settings().data_dir / "generated" / "bench-live",
        settings().data_dir / "generated" / "bench-live-next",
    )
    begin = _START
    for folder, minutes in zip(folders, (_HISTORY_MIN, _NEXT_MIN), strict=True):
        start = int(begin.timestamp()) * SECOND_US
        write(
            MarketConfig(
                start=start, minutes=minutes, trades_per_second=_RATE, book_levels=5, book_interval_ms=500
            ),
            folder,
        )
        begin += timedelta(minutes=minutes)
    return folders


def _arrive(market: Path, speed: float, seconds: float, status: Status) -> None:
    """The first seconds of a market, in steps; those that are there already are passed over."""
    from python_udfs.ingest.detect import readers_for

    stop = threading.Event()
    first = _START.timestamp() + _HISTORY_MIN * 60

    def on_step(step: Step) -> None:
        at = step.until / SECOND_US - first
        status.update(f"live: {at:.0f} of {seconds:.0f} s of market")
        if at >= seconds:
            stop.set()

    replay(readers_for([market]), speed, step_s=_STEP_S, on_step=on_step, stop=stop)


def burst(c: Client, begin: datetime, seconds: int, instruments: int) -> int:
    """A trade a second of each instrument S0, S1, …, into the hot table; the feed is complete behind them. How many."""
    n = seconds * instruments
    moment = f"toDateTime64('{begin:%Y-%m-%d %H:%M:%S}', 6, 'UTC')"
    hot = settings().database("hot")
    c.execute(
        f"insert into {hot}.trades (exchange, market_type, symbol, timestamp, trade_id, price, quantity, side, is_maker, "
        f"trade_time, known_at, data_source) select 'alpha', 'spot', concat('S', toString(number % {instruments})), "
        f"{moment} + toIntervalSecond(intDiv(number, {instruments})) as t, toString(toUnixTimestamp(t)), "
        f"100 + number % 7, 1, if(number % 3 = 0, 'buy', 'sell'), 0, t, t, 'generator' from numbers({n})",
    )
    c.execute(
        f"insert into {hot}.watermarks (kind, exchange, market_type, symbol, watermark, data_source, load_id) "
        f"select arrayJoin(['trades', 'orderbooks']), 'alpha', 'spot', 'S0', {moment} + toIntervalSecond({seconds}), "
        f"'generator', 'burst {begin:%H:%M:%S}'"
    )
    return n


def resident_mib() -> float | None:
    """MiB of memory that the local server holds. None: the server is elsewhere."""
    from python_udfs import server

    info = server.status() if settings().target == "local" else None
    if info is None:
        return None
    for line in Path(f"/proc/{info.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return None


def _freshness(
    c: Client, market: Path, seconds: int, batch_s: float, status: Status
) -> Iterator[Table | Aim]:
    views.wait_for_pass(c, _PASS_S)
    # what the first pass caught up with was no news
    c.execute("truncate table feature_arrivals_stored")
    _arrive(market, 1, seconds, status)
    views.wait_for_pass(c, _PASS_S)
    pass_s = views.status(c).pass_s
    found = c.execute("select row_count, p50_s, p99_s from freshness where symbol = ''")
    rows, p50, p99 = found[0] if found else (0, None, None)
    table = Table(title=f"closing trade to feature row: {rows} rows of 8 instruments in {seconds} s")
    for name in ("p50 s", "p99 s", "a pass s", "dbt run s", "dbt run / p50"):
        table.add_column(name, justify="right")
    figures = [p50, p99, pass_s, batch_s]
    table.add_row(*("-" if x is None else f"{x:.2f}" for x in figures), times(ratio(batch_s, p50)))
    yield table
    yield Aim("freshness p50", 2, "s", p50)


def _burst(c: Client, instruments: int, seconds: int) -> Table:
    """The second burst counts: with the first one come instruments that nobody knew."""
    begin = _START + timedelta(minutes=_HISTORY_MIN + _NEXT_MIN)
    before = resident_mib()
    n, insert_s, pass_s = 0, 0.0, 0.0
    for k in range(2):
        began = time.perf_counter()
        n = burst(c, begin + timedelta(seconds=k * seconds), seconds, instruments)
        insert_s = time.perf_counter() - began
        views.wait_for_pass(c, _PASS_S)
        pass_s = time.perf_counter() - began - insert_s
    after = resident_mib()
    [(rows, found)] = c.execute(
        "select count(), uniqExact(symbol) from feature_vector_v1 where startsWith(symbol, 'S')"
    )
    table = Table(
        title=f"{found:,} instruments at once: {n:,} trades in one insert, {rows:,} feature rows so far"
    )
    for name in ("insert s", "… to the end of a pass s", "trades/s", "server MiB before", "after"):
        table.add_column(name, justify="right")
    memory = ("-" if x is None else f"{x:,.0f}" for x in (before, after))
    table.add_row(f"{insert_s:.2f}", f"{pass_s:.2f}", f"{n / (insert_s + pass_s):,.0f}", *memory)
    return table


def live(console: Console, seconds: int, instruments: int) -> Iterator[Table | str | Aim]:
    """Freshness beside a `dbt run` of as little news, then throughput and memory at many instruments.

    Args:
        seconds: how long the market arrives, and how much market comes in one burst.
        instruments: how many trade at once in a burst.
    """
    from python_udfs.ingest.generator import GeneratedReader
    from python_udfs.ingest.loader import load
    from python_udfs.migrate import drop_all, migrate

    drop_all()
    migrate()
    chain = views.CHAINS["v1"]
    with console.status("live: a market, and a build of it") as status:
        before, later = _markets()
        load(GeneratedReader(before))
        dbt("seed")
        dbt("run", "--select", *chain, "+freshness", *_CLOCK)
        _arrive(later, 0, _BATCH_S, status)
        status.update("live: dbt run")
        batch_s = dbt("run", "--select", *chain, *_CLOCK)
        status.update("live: making the views")
        try:
            views.start("v1", GENERATED_CLOCK)
            with db.connect(settings().database("features")) as c:
                yield from _freshness(c, later, seconds, batch_s, status)
                status.update(f"live: {instruments:,} instruments")
                yield _burst(c, instruments, seconds)
        finally:
            views.stop()
