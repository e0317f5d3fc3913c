"""Old raw rows from hot to cold: copied, compared, and only then removed from hot.

A row of `archive_moves` says how far a move is. The macro `raw_rows`, through which everything reads raw rows, looks
at it, so that each row is seen once whatever dies between two steps; the next run goes on from there. Rows that come
late for an archived day stay in hot until the next run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from clickhouse_driver import Client

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.ingest.records import COLUMNS
from python_udfs.operations.checksums import checksums, full
from python_udfs.operations.locks import BUILD, held
from python_udfs.settings import settings

SETTLE_S: Final = 60  # a younger row may have brothers that are still being written
_NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Move:
    """Rows of one partition of a raw table that were loaded after `since` and by `until`.

    state: as in the migration, or `new`: not begun.
    """

    data_type: str
    range_start: datetime
    range_end: datetime
    since: datetime
    until: datetime
    state: str = "new"
    rows_moved: int = 0
    checksum: int = 0

    @property
    def where(self) -> str:
        """SQL: its rows, in hot and in cold."""
        return (
            f"timestamp >= {_time(self.range_start)} and timestamp < {_time(self.range_end)} "
            f"and created_at > {_time(self.since)} and created_at <= {_time(self.until)}"
        )


@dataclass(frozen=True, slots=True)
class Archived:
    """What a run did: moves in order, and why nothing was moved if it was off."""

    moves: tuple[Move, ...]
    note: str = ""

    def __str__(self) -> str:
        if self.note:
            return self.note
        return f"{len(self.moves)} partitions, {sum(m.rows_moved for m in self.moves):,} rows archived and verified"


def run(now: datetime | None = None, *, settle_s: float = SETTLE_S) -> Archived:
    """Finishes the move that was killed, if one was, then moves each partition whose newest event is old enough.

    Args:
        now: the present, with a zone. None: the clock's.
        settle_s: rows loaded less than so many seconds ago stay.

    Raises:
        BusyError: a build is under way.
        UserError: cold does not hold what hot holds (nothing was removed), or hot has a TTL.
    """
    s = settings()
    if not s.archive_after_days:
        return Archived((), "off: MARKETPRISM_ARCHIVE_AFTER_DAYS is 0")
    if s.hot_ttl_days:
        raise UserError(
            "MARKETPRISM_HOT_TTL_DAYS would remove rows that were never verified in cold: set it to 0 and run "
            "`make migrate`; the archive removes what it has verified"
        )
    before = (now or datetime.now(UTC)) - timedelta(days=s.archive_after_days)
    done: list[Move] = []
    with held(BUILD, "archive"), db.connect() as c:
        for table in COLUMNS:
            done += [_finish(c, move) for move in _unfinished(c, table)]
            done += [_finish(c, move) for move in _due(c, table, before, settle_s)]
    return Archived(tuple(done))


def _finish(c: Client, move: Move) -> Move:
    """A move from whatever state to its end."""
    began = time.monotonic()
    if move.state != "copied":
        move = _copy(c, move)
    _note_status(c, move, time.monotonic() - began)
    hot = _table("hot", move.data_type)
    # Only rows that were verified: what came since has a later created_at.
    c.execute(f"alter table {hot} delete where {move.where}", settings={"mutations_sync": 2})
    [(left,)] = c.execute(f"select count() from {hot} where {move.where}")
    if left:
        raise UserError(
            f"{hot}: {left} archived rows are still there: look at system.mutations, then run the archive again"
        )
    return _note(c, move, "done")


def _copy(c: Client, move: Move) -> Move:
    """Copies and verifies. At its end readers find the rows in cold, and no longer in hot."""
    hot, cold = _table("hot", move.data_type), _table("cold", move.data_type)
    columns = _columns(c, move.data_type)
    if move.state == "copying":  # what the killed run left of it
        c.execute(f"alter table {cold} delete where {move.where}", settings={"mutations_sync": 2})
    _note(c, move, "copying")
    c.execute(f"insert into {cold} ({columns}) select {columns} from {hot} final where {move.where}")
    sums = [
        checksums(c, table, "1", columns=columns, where=move.where, engine="Replacing").get("1", (0, 0))
        for table in (hot, cold)
    ]
    if sums[0] != sums[1]:
        raise UserError(
            f"{cold} does not hold what {hot} holds of {move.range_start:%Y-%m-%d}: {sums[1][0]} rows of {sums[0][0]}, "
            f"checksums {sums[1][1]} and {sums[0][1]}. Nothing was removed; readers still see the rows of hot. "
            "Run the archive again; if it says so again, look at the disk of cold"
        )
    rows, checksum = sums[0]
    return _note(c, move, "copied", rows, checksum)


def _unfinished(c: Client, table: str) -> list[Move]:
    """The move that a run before this one did not finish."""
    names = "data_type, range_start, range_end, since, until, state, rows_moved, checksum"
    found = c.execute(
        f"select {names} from {_moves()} final where data_type = %(table)s and state != 'done' order by range_start",
        {"table": table},
    )
    return [Move(*row) for row in found]


def _due(c: Client, table: str, before: datetime, settle_s: float) -> list[Move]:
    """A move for each partition that ended before `before`."""
    hot = _table("hot", table)
    partition = _partition(c, table)
    start = f"toStartOf{partition}(timestamp)"
    found = c.execute(
        f"select toDateTime64({start}, 6, 'UTC') as s, toDateTime64({start} + interval 1 {partition}, 6, 'UTC') as e, "
        f"max(created_at) from {hot} where created_at <= now64(3, 'UTC') - toIntervalMillisecond({int(settle_s * 1000)}) "
        "group by s, e having e <= %(before)s order by s",
        {"before": before},
    )
    known = dict(
        c.execute(
            f"select range_start, until from {_moves()} final where data_type = %(table)s and state = 'done'",
            {"table": table},
        )
    )
    return [Move(table, s, e, known.get(s, _NEVER), until) for s, e, until in found]


def _note(c: Client, move: Move, state: str, rows: int | None = None, checksum: int | None = None) -> Move:
    """Writes the move's state: one row, so that readers change over at once."""
    rows = move.rows_moved if rows is None else rows
    checksum = move.checksum if checksum is None else checksum
    noted = Move(
        move.data_type, move.range_start, move.range_end, move.since, move.until, state, rows, checksum
    )
    names = "data_type, range_start, range_end, since, until, state, rows_moved, checksum"
    c.execute(
        f"insert into {_moves()} ({names}, version) select %(t)s, {_time(move.range_start)}, {_time(move.range_end)}, "
        f"{_time(move.since)}, {_time(move.until)}, %(state)s, %(rows)s, %(checksum)s, toUnixTimestamp64Nano(now64(9))",
        {"t": move.data_type, "state": state, "rows": rows, "checksum": checksum},
    )
    return noted


