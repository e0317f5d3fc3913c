"""`marketprism repair`: whole days anew from the raw rows, next door first, then exchanged for the published ones.

The published tables are cloned into a database of their own (parts are hard links), the days are dropped there and
rebuilt by the ranged rebuild that dbt has, and the result is verified. Only then do partitions change places. A kill
before that leaves the store as it was; one in the middle leaves whole tables old or new, and a second repair ends it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any, Final

import yaml
from clickhouse_driver import Client

from python_udfs import db
from python_udfs.dbt import Dbt, Model
from python_udfs.errors import UserError
from python_udfs.operations.checksums import full, row_hash
from python_udfs.operations.locks import BUILD, held
from python_udfs.settings import REPOSITORY, settings

_WHOLE: Final = "all"
_PRESENT: Final = {"health", "drift"}  # tags of what judges the present, not the days


@dataclass(frozen=True, slots=True)
class Table:
    """A table that dbt owns. parted: its days or months are rebuilt one by one; else it is rebuilt whole.

    part: SQL, the day or month of a row as text; 'all' where it has no time.
    """

    name: str
    parted: bool
    part: str


@dataclass(frozen=True, slots=True)
class Days:
    """Whole UTC days, both ends included."""

    first: date
    last: date

    def hold(self, part: str) -> bool:
        """Does a day 20240808, or a day of a month 202408, lie in the range?"""
        return self.first.strftime("%Y%m%d")[: len(part)] <= part <= self.last.strftime("%Y%m%d")[: len(part)]


@dataclass(frozen=True, slots=True)
class Change:
    """A day (or month) of a table that the rebuild makes otherwise. gone: rows that it has not; new: that it adds."""

    table: str
    part: str
    before: int
    after: int
    gone: int
    new: int


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair did, or would do. left: selected tables that it does not rebuild."""

    days: Days
    dry_run: bool
    tables: int
    changes: tuple[Change, ...]
    views: tuple[str, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        did = "dry run: nothing was changed" if self.dry_run else "verified and exchanged"
        changed = len({c.table for c in self.changes})
        views = f", {len(self.views)} live views stopped and started" if self.views else ""
        return f"{self.days.first} to {self.days.last}: {self.tables} tables rebuilt, {changed} differ{views}; {did}"


def repair(
    start: date,
    end: date,
    *,
    dry_run: bool = False,
    select: Sequence[str] = (),
    variables: Mapping[str, Any] | None = None,
) -> Repaired:
    """Rebuilds the days from `start` to `end` and the day after, whose first windows look back into them.

    Args:
        dry_run: compare, and leave everything as it is.
        select: dbt selection; none: every model.
        variables: dbt's vars that the store was built with.

    Raises:
        BusyError: a build is under way.
        UserError: the range is empty, dbt failed, or the rebuilt rows fail a check; the published ones are as before.
    """
    if end < start:
        raise UserError(f"the range ends before it starts: {start} to {end}")
    days = Days(start, end + timedelta(days=1))
    scratch = f"{settings().db_prefix}marketprism_repair"
    with held(BUILD, "repair"), db.connect() as c, _stopped_views(c, dry=dry_run) as views:
        try:
            c.execute(f"drop database if exists {db.names([scratch])} sync")
            dbt = _dbt(days, variables or {})
            models = dbt.relations(*_selection(select))
            left = tuple(sorted(name for name, model in models.items() if is_left(model)))
            tables = _clone(c, scratch, {n: m.materialized for n, m in models.items() if n not in left})
            if not tables:
                raise UserError(f"dbt finds no table to rebuild for {' '.join(select) or 'the project'}")
            _drop_days(c, scratch, tables, days)
            dbt.run("run", *_selection(select, [s for s in select if s not in left]), *left)
            _check_ids(c, scratch)
            changes = [change for t in tables for change in _compare(c, scratch, t)]
            _check_untouched(tables, changes, days)
            if not dry_run:
                for table in tables:
                    _exchange(c, scratch, table, days)
                _check_exchanged(c, scratch, tables)
        finally:
            c.execute(f"drop database if exists {db.names([scratch])} sync")
    return Repaired(days, dry_run, len(tables), tuple(changes), tuple(views), left)


def is_left(model: Model) -> bool:
    """Is it a table that a repair leaves as it is? History that only grows (nothing makes it anew), and what judges the
    present: the next build or health pass does that.
    """
    is_present = model.materialized == "table" and not _PRESENT.isdisjoint(model.tags)
    return is_present or (model.materialized == "incremental" and model.strategy == "append")


def parsed(text: str) -> dict[str, Any]:
    """dbt's vars from the command line.

    Raises:
        UserError: not a mapping.
    """
    try:
        found = yaml.safe_load(text) if text else {}
    except yaml.YAMLError as e:
        raise UserError(f"--vars {text!r}: {e}") from e
    if not isinstance(found, dict):
        raise UserError(f"--vars {text!r}: write a mapping, e.g. '{{t_target_s: 10}}'")
    return found


# ---- the copy next door -----------------------------------------------------------------------------------


def _clone(c: Client, scratch: str, models: Mapping[str, str]) -> list[Table]:
    """Clones each table of the features database (parts are shared until they change); returns those of the models."""
    features = settings().database("features")
    c.execute(f"create database {db.names([scratch])}")
    found = c.execute(
        "select name, partition_key from system.tables where database = %(d)s and engine like '%%MergeTree' "
        "and name not like '%%\\_\\_%%' and name not like '.inner%%' order by name",
        {"d": features},
    )
    tables = []
    for name, partition in found:
        c.execute(f"create table {full(scratch, name)} clone as {full(features, name)}")
        if name in models:
            parted = bool(partition) and models[name] == "incremental"
            tables.append(Table(name, parted, f"toString({partition})" if partition else _day_of(c, name)))
    return tables


def _day_of(c: Client, table: str) -> str:
    """SQL: the day of a row of a table without partitions."""
    times = c.execute(
        "select name from system.columns where database = %(d)s and table = %(t)s and type like 'DateTime%%' "
        "order by position",
        {"d": settings().database("features"), "t": table},
    )
    names = [name for (name,) in times]
    named = next((n for n in ("bucket_ts_start", "known_at") if n in names), names[0] if names else None)
    return f"toString(toYYYYMMDD({named}))" if named else f"'{_WHOLE}'"


def _drop_days(c: Client, scratch: str, tables: Sequence[Table], days: Days) -> None:
    """The ranged rebuild replaces the days that it has rows of: one without must not keep its old rows."""
    for table in tables:
        for part in _parts(c, scratch, table.name):
            if table.parted and days.hold(part):
                c.execute(f"alter table {full(scratch, table.name)} drop partition id {db.quote(part)}")


def _dbt(days: Days, variables: Mapping[str, Any]) -> Dbt:
    """dbt as for a ranged rebuild, but in the scratch database."""
    dbt = Dbt("repair", {**variables, "start": days.first.isoformat(), "end": days.last.isoformat()})
    profiles = dbt.folder / "profiles"
    profiles.mkdir(parents=True, exist_ok=True)
    elsewhere = (
        (REPOSITORY / "profiles.yml").read_text().replace("marketprism_features", "marketprism_repair")
    )
    (profiles / "profiles.yml").write_text(elsewhere)
    return replace(dbt, profiles=profiles)


def _selection(select: Sequence[str], views_of: Sequence[str] = ()) -> list[str]:
    """dbt's words. views_of: with the views that these models read, which a clone of tables has not.

    Materialized views stay out: they would feed on what is inserted meanwhile. The last words are those of `--exclude`.
    """
    chosen = [*select, *(f"+{s},config.materialized:view" for s in views_of)]
    return [*(["--select", *chosen] if chosen else []), "--exclude", "config.materialized:materialized_view"]


# ---- checks ------------------------------------------------------------------------------------------------


def _check_ids(c: Client, scratch: str) -> None:
    """Bucket ids start at zero in each anchor, have no gaps, occur once, and rise with time.

    Raises:
        UserError: they do not.
    """
    if not c.execute(f"exists {full(scratch, 'bucket_tapes')}")[0][0]:
        return
    found = c.execute(
        f"""
        with numbered as (
            select
                exchange, market_type, symbol, anchor_ts, sequence, bucket_id, bucket_ts_end,
                row_number() over w - 1 as place,
                lagInFrame(bucket_ts_end, 1, bucket_ts_end) over w as end_before
            from {full(scratch, "bucket_tapes")}
            window w as (
                partition by exchange, market_type, symbol, anchor_ts order by bucket_id
                rows between unbounded preceding and current row
            )
        )
        select exchange, market_type, symbol, toString(anchor_ts), count()
        from numbered
        where sequence != place or bucket_id != toUnixTimestamp(anchor_ts) * 100000 + place or bucket_ts_end < end_before
        group by all order by 5 desc limit 3
        """
    )
    if found:
        raise UserError(
            f"the rebuilt bucket ids have gaps, repeat or run backwards, first in {found[0]}: nothing was exchanged"
        )


def _compare(c: Client, scratch: str, table: Table) -> list[Change]:
    """The days of a table that are otherwise after the rebuild. Parts that both share are not read."""
    features = settings().database("features")
    differing = _differing_parts(c, features, scratch, table.name) if table.parted else None
    if differing == []:
        return []
    where = f"_partition_id in ({', '.join(map(db.quote, differing))})" if differing else "1"
    rows = " union all ".join(
        f"select {table.part} as part, {row_hash()} as h, {sign} as side from {full(database, table.name)} where {where}"
        for database, sign in ((features, -1), (scratch, 1))
    )
    found = c.execute(
        f"select part, sum(old), sum(new), sum(greatest(old - new, 0)), sum(greatest(new - old, 0)) from ("
        f"select part, h, countIf(side < 0) as old, countIf(side > 0) as new from ({rows}) group by part, h) "
        "group by part having sum(old != new) > 0 order by part"
    )
    return [Change(table.name, *row) for row in found]


def _differing_parts(c: Client, a: str, b: str, table: str) -> list[str]:
    """Partitions whose files are not the same, byte for byte."""
    found = c.execute(
        "select partition_id from ("
        "select database, partition_id, arraySort(groupArray((rows, hash_of_all_files))) as files from system.parts "
        "where active and database in (%(a)s, %(b)s) and table = %(t)s group by database, partition_id) "
        "group by partition_id having count() < 2 or uniqExact(files) > 1 order by partition_id",
        {"a": a, "b": b, "t": table},
    )
    return [part for (part,) in found]


def _check_untouched(tables: Sequence[Table], changes: Sequence[Change], days: Days) -> None:
    """Days outside the range are as they were. Of tables rebuilt whole they may rightly change: a label looks ahead.

    Raises:
        UserError: they are not.
    """
    parted = {t.name for t in tables if t.parted}
    strayed = [f"{c.table} {c.part}" for c in changes if c.table in parted and not days.hold(c.part)]
    if strayed:
        raise UserError(
            f"the rebuild changed days outside its range: {', '.join(strayed[:5])}: nothing was exchanged"
        )


def _check_exchanged(c: Client, scratch: str, tables: Sequence[Table]) -> None:
    """What is published now is what was verified. Tables rebuilt whole have changed places: nothing to see."""
    features = settings().database("features")
    wrong = [t.name for t in tables if t.parted and _compare(c, scratch, t)]
    if wrong:
        raise UserError(
            f"{', '.join(wrong)} in {features}: written to during the exchange, so not what was verified. "
            "Run the repair again"
        )


# ---- the exchange ------------------------------------------------------------------------------------------


def _exchange(c: Client, scratch: str, table: Table, days: Days) -> None:
    """Publishes a table's rebuilt days, each in one step; a table without days changes places whole."""
    features = settings().database("features")
    ours, theirs = full(features, table.name), full(scratch, table.name)
    if not table.parted:
        c.execute(f"exchange tables {ours} and {theirs}")
        return
    there = _parts(c, scratch, table.name)
    for part in sorted({*there, *_parts(c, features, table.name)}):
        if days.hold(part):
            if part in there:
                c.execute(f"alter table {ours} replace partition id {db.quote(part)} from {theirs}")
            else:
                c.execute(f"alter table {ours} drop partition id {db.quote(part)}")


@contextmanager
def _stopped_views(c: Client, *, dry: bool) -> Iterator[list[str]]:
    """The refreshable views that run stop, and start again whatever happens. A dry run leaves them running.

    A file remembers them: those that a killed repair left stopped are started at the end of the next.
    """
    if dry:
        yield []
        return
    s = settings()
    features, memory = s.database("features"), s.data_dir / f"{s.db_prefix}repair.views.json"
    left = json.loads(memory.read_text()) if memory.exists() else []
    found = c.execute(
        "select view, status from system.view_refreshes where database = %(d)s", {"d": features}
    )
    views = sorted(view for view, status in found if status != "Disabled" or view in left)
    memory.write_text(json.dumps(views))
    try:
        for view in views:
            c.execute(f"system stop view {full(features, view)}")
        yield views
    finally:
        for view in views:
            c.execute(f"system start view {full(features, view)}")
        memory.unlink()


def _parts(c: Client, database: str, table: str) -> list[str]:
    found = c.execute(
        "select distinct partition_id from system.parts where active and database = %(d)s and table = %(t)s order by 1",
        {"d": database, "t": table},
    )
    return [part for (part,) in found]
