"""Each generic test of macros/tests/ passes on good rows and fails on bad ones: run by dbt, in a project of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dbt.cli.main import dbtRunner

from python_udfs.settings import REPOSITORY, Settings

NOW = "now64(6, 'UTC')"
Columns = dict[str, str]  # name -> ClickHouse type
Row = tuple[Any, ...]  # SQL literals

KEY: Columns = {"k": "String", "n": "Nullable(Int64)"}
RANGE: Columns = {"k": "String", "low": "Nullable(Int64)", "high": "Nullable(Int64)"}
VALUE: Columns = {"x": "Nullable(Float64)", "low": "Float64"}
UNSIGNED: Columns = {"k": "String", "n": "UInt32"}
TIME: Columns = {"k": "String", "t": "DateTime64(6, 'UTC')"}
INSTRUMENT_RANGES = {"lower_bound_column": "low", "upper_bound_column": "high", "partition_by": "k"}

# id: test, arguments, columns, rows, does it pass? A column test has `column_name` among its arguments.
CASES: dict[str, tuple[str, dict[str, Any], Columns, list[Row], bool]] = {
    "unique": ("unique_combination_of_columns", {"combination_of_columns": ["k", "n"]}, KEY, [("'a'", 1), ("'a'", 2), ("'b'", 1)], True),
    "unique_empty": ("unique_combination_of_columns", {"combination_of_columns": ["k", "n"]}, KEY, [], True),
    "unique_twice": ("unique_combination_of_columns", {"combination_of_columns": ["k", "n"]}, KEY, [("'a'", 1), ("'b'", 1), ("'a'", 1)], False),
    "unique_null_twice": ("unique_combination_of_columns", {"combination_of_columns": ["k", "n"]}, KEY, [("'a'", "null"), ("'a'", "null")], False),
    "expression": ("expression_is_true", {"expression": "low < high or k = 'x'"}, RANGE, [("'a'", 1, 2), ("'x'", 3, 2)], True),
    "expression_null": ("expression_is_true", {"expression": "low < high"}, RANGE, [("'a'", 1, "null")], True),
    "expression_false": ("expression_is_true", {"expression": "low < high"}, RANGE, [("'a'", 1, 2), ("'a'", 2, 2)], False),
    "expression_or_false": ("expression_is_true", {"expression": "low < 0 or high < 0"}, RANGE, [("'a'", 1, 2)], False),
    "expression_of_column": ("expression_is_true", {"column_name": "n", "expression": ">= 0"}, KEY, [("'a'", 0)], True),
    "expression_of_column_false": ("expression_is_true", {"column_name": "n", "expression": ">= 0"}, KEY, [("'a'", -1)], False),
    "range": ("accepted_range", {"column_name": "x", "min_value": -1, "max_value": 1}, VALUE, [(-1, 0), (1, 0), ("null", 0)], True),
    "range_below": ("accepted_range", {"column_name": "x", "min_value": -1, "max_value": 1}, VALUE, [(-1.5, 0)], False),
    "range_above": ("accepted_range", {"column_name": "x", "min_value": -1, "max_value": 1}, VALUE, [(1.5, 0)], False),
    "range_nan": ("accepted_range", {"column_name": "x", "min_value": 0}, VALUE, [("nan", 0)], False),
    "range_infinite": ("accepted_range", {"column_name": "x", "min_value": 0, "max_value": 9}, VALUE, [("inf", 0)], False),
    "range_exclusive": ("accepted_range", {"column_name": "x", "min_value": 0, "inclusive": False}, VALUE, [(0.5, 0)], True),
    "range_exclusive_bound": ("accepted_range", {"column_name": "x", "min_value": 0, "inclusive": False}, VALUE, [(0, 0)], False),
    "range_zero_is_a_bound": ("accepted_range", {"column_name": "x", "max_value": 0}, VALUE, [(1, 0)], False),
    "range_of_columns": ("accepted_range", {"column_name": "x", "min_value": "low"}, VALUE, [(3, 2), (5, 6)], False),
    "sequence": ("sequential_values", {"column_name": "n", "group_by_columns": ["k"]}, UNSIGNED, [("'a'", 2), ("'a'", 0), ("'a'", 1), ("'b'", 7)], True),
    "sequence_gap": ("sequential_values", {"column_name": "n", "group_by_columns": ["k"]}, UNSIGNED, [("'a'", 0), ("'a'", 2), ("'b'", 1)], False),
    "sequence_double": ("sequential_values", {"column_name": "n"}, UNSIGNED, [("'a'", 1), ("'a'", 1), ("'a'", 2)], False),
    "sequence_across_groups": ("sequential_values", {"column_name": "n"}, UNSIGNED, [("'a'", 0), ("'b'", 1)], True),
    "sequence_interval": ("sequential_values", {"column_name": "n", "interval": 5}, UNSIGNED, [("'a'", 5), ("'a'", 10)], True),
    "sequence_interval_gap": ("sequential_values", {"column_name": "n", "interval": 5}, UNSIGNED, [("'a'", 5), ("'a'", 6)], False),
    "sequence_null": ("sequential_values", {"column_name": "n"}, KEY, [("'a'", 1), ("'a'", "null")], False),
    "ranges": ("mutually_exclusive_ranges", INSTRUMENT_RANGES, RANGE, [("'a'", 5, 9), ("'a'", 1, 5), ("'b'", 2, 8), ("'a'", 11, 12)], True),
    "ranges_overlap": ("mutually_exclusive_ranges", INSTRUMENT_RANGES, RANGE, [("'a'", 1, 5), ("'a'", 4, 9)], False),
    "ranges_inside": ("mutually_exclusive_ranges", INSTRUMENT_RANGES, RANGE, [("'a'", 1, 9), ("'a'", 4, 5)], False),
    "ranges_twice": ("mutually_exclusive_ranges", INSTRUMENT_RANGES, RANGE, [("'a'", 1, 9), ("'a'", 1, 9)], False),
    "ranges_backwards": ("mutually_exclusive_ranges", INSTRUMENT_RANGES, RANGE, [("'a'", 5, 1)], False),
    "ranges_null": ("mutually_exclusive_ranges", INSTRUMENT_RANGES, RANGE, [("'a'", 5, "null")], False),
    "ranges_zero_length": ("mutually_exclusive_ranges", INSTRUMENT_RANGES, RANGE, [("'a'", 5, 5)], False),
    "ranges_zero_length_allowed": (
        "mutually_exclusive_ranges", {**INSTRUMENT_RANGES, "zero_length_range_allowed": True}, RANGE,
        [("'a'", 5, 5), ("'a'", 5, 5), ("'a'", 5, 6), ("'a'", 1, 5)], True,
    ),
    "ranges_no_gap": ("mutually_exclusive_ranges", {**INSTRUMENT_RANGES, "gaps": "not_allowed"}, RANGE, [("'a'", 1, 5), ("'a'", 5, 6)], True),
    "ranges_gap": ("mutually_exclusive_ranges", {**INSTRUMENT_RANGES, "gaps": "not_allowed"}, RANGE, [("'a'", 1, 5), ("'a'", 6, 7)], False),
    "ranges_gap_required": ("mutually_exclusive_ranges", {**INSTRUMENT_RANGES, "gaps": "required"}, RANGE, [("'a'", 1, 5), ("'a'", 5, 7)], False),
    "ranges_across_groups": (
        "mutually_exclusive_ranges", {"lower_bound_column": "low", "upper_bound_column": "high"}, RANGE, [("'a'", 1, 5), ("'b'", 4, 7)], False,
    ),
    "equal": ("equality", {"compare_model": "ref('twins')"}, KEY, [("'b'", "null"), ("'a'", 1), ("'a'", 1)], True),
    "equal_too_few": ("equality", {"compare_model": "ref('twins')"}, KEY, [("'b'", "null"), ("'a'", 1)], False),
    "equal_too_many": ("equality", {"compare_model": "ref('twins')"}, KEY, [("'b'", "null"), *[("'a'", 1)] * 3], False),
    "equal_other_value": ("equality", {"compare_model": "ref('twins')"}, KEY, [("'b'", 2), ("'a'", 1), ("'a'", 1)], False),
    "equal_in_columns": ("equality", {"compare_model": "ref('twins')", "compare_columns": ["k"]}, KEY, [("'b'", 2), ("'a'", 3), ("'a'", 1)], True),
    "recent": ("recency", {"field": "t", "datepart": "hour", "interval": 1}, TIME, [("'a'", NOW), ("'b'", f"{NOW} - interval 2 day")], True),
    "recent_old": ("recency", {"field": "t", "datepart": "hour", "interval": 1}, TIME, [("'b'", f"{NOW} - interval 2 hour")], False),
    "recent_without_rows": ("recency", {"field": "t", "datepart": "hour", "interval": 1}, TIME, [], False),
    "recent_per_group": (
        "recency", {"field": "t", "datepart": "day", "interval": 1, "group_by_columns": ["k"]}, TIME,
        [("'a'", NOW), ("'b'", f"{NOW} - interval 2 day")], False,
    ),
    "varied": ("not_constant", {"column_name": "n", "group_by_columns": ["k"]}, KEY, [("'a'", 1), ("'a'", 2), ("'b'", "null")], True),
    "stuck": ("not_constant", {"column_name": "n"}, KEY, [("'a'", 1), ("'b'", 1), ("'b'", "null")], False),
    "stuck_in_a_group": ("not_constant", {"column_name": "n", "group_by_columns": ["k"]}, KEY, [("'a'", 1), ("'a'", 2), ("'b'", 1)], False),
}  # fmt: skip
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "unique_of_text": (
        "unique_combination_of_columns",
        {"combination_of_columns": "k, n"},
        "has to be a list",
    ),
    "range_without_bounds": ("accepted_range", {"column_name": "n"}, "give min_value, max_value or both"),
    "ranges_with_odd_gaps": (
        "mutually_exclusive_ranges",
        {"lower_bound_column": "n", "upper_bound_column": "n", "gaps": "some"},
        "not 'some'",
    ),
}


def _model_sql(columns: Columns, rows: list[Row]) -> str:
    one = ", ".join(f"cast({{}} as {kind}) as {name}" for name, kind in columns.items())
    no_row = f"select {one.format(*[0] * len(columns))} where false"
    return "\nunion all\n".join([f"select {one.format(*row)}" for row in rows] or [no_row])


def _project(folder: Path, cases: dict[str, tuple[str, dict[str, Any], str]]) -> None:
    """A dbt project with one model and one data test a case; the generic tests are copies of ours."""
    shutil.copytree(REPOSITORY / "macros" / "tests", folder / "macros")
    shutil.copy(REPOSITORY / "profiles.yml", folder)
    project = {
        "name": "generic_tests",
        "version": "1.0.0",
        "profile": "marketprism",
        "flags": {"send_anonymous_usage_stats": False, "require_generic_test_arguments_property": True},
    }
    (folder / "dbt_project.yml").write_text(yaml.safe_dump(project))
    (folder / "models").mkdir()
    models: list[dict[str, Any]] = []
    for name, (test, arguments, sql) in cases.items():
        (folder / "models" / f"{name}.sql").write_text(sql)
        of_column = (
            test in ("accepted_range", "not_constant", "expression_is_true") and "column_name" in arguments
        )
        given = {k: v for k, v in arguments.items() if not (of_column and k == "column_name")}
        tests = {"data_tests": [{test: {"arguments": given}}]}
        columns = {"columns": [{"name": arguments["column_name"], **tests}]} if of_column else tests
        models.append({"name": name, **columns})
    (folder / "models" / "models.yml").write_text(yaml.safe_dump({"version": 2, "models": models}))


def _dbt(folder: Path, *args: str) -> Any:
    words = [
        "--project-dir",
        str(folder),
        "--profiles-dir",
        str(folder),
        "--target-path",
        str(folder / "target"),
    ]
    return dbtRunner().invoke([*args, *words, "--log-path", str(folder / "logs"), "--quiet"])


@pytest.fixture(scope="module")
def outcomes(module_store: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Case -> status of its data test, all in one `dbt build`."""
    folder = tmp_path_factory.mktemp("generic")
    _project(
        folder,
        {
            name: (test, arguments, _model_sql(columns, rows))
            for name, (test, arguments, columns, rows, _) in CASES.items()
        },
    )
    (folder / "models" / "twins.sql").write_text(_model_sql(KEY, [("'a'", 1), ("'a'", 1), ("'b'", "null")]))
    results = _dbt(folder, "build").result.results
    models = {r.node.name: r for r in results if r.node.resource_type == "model"}
    assert {name: r.message for name, r in models.items() if r.status != "success"} == {}
    yield {r.node.attached_node.split(".")[-1]: r.status for r in results if r.node.resource_type == "test"}


@pytest.mark.parametrize("case", CASES)
def test_passes_on_good_rows_and_fails_on_bad_ones(outcomes: dict[str, str], case: str) -> None:
    assert outcomes[case] == ("pass" if CASES[case][-1] else "fail")


def test_every_generic_test_is_seen_to_pass_and_to_fail() -> None:
    ours = {path.stem for path in (REPOSITORY / "macros" / "tests").glob("*.sql")}
    for passes in (True, False):
        assert {test for test, *_, expected in CASES.values() if expected is passes} == ours


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_arguments_that_make_no_sense(server: Settings, tmp_path: Path, case: str) -> None:
    test, arguments, message = REFUSED[case]
    _project(tmp_path, {case: (test, arguments, _model_sql(KEY, [("'a'", 1)]))})
    result = _dbt(tmp_path, "compile")
    text = str(result.exception) + " ".join(str(r.message) for r in getattr(result.result, "results", []))
    assert not result.success
    assert message in text
