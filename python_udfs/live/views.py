"""The live views of the features database: made by dbt from the models, begun, watched and dropped here."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from clickhouse_driver import Client

from python_udfs import db
from python_udfs.dbt import Dbt
from python_udfs.errors import UserError
from python_udfs.settings import settings

Chain = Literal["v1", "v2"]
_SERVING: Final = "+path:dbt_project/models/serving/feature_vector_{}.sql"
# what a chain makes, beside what that reads
CHAINS: Final[dict[Chain, tuple[str, ...]]] = {
    "v1": (_SERVING.format("v1"),),
    "v2": (_SERVING.format("v1"), _SERVING.format("v2"), "+bucket_labels"),
}
_HEAD: Final = "live_passes_live"
_STALLED_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Status:
    """How the live views are.

    Attributes:
        views: how many there are, the one that begins passes included.
        running: how many are being refreshed.
        failing: name and message of those whose last try failed.
        last_pass: when the newest pass began. None: none did since the start.
        pass_s: seconds from one pass to the next, the median of the last 20. None: fewer than two.
        idle_s: seconds since any view was last refreshed, or since the server's start.
    """

    views: int
    running: int
    failing: dict[str, str]
    last_pass: datetime | None
    pass_s: float | None
    idle_s: float

    @property
    def stalled(self) -> bool:
        """Nothing is under way: the pass was lost, as by a restart of the server."""
        return self.views > 0 and not self.running and not self.failing and self.idle_s > _STALLED_S


def start(chain: Chain, variables: dict[str, object] | None = None) -> int:
    """Makes the views of a chain, begins the first pass and returns how many views there are. Again: makes them anew.

    Args:
        chain: which feature vector they end in.
        variables: the vars that the tables were built with.

    Raises:
        UserError: dbt failed, as where the tables were not built; or a table that views feed on insert has lost its view.
    """
    stop()
    with db.connect(settings().database("features")) as c:
        _check_written_on_insert(c)
    # the views of the project are there; what stands in between tells which live view waits for which
    kinds = ("incremental", "table")
    chosen = (f"{what},config.materialized:{kind}" for what in CHAINS[chain] for kind in kinds)
    try:
        Dbt("live", {**(variables or {}), "live": True}).run("run", "--select", *chosen)
    except BaseException:
        stop()
        raise
    with db.connect(settings().database("features")) as c:
        begin_pass(c)
        return len(views(c))


def _check_written_on_insert(c: Client) -> None:
    """A live view reads `x_stored` as complete: `x_mv` has to write it. That of arrivals is made with the live views."""
    tables = (
        "select name from system.tables where database = %(d)s and name like %(like)s"
        " and name != 'feature_arrivals_stored'"
    )
    stored, written = (
        {
            name.removesuffix(end)
            for (name,) in c.execute(tables, {"d": c.connection.database, "like": f"%\\{end}"})
        }
        for end in ("_stored", "_mv")
    )
    if missing := sorted(stored - written):
        raise UserError(
            f"{', '.join(f'{name}_stored' for name in missing)} would not get what arrives: the materialized view is "
            "missing. Run `make build`"
        )


def stop() -> int:
    """Drops the live views, so that `dbt build` fills the tables again. How many there were; again: 0.

    What was appended stays; a refresh that is cut short leaves what is complete up to some moment.
    """
    with db.connect() as c:
        database = settings().database("features")
        if not c.execute("select count() from system.databases where name = %(d)s", {"d": database})[0][0]:
            return 0
        found = views(c)
        # the head first: no new pass
        for name in sorted(found, key=lambda view: view != _HEAD):
            c.execute(f"drop view if exists {database}.{name} sync")
        c.execute(f"truncate table if exists {settings().database('hot')}.live_passes")
        return len(found)


def views(c: Client) -> list[str]:
    """The live views' names, sorted."""
    found = c.execute(
        "select name from system.tables where database = %(d)s and engine = 'MaterializedView' and name like '%%\\_live' "
        "order by name",
        {"d": settings().database("features")},
    )
    return [name for (name,) in found]


def begin_pass(c: Client) -> None:
    """Begins a pass. Harmless where one is under way: the head is then refreshed once more, when that is done."""
    c.execute(f"system refresh view {settings().database('features')}.{_HEAD}")


def status(c: Client) -> Status:
    """How the live views are now."""
    names = {"d": settings().database("features")}
    rows = c.execute(
        "select view, status, exception, "
        "least(ifNull(dateDiff('millisecond', last_refresh_time, now64(3)) / 1000, 1e9), uptime()) "
        "from system.view_refreshes where database = %(d)s and view like '%%\\_live'",
        names,
    )
    [(last, median)] = c.execute(
        "select maxOrNull(started_at), quantileExactOrNull(0.5)(gap) from (select started_at, "
        "toFloat64(started_at) - lagInFrame(toNullable(toFloat64(started_at)), 1, null) over (order by started_at) "
        "as gap "
        f"from {settings().database('hot')}.live_passes order by started_at desc limit 20)"
    )
    return Status(
        views=len(rows),
        running=sum(state == "Running" for _, state, *_ in rows),
        failing={view: exception for view, _, exception, _ in rows if exception},
        last_pass=last,
        pass_s=median,
        idle_s=min((age for *_, age in rows), default=0.0),
    )


def wait_for_pass(c: Client, timeout_s: float) -> None:
    """Returns once a pass that began after this call is complete.

    Raises:
        UserError: it is not, after that long; with the views that fail.
    """
    passes = f"{settings().database('hot')}.live_passes"
    [(now,)] = c.execute("select toString(now64(3, 'UTC'))")
    deadline = time.monotonic() + timeout_s
    # the next one begins when the first is done
    while c.execute(f"select count() from {passes} where started_at > %(now)s", {"now": now})[0][0] < 2:
        if time.monotonic() > deadline:
            found = status(c)
            raise UserError(
                f"no pass of the live views was completed in {timeout_s:g} s: {found.failing or found}"
            )
        time.sleep(0.05)
