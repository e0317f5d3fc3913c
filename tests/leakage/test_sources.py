"""What can be read off the SQL itself: nothing outside the labels looks ahead, or reads around the rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from python_udfs.settings import REPOSITORY
from tests.leakage.build import building, copy_project
from tests.leakage.checks import (
    ASOF_ALLOWED,
    NO_ORDER,
    REVERSED,
    Violation,
    assert_none,
    dependencies,
    forbidden,
)

FEATURES = "dbt_project/models/features/trade_flow"
FEATURE = f"{FEATURES}/planted.sql"
LABEL = "dbt_project/models/labels/planted.sql"
MACRO = "macros/time/planted.sql"


def test_nothing_looks_ahead() -> None:
    assert_none(forbidden(REPOSITORY))


def test_every_exception_is_still_needed() -> None:
    for file in ASOF_ALLOWED:
        assert "asof" in (REPOSITORY / file).read_text().lower(), file


@pytest.mark.parametrize(
    ("file", "sql", "notes"),
    [
        (
            FEATURE,
            "leadInFrame(x) over (order by t rows between 1 preceding and 1 following)",
            ["lead", "following"],
        ),
        (FEATURE, "LEAD(x, 2) over (order by t)", ["lead"]),
        (
            FEATURE,
            "last_value(x) over w from y\nwindow w as (order by t rows between current row and 3 FOLLOWING)",
            ["following"],
        ),
        (FEATURE, "neighbor(x, 1) from y", ["neighbor"]),
        (FEATURE, "x / max(x) over () from y", [NO_ORDER]),
        (FEATURE, "x / max(x) over (\n    partition by cityHash64(s)\n) from y", [NO_ORDER]),
        (
            FEATURE,
            "x / max(x) over w from y window w as (rows between 3 preceding and current row)",
            [NO_ORDER],
        ),
        (FEATURE, "lagInFrame(x) over (partition by s order by t desc) from y", [REVERSED]),
        (MACRO, "{% macro planted() %}(partition by s order by t desc){% endmacro %}", [REVERSED]),
        (FEATURE, "x from a ASOF left join b on a.s = b.s and a.t >= b.t", ["asof"]),
        (LABEL, "x from a asof join b on a.s = b.s and a.t >= b.t", ["asof"]),
        (LABEL, "leadInFrame(x) over (order by t rows between current row and 1 following)", []),
        (FEATURE, "-- following\n/* lead(x) */ {# asof\njoin #} x from y", []),
        (FEATURE, "sum(x) over (partition by s order by t) as leading from y order by t desc", []),
    ],
)
def test_what_looks_ahead_is_found(tmp_path: Path, file: str, sql: str, notes: list[str]) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(f"select {sql}")
    assert forbidden(tmp_path) == [Violation("forbidden", file, 1, note) for note in notes]


def test_what_reads_around_staging_is_found(tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    (project / FEATURE).write_text("select 1 as one from {{ source('hot', 'trades') }}")
    (project / FEATURES / "hindsight.sql").write_text("select 1 as one from {{ ref('late_trades') }}")
    build = building(project, tmp_path / "target")
    build.dbt("parse")
    assert {(v.table, v.note) for v in dependencies(build)} == {
        ("planted", "source.marketprism.hot.trades past staging"),
        ("hindsight", "model.marketprism.late_trades"),
    }
