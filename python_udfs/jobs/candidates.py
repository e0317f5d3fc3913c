"""`marketprism refresh-candidates`: brings the footprint's candidates and levels up to date, each five minutes.

The logic is dbt's: this runs the models that `dbt build` runs, under a lock, and says what came of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import numpy as np
import typer
from clickhouse_driver import Client
from rich.console import Console

from python_udfs import db
from python_udfs.dbt import Dbt
from python_udfs.errors import UserError
from python_udfs.operations.locks import BUILD, BUSY, BusyError, held
from python_udfs.settings import settings

MODELS: Final = ("footprint_bin_minutes", "footprint_windows", "footprint_clusters")
RUN_EVERY: Final = timedelta(minutes=5)
STALE_AFTER: Final = timedelta(minutes=10)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_KEY: Final = "exchange, market_type, symbol"


@dataclass(frozen=True, slots=True)
class Refresh:
    """What a refresh did.

    Attributes:
        run_ts: the run that was asked for.
        newest: the newest run of each instrument, by exchange:market_type:symbol.
        new_runs: how many runs were made, over all instruments.
        levels: clusters in the newest runs of the instruments that have a fresh one.
    """

    run_ts: datetime
    newest: dict[str, datetime]
    new_runs: int
    levels: int
    seconds: float

    @property
    def stale(self) -> dict[str, datetime]:
        """Instruments whose newest run is too old to use at run_ts: their feed stands, or nothing trades."""
        return {name: at for name, at in self.newest.items() if at < self.run_ts - STALE_AFTER}


def refresh(now: datetime | None = None) -> Refresh:
    """Makes every run up to `now` that the trades are complete for. Doing it again changes nothing.

    Args:
        now: the time to refresh at, with a zone; run_ts is that floored to five minutes. None: the clock's. A time in
            the past makes no run after it.

    Raises:
        BusyError: another refresh or build is under way.
        UserError: no database, no tables yet, or dbt failed.
    """
    began = time.monotonic()
    asked = now or datetime.now(UTC)
    run_ts = asked - (asked - _EPOCH) % RUN_EVERY
    with held(BUILD, "refresh-candidates"), db.connect(settings().database("features")) as c:
        before = sum(n for *_, n in _state(c).values())
        # dbt parses anew where vars differ, so none without need: what has not happened is not complete either
        until = {"run_ts": f"{run_ts:%Y-%m-%d %H:%M:%S}"} if now else None
        Dbt("candidates", until).run("run", "--select", *MODELS)
        state = _state(c)
    fresh = [levels for at, levels, _ in state.values() if at >= run_ts - STALE_AFTER]
    made = sum(n for *_, n in state.values()) - before
    newest = {name: at for name, (at, *_) in state.items()}
    return Refresh(run_ts, newest, made, sum(fresh), time.monotonic() - began)


def newest_trade() -> datetime:
    """The present of recorded data: how far the trades go.

    Raises:
        UserError: there is none.
    """
    hot, cold = db.names([settings().database("hot")]), db.names([settings().database("cold")])
    with db.connect() as c:
        [(n, at)] = c.execute(
            f"select count(), max(timestamp) from (select timestamp from {hot}.trades union all "
            f"select timestamp from {cold}.trades)"
        )
    if not n:
        raise UserError("there are no trades: load some with `marketprism ingest`")
    return at  # type: ignore[no-any-return]


def _state(c: Client) -> dict[str, tuple[datetime, int, int]]:
    """Per instrument: the newest run, its clusters, and how many runs there are."""
    [(exists,)] = c.execute("exists table footprint_clusters")
    if not exists:
        return {}
    rows = c.execute(
        f"select {_KEY}, max(run_ts), argMax(cluster_count, run_ts), count() from footprint_clusters group by {_KEY}"
    )
    return {":".join(row[:3]): tuple(row[3:]) for row in rows}


def refresh_candidates_command(
    *,
    now: Annotated[
        str, typer.Option(help="Refresh as of this time (ISO 8601, UTC), or `latest`: the newest trade.")
    ] = "",
) -> None:
    """Bring the footprint's candidates and levels up to date. For cron, each five minutes.

    Exit codes: 0 done, also if there was nothing to do; 1 failed; 75 another refresh or build is under way.
    """
    err = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        done = refresh(newest_trade() if now == "latest" else _time(now) if now else None)
    except BusyError as e:
        err.print(str(e), markup=False)
        raise typer.Exit(BUSY) from e
    out = Console(highlight=False, soft_wrap=True)
    up_to_date = len(done.newest) - len(done.stale)
    out.print(
        f"{done.run_ts:%Y-%m-%d %H:%M} UTC: {done.new_runs} new runs, {up_to_date} of {len(done.newest)} instruments "
        f"up to date, {done.levels} levels, {done.seconds:.1f} s"
    )
    for name, at in sorted(done.stale.items(), key=lambda item: item[::-1]):
        out.print(f"stale: {name}, last run {at:%Y-%m-%d %H:%M}", markup=False)


def _time(text: str) -> datetime:
    try:
        time_ = datetime.fromisoformat(text)
    except ValueError as e:
        raise UserError(f"--now {text!r}: write a time such as 2024-08-08T12:00:00, or `latest`") from e
    return time_ if time_.tzinfo else time_.replace(tzinfo=UTC)


# ---- make bench ----------------------------------------------------------------------------------------

_SYNTHETIC: Final = ("bench", "spot", "200 LEVELS")
_LEVELS: Final = 200


def measure_candidates(calls: int) -> dict[str, float]:
    """Cost of a refresh and of the online features, on the databases of the current prefix. For `make bench`.

    A refresh is measured by undoing the newest run and making it again, `calls` times but at most 10; the online
    features by reading `footprint_online` for an instrument with 200 levels, `calls` times. Both leave all as it was.

    Returns:
        refresh_p50_ms, refresh_p99_ms: the whole command; refresh_server_p50_ms, refresh_server_p99_ms: its queries in
        ClickHouse. online_p50_ms, online_p99_ms: a call as its caller sees it; online_server_p50_ms,
        online_server_p99_ms: in ClickHouse; select_1_p50_ms: the least that any query costs.
    """
    refreshes: list[float] = []
    server: list[float] = []
    with db.connect(settings().database("features")) as c:
        [(newest,)] = c.execute("select max(run_ts) from footprint_clusters")
        for _ in range(min(calls, 10)):
            c.execute("delete from footprint_bin_minutes where known_at > %(at)s", {"at": newest - RUN_EVERY})
            for table in ("footprint_windows", "footprint_clusters"):
                c.execute(f"delete from {table} where run_ts = %(at)s", {"at": newest})
            began = _server_now(c)
            refreshes.append(refresh().seconds * 1000)
            server.append(_server_ms(c, began, '%"model.marketprism.footprint\\_%', None)[0])
        online, plain, inside = _online(c, calls, newest)
    return {
        **_percentiles("refresh", refreshes),
        **_percentiles("refresh_server", server),
        **_percentiles("online", online),
        **_percentiles("online_server", inside),
        "select_1_p50_ms": float(np.percentile(plain, 50)),
    }


def _online(c: Client, calls: int, at: datetime) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds of reading the online features, of SELECT 1, and of the former inside ClickHouse."""
    where = "(exchange, market_type, symbol) = %(key)s"
    c.execute(
        "insert into footprint_clusters (exchange, market_type, symbol, run_ts, known_at, candidate_count, "
        "cluster_count, cluster_windows_h, cluster_prices, cluster_volumes, cluster_shares, cluster_signs, "
        "cluster_last_seen, cluster_bins) "
        "with range(%(n)s) as i select %(x)s, %(m)s, %(s)s, %(at)s, %(at)s, %(n)s, %(n)s, arrayMap(j -> 24, i), "
        "arrayMap(j -> 99 + j / 100, i), arrayMap(j -> 1, i), arrayMap(j -> 0.005, i), arrayMap(j -> 1, i), "
        "arrayMap(j -> %(at)s, i), arrayMap(j -> 1, i)",
        dict(zip("xms", _SYNTHETIC, strict=True)) | {"n": _LEVELS, "at": at},
    )
    try:
        x, m, s = map(db.quote, _SYNTHETIC)
        now = f"toDateTime64('{at:%Y-%m-%d %H:%M:%S}', 6, 'UTC')"
        read = f"select * from footprint_online(exchange = {x}, market_type = {m}, symbol = {s}, mid = 100., at = {now})"
        [row] = c.execute(read)
        if row[6] != _LEVELS:
            raise UserError(
                f"footprint_online saw {row[6]} levels, not {_LEVELS}: was another run made meanwhile?"
            )
        began = _server_now(c)
        online = _times(lambda: c.execute(read), calls)
        inside = _server_ms(c, began, "select * from footprint\\_online%", calls)
        return online, _times(lambda: c.execute("select 1"), calls), inside
    finally:
        c.execute(f"delete from footprint_clusters where {where}", {"key": _SYNTHETIC})


def _times(action: Callable[[], object], calls: int) -> list[float]:
    for _ in range(10):
        action()
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        action()
        times.append((time.perf_counter() - began) * 1000)
    return times


def _server_now(c: Client) -> int:
    return int(c.execute("select toUnixTimestamp64Micro(now64(6))")[0][0])


def _server_ms(c: Client, began: int, like: str, last: int | None) -> list[float]:
    """What ClickHouse spent on queries that look like this since then: each of the `last`, or all together."""
    c.execute("system flush logs")
    ended, started = (f"toUnixTimestamp64Micro({t}_microseconds)" for t in ("event_time", "query_start_time"))
    found = c.execute(
        f"select ({ended} - {started}) / 1000 from system.query_log where type = 'QueryFinish' and query like %(like)s "
        f"and {started} >= %(began)s order by event_time_microseconds desc",
        {"like": like, "began": began},
    )
    each = [float(ms) for (ms,) in found]
    return [sum(each)] if last is None else each[:last]


def _percentiles(name: str, values: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(values, [50, 99])
    return {f"{name}_p50_ms": float(p50), f"{name}_p99_ms": float(p99)}
