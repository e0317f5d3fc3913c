"""The checks. Each returns violations; no violation, no leak. The mutation tests see each of them fail."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from python_udfs import db
from tests.leakage.build import SEEDS, Build
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
    lines = [f"{v.check}: {v.table}: {v.rows} rows: {v.note}" for v in violations]
    assert not violations, "\n".join(["", *lines])


# ---- inputs ------------------------------------------------------------------------------------------


def inputs(build: Build, only: Collection[str] | None = None) -> list[Violation]:
    """Every input of a row was known at its as_of: the singular dbt tests `tests/dbt/leakage_*.sql`.

    only: the models that were built, where not all were; tests that need others are left out.
    """
    nodes = build.manifest()["nodes"]
    names = [
        n["name"]
        for n in nodes.values()
        if n["resource_type"] == "test"
        and n["name"].startswith("leakage_")
        and (
            only is None
            or all(nodes[p]["alias"] in {*only, *SEEDS} for p in n["depends_on"]["nodes"] if p in nodes)
        )
    ]
    assert len(names) >= 5 or only is not None, names
    results = build.dbt("test", "--select", *names, may_fail=True) if names else []
    assert len(results) == len(names), names
    return [Violation("inputs", r.node.name, r.failures) for r in results if r.status != "pass"]


# ---- models built on less, on other or on later data ---------------------------------------------------

# Monitoring describes what happened, for people, with hindsight: no feature reads it (see `dependencies`).
HINDSIGHT: Final = ("monitoring",)
# A materialized view is triggered by its source table alone, never through a view of it.
READS_RAW: Final = ("staging", "live", *HINDSIGHT)
FORWARD: Final = ("labels", "training")

# Models without a column that says when a row is known, with SQL that adds it as `as_of`.
# {0}: the model's table, {1}: its database.
WITH_AS_OF: Final = {
    # known from the first trade of its anchor: an anchor without trades has no row
    "bucket_config": """
        select c.*, t.first_trade as as_of
        from {0} as c
        inner join (
            select exchange, market_type, symbol, valid_from, min(timestamp) as first_trade
            from {1}.stg_trades inner join {0} using (exchange, market_type, symbol)
            where timestamp >= valid_from and timestamp < valid_to and known_at <= timestamp
            group by all
        ) as t using (exchange, market_type, symbol, valid_from)
    """,
    # a trade of a bucket is published with it
    "bucket_trades": """
        select t.*, b.bucket_ts_end as as_of
        from {0} as t
        inner join {1}.unified_buckets as b using (exchange, market_type, symbol, bucket_id)
    """,
}
NOT_COMPARED: Final = {
    "stg_watermarks": "how far the feeds have come: it is cut with the data and states nothing of the market",
    "closed_feeds": "the same, of trades",
    "venue_coverage": "how far `venue_minutes` has come, which is compared",
    "derivative_markets": "reference data: which contract an instrument looks at",
    "minute_feeds": "as stg_watermarks",
    "event_token_vocabulary": "the seed's classes multiplied out: no data in it",
    "expert_scores": "no decisions in these markets; tests/integration/test_experts.py holds it against an oracle",
    "expert_summary": "the same",
    **dict.fromkeys(
        ("trade_minutes_stored", "footprint_minutes_stored", "book_minutes_stored"),
        "holds the open minute, too; the views that publish its minutes are compared",
    ),
    **dict.fromkeys(
        ("trade_minutes_mv", "footprint_minutes_mv", "book_minutes_mv", "book_levels_mv"),
        "writes into a table that is compared, or whose views are; has no rows",
    ),
}


@dataclass(frozen=True, slots=True)
class Part:
    """Columns of a table that are known together: at `as_of`, in rows of `source` (SQL).

    value: a column that is not NULL only once that time has come (a label).
    """

    name: str
    source: str
    as_of: str
    columns: tuple[str, ...]
    value: str | None = None


def parts(build: Build, only: Collection[str] | None = None) -> list[Part]:
    """What has to be compared: every model of the project, found in its manifest; a label at its own time.

    only: the models that were built, where not all were.

    Raises:
        AssertionError: nothing says when a model's rows are known.
    """
    columns: dict[str, list[str]] = {}
    listed = "select table, name from system.columns where database = %(d)s order by table, position"
    for row in query(listed, d=build.features):
        columns.setdefault(row["table"], []).append(row["name"])

    found, unknown, seen = [], [], set()
    for node in models(build):
        name, folder = node["alias"], _folder(node)
        seen.add(name)
        if only is not None and name not in only:
            continue
        if folder in HINDSIGHT or name in NOT_COMPARED or node["config"]["materialized"] == "ephemeral":
            continue
        table, names = f"{build.features}.{name}", columns[name]
        source, as_of = table, next((c for c in ("bucket_ts_end", "known_at") if c in names), None)
        if name in WITH_AS_OF:
            source, as_of = f"({WITH_AS_OF[name].format(table, build.features)})", "as_of"
        if as_of is None or not {"exchange", "market_type", "symbol"} <= set(names):
            unknown.append(name)
            continue
        labels = [c for c in names if c.startswith("label_")] if folder in FORWARD else []
        # the variant is the symbol
        named = {c for c in names if c.endswith("_symbol")}
        plain = tuple(c for c in names if c not in ("symbol", "underlying_asset", *named, *labels))
        found.append(Part(name, source, as_of, plain))
        found += _labels(name, source, labels)
    assert not unknown, (
        f"when is a row of {unknown} known? Give it bucket_ts_end or known_at, or name it in "
        "tests/leakage/checks.py: WITH_AS_OF or, with a reason, NOT_COMPARED"
    )
    gone = {*WITH_AS_OF, *NOT_COMPARED} - seen
    assert not gone, f"tests/leakage/checks.py names models that are gone: {gone}"
    return found


def _labels(name: str, source: str, columns: list[str]) -> Iterator[Part]:
    """A part for each horizon: label_*_<horizon>, known at label_known_at_<horizon>."""
    left = set(columns)
    for known_at in (c for c in columns if c.startswith("label_known_at_")):
        horizon = known_at.removeprefix("label_known_at_")
        together = [c for c in columns if c.endswith(f"_{horizon}")]
        value = next(c for c in together if c.startswith(("label_ret_", "label_uniqueness_")))
        key = ("exchange", "market_type", "bucket_id")
        yield Part(f"{name}:{horizon}", source, known_at, (*key, *together), value)
        left -= set(together)
    assert not left, f"{name}: no label_known_at_* for {sorted(left)}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """`violations`, and how many rows of FULL stood for comparison: per part and variant."""

    violations: list[Violation]
    rows: dict[tuple[str, str], int]

    def of(self, check: str) -> list[Violation]:
        return [v for v in self.violations if v.check == check]


def compare(build: Build, variants: Sequence[Variant], only: Collection[str] | None = None) -> Comparison:
    """Rows with as_of <= T of every variant equal FULL's, bit for bit, both ways; a `cut` one has no others.

    A violation's check is its variant's treatment. only: compares these models.
    """
    violations, counted = [], {}
    treatment = {v.symbol: v.treatment for v in variants}
    for part in parts(build, only):
        for row in query(_comparison(part, variants)):
            variant = row["variant"]
            counted[part.name, variant] = row["compared"]
            if row["differing"]:
                note = f"{variant}: the first at {row['first']}"
                violations.append(Violation(treatment[variant], part.name, row["differing"], note))
    return Comparison(violations, counted)


def _comparison(part: Part, variants: Sequence[Variant]) -> str:
    """SQL: per variant, how many rows of FULL are compared, and how many rows only one side has."""
    listed = ", ".join(
        f"({db.quote(v.symbol)}, fromUnixTimestamp64Micro({v.until}, 'UTC'), {int(v.treatment == 'cut')})"
        for v in variants
    )
    # RowBinary: every byte of every value, NULL and the sign of zero included
    row = f"sipHash128(formatRow('RowBinary', {', '.join(part.columns)}))"
    is_said = f"{part.value} is not null" if part.value else "1"
    return f"""
        with
            variants as (select c1 as variant, c2 as until, c3 as is_cut from values({listed})),
            source as (
                select symbol, {part.as_of} as known, {row} as row, {is_said} as is_said from {part.source}
            ),
            sides as (
                select v.variant as variant, s.row as row, s.known as known, 1 as side
                from source as s cross join variants as v
                where s.symbol = '{FULL}' and s.known <= v.until
                union all
                select v.variant as variant, s.row as row, s.known as known, -1 as side
                from source as s inner join variants as v on s.symbol = v.variant
                where s.known <= v.until or (v.is_cut and s.is_said)
            ),
            rows as (
                select
                    variant, row, min(known) as first, sum(side) as surplus, countIf(side = 1) as expected
                from sides
                group by variant, row
            )
        select
            variant,
            sum(expected) as compared,
            countIf(surplus != 0) as differing,
            toString(minIf(first, surplus != 0)) as first
        from rows
        group by variant
        order by variant
    """


# ---- the source ----------------------------------------------------------------------------------------

LOOKS_AHEAD: Final = {
    r"\blead(InFrame)?\s*\(": "lead",
    r"\bfollowing\b": "following",
    r"\bneighbor\s*\(": "neighbor",
}
NO_ORDER: Final = "a window without an order holds every row"
REVERSED: Final = "what precedes in a descending window comes after"
ASOF_ALLOWED: Final = {
    "macros/time/as_of.sql": "the one place",
    "dbt_project/models/features/order_book/top_of_book.sql": "which bucket an update falls into: an update "
    "looks for the first bucket that had not ended before it; leakage_book_updates.sql counts after it",
    "dbt_project/models/features/tape/book_steps.sql": "the same question, of the states on the 100 ms grid",
    "dbt_project/models/features/order_book/book_dynamics.sql": "which bucket an update falls into, as in top_of_book.sql",
    "dbt_project/models/features/derivatives/liquidation_panic.sql": "which bucket a liquidation falls into: "
    "the first that had not ended before it",
    "dbt_project/models/monitoring/freshness.sql": "the trade that closed a bucket: no input, but how long its row took",
    "dbt_project/models/training/expert_scores.sql": "a label begins with the first bucket end after the decision: no "
    "input, but what it is scored on",
}
_COMMENT = re.compile(r"\{#.*?#\}|/\*.*?\*/|--[^\n]*", re.DOTALL)
_WINDOW = re.compile(
    r"\bover\s*\(|\bwindow\s+\w+\s+as\s*\(|\((?=\s*partition\s+by\b)", re.IGNORECASE
)  # up to its opening bracket


def forbidden(project: Path) -> list[Violation]:
    """SQL outside the labels that could look ahead: window functions and frames, windows without an order or
    against it; and, anywhere, ASOF joins beside the macro. Comments do not count."""
    violations = []
    for path in sorted(
        p for folder in ("dbt_project/models", "macros") for p in (project / folder).rglob("*.sql")
    ):
        name = str(path.relative_to(project))
        sql = _COMMENT.sub(" ", path.read_text())
        notes = []
        if not name.startswith(("dbt_project/models/labels/", "macros/tests/")):
            notes += [
                n for pattern, n in LOOKS_AHEAD.items() for _ in re.findall(pattern, sql, re.IGNORECASE)
            ]
            windows = list(_windows(sql))
            notes += [NO_ORDER for w in windows if not re.search(r"\border\s+by\b", w, re.IGNORECASE)]
            notes += [REVERSED for w in windows if re.search(r"\bdesc\b", w, re.IGNORECASE)]
        if re.search(r"\basof\b", sql, re.IGNORECASE) and name not in ASOF_ALLOWED:
            notes.append("asof")
        violations += [Violation("forbidden", name, 1, note) for note in notes]
    return violations


def _windows(sql: str) -> Iterator[str]:
    """The text between the brackets of each window: `over (…)`, `window w as (…)`, `(partition by …)`."""
    for start in sorted({m.end() for m in _WINDOW.finditer(sql)}):
        depth = 1
        for position in range(start, len(sql)):
            depth += {"(": 1, ")": -1}.get(sql[position], 0)
            if depth == 0:
                yield sql[start:position]
                break


def dependencies(build: Build) -> list[Violation]:
    """Models that read what they must not: raw tables past staging, labels and what holds them, hindsight."""
    violations = []
    folders = {node["unique_id"]: _folder(node) for node in models(build)}
    for node in models(build):
        folder = _folder(node)
        for parent in node["depends_on"]["nodes"]:
            if parent.startswith("source.") and folder not in READS_RAW:
                violations.append(Violation("dependencies", node["name"], 1, f"{parent} past staging"))
            if folders.get(parent) in (*FORWARD, *HINDSIGHT) and folder not in (*FORWARD, *HINDSIGHT):
                violations.append(Violation("dependencies", node["name"], 1, parent))
    return violations


def models(build: Build) -> list[dict[str, Any]]:
    """The manifest's models."""
    return [n for n in build.manifest()["nodes"].values() if n["resource_type"] == "model"]


def _folder(node: dict[str, Any]) -> str:
    """The model's folder under models/."""
    folder: str = node["path"].split("/")[0]
    return folder
