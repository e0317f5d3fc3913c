"""What dbt's yml promises of a relation: columns and types, grain, ranges, and what holds in every row.

A column's range may stand beside the model that makes it: the names of features are unique over all families, so that
the wide relations take over the tests of the narrow ones.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import jinja2
import yaml

from python_udfs.errors import UserError
from python_udfs.settings import REPOSITORY, Layer

MODELS: Final = REPOSITORY / "dbt_project" / "models"
PREDICTIONS: Final = Path(__file__).with_name("predictions.yml")
# Families whose columns go into the public relations under their own names.
_FAMILIES: Final = ("features", "labels", "buckets")


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of a column, in its unit. None: open. `inclusive`: a value may equal a bound."""

    low: float | None
    high: float | None
    inclusive: bool = True


@dataclass(slots=True)
class Contract:
    """What a relation promises.

    Attributes:
        relation: its name, with its version.
        layer: the database that holds it.
        columns: name -> ClickHouse type, in order.
        grain: columns that are unique together.
        ordered_by: the time by which the newest rows are the newest.
        ranges, values: of columns. NULL is in every range.
        expressions: SQL over the row that holds or is NULL.
    """

    relation: str
    layer: Layer
    columns: dict[str, str]
    grain: list[str] = field(default_factory=list)
    ordered_by: str = "bucket_ts_end"
    ranges: dict[str, Range] = field(default_factory=dict)
    values: dict[str, list[Any]] = field(default_factory=dict)
    expressions: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Limits:
    """A row of `seeds/quality_limits.csv`. behind: layer, relation and column of a clock, or None."""

    relation: str
    newest_rows: int
    min_rows: int
    max_lag_s: float | None
    behind: tuple[Layer, str, str] | None


def limits() -> list[Limits]:
    """Every relation that is looked at, in the order of the seed."""
    with (REPOSITORY / "seeds" / "quality_limits.csv").open(newline="") as f:
        return [
            Limits(
                r["relation"],
                int(r["newest_rows"]),
                int(r["min_rows"]),
                float(r["max_lag_s"]) if r["max_lag_s"] else None,
                tuple(r["behind"].split(".")) if r["behind"] else None,
            )
            for r in csv.DictReader(f)
        ]


def contracts() -> dict[str, Contract]:
    """The contract of every relation of `limits`, by its name.

    Raises:
        UserError: no yml says what a relation is, or a bound in it cannot be computed.
    """
    listed = {}
    models = _models()
    variables = yaml.safe_load((REPOSITORY / "dbt_project.yml").read_text())["vars"]
    shared: dict[str, list[Any]] = {}
    for path, model in models:
        public = model.get("config", {}).get("access") == "public"
        if public and path.relative_to(MODELS).parts[0] in _FAMILIES:
            for column in model["columns"]:
                shared.setdefault(column["name"], []).extend(column.get("data_tests", []))
    for limit in limits():
        if limit.relation == "predictions":
            [model] = yaml.safe_load(PREDICTIONS.read_text())["models"]
            listed[limit.relation] = _contract(
                "predictions", "serving", model, columns=model["columns"], shared={}, variables=variables
            )
            listed[limit.relation].ordered_by = "predicted_at"
            continue
        for _, model in models:
            for name, columns, tests in _versions(model):
                if name == limit.relation:
                    listed[name] = _contract(
                        name,
                        "features",
                        {**model, **tests},
                        columns=columns,
                        shared=shared,
                        variables=variables,
                    )
        if limit.relation not in listed:
            raise UserError(
                f"seeds/quality_limits.csv: no yml under {MODELS} says what {limit.relation} is: "
                "remove the row or add the model"
            )
    return listed


@cache
def _models() -> list[tuple[Path, dict[str, Any]]]:
    """Every model of the project with its file, read once: the pure Python parser takes seconds, C's does not."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [
        (path, model)
        for path in sorted(MODELS.rglob("*.yml"))
        for model in (yaml.load(path.read_text(), Loader=loader) or {}).get("models", [])
    ]


def _versions(model: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]], dict[str, Any]]]:
    """Name, columns and what else differs, of each version of a model; a model without versions is one."""
    versions = model.get("versions")
    if not versions:
        yield model["name"], model.get("columns", []), {}
        return
    for version in versions:
        columns = model["columns"]
        for entry in version.get("columns", []):
            if "include" in entry and entry["include"] != "*":
                columns = [c for c in columns if c["name"] in entry["include"]]
        tests = {"data_tests": version["data_tests"]} if "data_tests" in version else {}
        yield f"{model['name']}_v{version['v']}", columns, tests


def _contract(
    relation: str,
    layer: Layer,
    model: Mapping[str, Any],
    *,
    columns: list[dict[str, Any]],
    shared: Mapping[str, list[Any]],
    variables: Mapping[str, Any],
) -> Contract:
    contract = Contract(relation, layer, {c["name"]: c["data_type"] for c in columns})
    contract.expressions += [c["expression"] for c in model.get("constraints", []) if c["type"] == "check"]
    for test in model.get("data_tests", []):
        arguments = _arguments(test)
        if "unique_combination_of_columns" in test:
            contract.grain = arguments["combination_of_columns"]
        elif "expression_is_true" in test:
            contract.expressions.append(arguments["expression"])
    for column in columns:
        for test in [*column.get("data_tests", []), *shared.get(column["name"], [])]:
            arguments = _arguments(test)
            if "accepted_range" in test:
                low, high = (
                    None if (bound := arguments.get(side)) is None else _number(bound, variables)
                    for side in ("min_value", "max_value")
                )
                contract.ranges[column["name"]] = Range(low, high, arguments.get("inclusive", True))
            elif "accepted_values" in test:
                contract.values[column["name"]] = arguments["values"]
    return contract


def _arguments(test: Any) -> dict[str, Any]:
    if not isinstance(test, dict):
        return {}
    (body,) = test.values()
    arguments: dict[str, Any] = body.get("arguments", {})
    return arguments


def _number(bound: Any, variables: Mapping[str, Any]) -> float:
    """A bound as dbt and ClickHouse would read it: a number, a var of the project, or arithmetic."""
    try:
        text = jinja2.Template(str(bound), undefined=jinja2.StrictUndefined).render(var=variables.__getitem__)
        value: Any = jinja2.Environment(autoescape=True).compile_expression(text, undefined_to_none=False)()
        return float(value)
    except (jinja2.TemplateError, KeyError, TypeError, ValueError) as e:
        raise UserError(f"accepted_range: {bound!r} is no number, var or arithmetic: {e}") from e