def _note_status(c: Client, move: Move, seconds: float) -> None:
    """The table that people read: per day and exchange what cold holds in all; bytes by share of the rows."""
    cold = _table("cold", move.data_type)
    within = f"timestamp >= {_time(move.range_start)} and timestamp < {_time(move.range_end)}"
    c.execute(
        f"insert into {_table('cold', 'archive_status')} (archive_date, data_type, exchange, records_archived, "
        "archive_size_bytes, archive_duration_seconds) "
        "with (select sum(data_compressed_bytes) / sum(rows) from system.parts where active and database = %(d)s "
        "and table = %(t)s) as bytes_a_row "
        f"select toDate(timestamp) as day, %(t)s, exchange, count(), toUInt64(count() * bytes_a_row), %(seconds)s "
        f"from {cold} final where {within} group by day, exchange",
        {"d": settings().database("cold"), "t": move.data_type, "seconds": seconds},
    )


def _partition(c: Client, table: str) -> str:
    """`Day` or `Month`: what a partition of the raw table is."""
    [(key,)] = c.execute(
        "select partition_key from system.tables where database = %(d)s and name = %(t)s",
        {"d": settings().database("hot"), "t": table},
    )
    found = {"toYYYYMMDD(timestamp)": "Day", "toYYYYMM(timestamp)": "Month"}.get(key)
    if not found:
        raise UserError(f"{table} is partitioned by {key!r}: the archive knows days and months only")
    return found


def _columns(c: Client, table: str) -> str:
    """The columns that are stored as given; the others follow from them."""
    found = c.execute(
        "select name from system.columns where database = %(d)s and table = %(t)s and default_kind in ('', 'DEFAULT') "
        "order by position",
        {"d": settings().database("hot"), "t": table},
    )
    return db.names([name for (name,) in found])


def _table(layer: Any, table: str) -> str:
    return full(settings().database(layer), table)


def _moves() -> str:
    return _table("cold", "archive_moves")


def _time(at: datetime) -> str:
    """SQL: exact to the microsecond."""
    us = (at - _NEVER) // timedelta(microseconds=1)
    return f"fromUnixTimestamp64Micro(toInt64({us}), 'UTC')"
