"""The checks. Each returns violations; no violation, no leak. The mutation tests see each of them fail."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from python_udfs import db
from tests.leakage.build import Build
from tests.leakage.market import FULL
from tests.leakage.variants import Variant
from tests.support import query


class Violation(NamedTuple):
    """`check` found `rows` rows (or places in the source) of `table` that it forbids; `note`: which."""

    check: str
    table: str
    rows: int
    note: str = ""


def assert_none(violations: Sequence[Violation]) -> None:
    """A pytest failure with one line a violation."""
    assert not violations, "\n" + "\n".join(f"{v.check}: {v.table}: {v.rows} rows: {v.note}" for v in violations)


# ---- 1: inputs -------------------------------------------------------------------------------------------------------------


def inputs(build: Build, select: str = "leakage_*") -> list[Violation]:
    """Every input of a row was known at its as_of: the singular dbt tests `tests/dbt/leakage_*.sql`."""
    results = build.dbt("test", "--select", select, fails=True)
    assert results, f"no dbt test is called {select}"
    return [Violation("inputs", r.node.name, r.failures) for r in results if r.status != "pass"]


# ---- 2-4: a model built on less, on other, or on later data ---------------------------------------------------------------------

# Monitoring describes what happened, for people, with hindsight. That no feature reads it is a check of its own (`dependencies`).
HINDSIGHT: Final = ("monitoring",)
FORWARD: Final = ("labels", "training")

# Models without a column that says when a row was known, and where that time is. {0}: the model's table, {1}: the database.
WITH_AS_OF: Final = {
    # known from the first trade of its anchor: an anchor without trades has no row
    "bucket_config": "select c.*, t.first_trade as as_of from {0} as c inner join (select exchange, market_type, symbol, valid_from, "
    "min(timestamp) as first_trade from {1}.stg_trades as t inner join {0} as c using (exchange, market_type, symbol) where "
    "timestamp >= valid_from and timestamp < valid_to and known_at <= timestamp group by all) as t "
    "using (exchange, market_type, symbol, valid_from)",
    # a trade of a bucket is published with it
    "bucket_trades": "select t.*, b.bucket_ts_end as as_of from {0} as t inner join {1}.unified_buckets as b "
    "using (exchange, market_type, symbol, bucket_id)",
}
NOT_COMPARED: Final = {
    "stg_watermarks": "how far the feeds have come: it is cut with the data and states nothing about the market",
}


@dataclass(frozen=True, slots=True)
class Compared:
    """Columns of a table that are known together: at `as_of`, in rows of `source` (SQL)."""

    name: str
    source: str
    as_of: str
    columns: tuple[str, ...]
    # a label's value: not NULL only once known
    value: str | None = None


def compared(build: Build) -> list[Compared]:
    """What has to be compared: every model of the project that dbt materialises, found in its manifest.

    Raises:
        AssertionError: a model of which this does not know when its rows are known.
    """
    columns: dict[str, list[str]] = {}
    for row in query("select table, name from system.columns where database = %(d)s order by table, position", d=build.features):
        columns.setdefault(row["table"], []).append(row["name"])
    found: list[Compared] = []
    unknown: list[str] = []
    for node in models(build):
        name, folder = node["alias"], node["path"].split("/")[0]
        if folder in HINDSIGHT or name in NOT_COMPARED or node["config"]["materialized"] == "ephemeral":
            continue
        table, names = f"{build.features}.{name}", columns[name]
        source, as_of = table, next((c for c in ("bucket_ts_end", "known_at") if c in names), None)
        if name in WITH_AS_OF:
            source, as_of = f"({WITH_AS_OF[name].format(table, build.features)})", "as_of"
        if as_of is None or not {"exchange", "market_type", "symbol"} <= set(names):
            unknown.append(name)
            continue
        ahead = [c for c in names if c.startswith("label_")] if folder in FORWARD else []
        found.append(Compared(name, source, as_of, tuple(c for c in names if c not in ("symbol", "underlying_asset", *ahead))))
        for known_at in [c for c in ahead if c.startswith("label_known_at_")]:
            horizon = known_at.removeprefix("label_known_at_")
            together = [c for c in ahead if c.endswith(f"_{horizon}")]
            ahead = [c for c in ahead if c not in together]
            value = next(c for c in together if c.startswith("label_ret_"))
            key = ("exchange", "market_type", "bucket_id")
            found.append(Compared(f"{name}:{horizon}", source, known_at, (*key, *together), value))
        assert not ahead, f"{name}: no label_known_at_* for {ahead}"
    assert not unknown, (
        f"when is a row of {unknown} known? Give it bucket_ts_end or known_at, or name it in tests/leakage/checks.py: "
        "WITH_AS_OF or, with a reason, NOT_COMPARED"
    )
    stale = {*WITH_AS_OF, *NOT_COMPARED} - {node["alias"] for node in models(build)}
    assert not stale, f"tests/leakage/checks.py names models that are gone: {stale}"
    return found


@dataclass(frozen=True, slots=True)
class Comparison:
    """`violations`, and how many rows of FULL stood for comparison: per table and variant."""

    violations: list[Violation]
    rows: dict[tuple[str, str], int]


def compare(build: Build, variants: Sequence[Variant], check: str, only: str | None = None) -> Comparison:
    """Rows with as_of <= T of every variant equal FULL's, bit for bit, both ways; of a `cut` one there are no others.

    only: compares this one model.
    """
    violations, counted = [], {}
    for part in compared(build):
        if only and part.name.split(":")[0] != only:
            continue
        for row in query(_comparison(part, variants)):
            counted[part.name, row["variant"]] = row["compared"]
            if row["differing"]:
                note = f"{row['variant']}: the first at {row['first']}"
                violations.append(Violation(check, part.name, row["differing"], note))
    return Comparison(violations, counted)


def _comparison(part: Compared, variants: Sequence[Variant]) -> str:
    """SQL: per variant, the rows of FULL that are compared, and the rows that only one side has."""
    listed = ", ".join(f"({db.quote(v.symbol)}, fromUnixTimestamp64Micro({v.until}, 'UTC'), {int(v.treatment == 'cut')})" for v in variants)
    # RowBinary: every byte of every value, NULL and the sign of zero included
    row = f"sipHash128(formatRow('RowBinary', {', '.join(part.columns)}))"
    published = f"{part.value} is not null" if part.value else "1"
    return f"""
        with
            variants as (select c1 as variant, c2 as until, c3 as is_cut from values({listed})),
            source as (select symbol, {part.as_of} as known, {row} as row, {published} as published from {part.source}),
            sides as (
                select v.variant as variant, s.row as row, s.known as known, 1 as side
                from source as s cross join variants as v
                where s.symbol = '{FULL}' and s.known <= v.until
                union all
                select v.variant as variant, s.row as row, s.known as known, -1 as side
                from source as s inner join variants as v on s.symbol = v.variant
                where s.known <= v.until or (v.is_cut and s.published)
            ),
            rows as (
                select variant, row, min(known) as first, sum(side) as surplus, countIf(side = 1) as expected
                from sides group by variant, row
            )
        select variant, sum(expected) as compared, countIf(surplus != 0) as differing, toString(minIf(first, surplus != 0)) as first
        from rows group by variant order by variant
    """


# ---- the source ------------------------------------------------------------------------------------------------------------

SEES_AHEAD: Final = {
    r"\blead\w*\s*\(": "lead",
    r"\bfollowing\b": "following",
    r"\bneighbor\s*\(": "neighbor",
}
ASOF_ALLOWED: Final = {
    "macros/time/as_of.sql": "the one place",
    "dbt_project/models/features/order_book/top_of_book.sql": "which bucket an update falls into: each update looks for the first "
    "bucket that had not ended before it, the other way round; leakage_book_updates counts after it",
}
_COMMENT = re.compile(r"\{#.*?#\}|/\*.*?\*/|--[^\n]*", re.DOTALL)


def forbidden(project: Path) -> list[Violation]:
    """SQL outside the labels that could look ahead: window functions and frames, windows without an order or against it, and
    ASOF joins beside the macro. Comments do not count."""
    violations = []
    files = sorted([*(project / "dbt_project/models").rglob("*.sql"), *(project / "macros").rglob("*.sql")])
    for path in files:
        name = str(path.relative_to(project))
        sql = _COMMENT.sub(" ", path.read_text())
        if not name.startswith(("dbt_project/models/labels/", "macros/tests/")):
            found = [word for pattern, word in SEES_AHEAD.items() for _ in re.findall(pattern, sql, re.IGNORECASE)]
            for window in _windows(sql):
                if not re.search(r"\border\s+by\b", window, re.IGNORECASE):
                    found.append("a window without an order holds every row")
                elif re.search(r"\bdesc\b", window, re.IGNORECASE):
                    found.append("what precedes in a descending window comes after")
            violations += [Violation("forbidden", name, 1, word) for word in found]
        if re.search(r"\basof\b", sql, re.IGNORECASE) and name not in ASOF_ALLOWED:
            violations.append(Violation("forbidden", name, 1, "asof"))
    return violations


def _windows(sql: str) -> Iterator[str]:
    """The text between the brackets of each window: `over (…)`, `window name as (…)`."""
    for match in re.finditer(r"\bover\s*\(|\bwindow\s+\w+\s+as\s*\(", sql, re.IGNORECASE):
        depth, start = 1, match.end()
        for position in range(start, len(sql)):
            depth += {"(": 1, ")": -1}.get(sql[position], 0)
            if depth == 0:
                yield sql[start:position]
                break


def dependencies(build: Build) -> list[Violation]:
    """Models that read what they must not: raw tables past staging, labels and what is built on them, hindsight."""
    violations = []
    folder_of = {node["unique_id"]: node["path"].split("/")[0] for node in models(build)}
    for node in models(build):
        folder = folder_of[node["unique_id"]]
        for parent in node["depends_on"]["nodes"]:
            if parent.startswith("source.") and folder not in ("staging", *HINDSIGHT):
                violations.append(Violation("dependencies", node["name"], 1, f"reads {parent} past staging"))
            if folder_of.get(parent) in (*FORWARD, *HINDSIGHT) and folder not in (*FORWARD, *HINDSIGHT):
                violations.append(Violation("dependencies", node["name"], 1, f"reads {parent}"))
    return violations


def models(build: Build) -> list[dict[str, Any]]:
    """The manifest's models."""
    return [n for n in build.manifest()["nodes"].values() if n["resource_type"] == "model"]
