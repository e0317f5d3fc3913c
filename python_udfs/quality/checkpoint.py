"""The run: a great-expectations checkpoint over every relation, its pages, and its row in `quality_runs`."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from clickhouse_driver import Client

from python_udfs.quality.batches import FINITE, LAG, Batch, read
from python_udfs.quality.contract import contracts, limits
from python_udfs.scorer.registry import serving, who
from python_udfs.settings import settings

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation


@dataclass(frozen=True, slots=True)
class Run:
    """A run. failed: `relation: expectation: what was found`, one per expectation that was not met."""

    run_id: UUID
    started_at: datetime
    finished_at: datetime
    relations: list[str]
    expectations: int
    failed: list[str]
    docs: Path

    @property
    def success(self) -> bool:
        return not self.failed


def _expectations() -> Any:
    """The library's expectations. Imported when needed: it takes seconds, and it does not declare what it exports."""
    return import_module("great_expectations.expectations")


def expectations(batch: Batch) -> list[Expectation]:
    """What is expected of the newest rows of a relation."""
    gxe = _expectations()
    contract, limit, there = batch.contract, batch.limits, set(batch.rows.columns)
    found: list[Expectation] = [gxe.ExpectTableRowCountToBeBetween(min_value=limit.min_rows)]
    found += [
        gxe.ExpectColumnValuesToNotBeNull(column=name)
        for name, kind in contract.columns.items()
        if name in there and "Nullable" not in kind
    ]
    found += [
        gxe.ExpectColumnValuesToBeBetween(
            column=name,
            min_value=r.low,
            max_value=r.high,
            strict_min=not r.inclusive,
            strict_max=not r.inclusive,
        )
        for name, r in contract.ranges.items()
        if name in there
    ]
    found += [
        gxe.ExpectColumnValuesToBeInSet(column=name, value_set=values)
        for name, values in contract.values.items()
        if name in there
    ]
    found += [
        gxe.ExpectColumnValuesToBeInSet(column=name, value_set=[1], notes=f"`{text}`")
        for name, text in [*batch.checks.items(), (FINITE, "no NaN, no infinity")]
        if name in there
    ]
    if contract.grain and set(contract.grain) <= there:
        found.append(gxe.ExpectCompoundColumnsToBeUnique(column_list=contract.grain))
    if LAG in there and limit.max_lag_s is not None:
        found.append(gxe.ExpectColumnMinToBeBetween(column=LAG, max_value=limit.max_lag_s))
    return found


def run(c: Client) -> Run:
    """Looks at every relation of `seeds/quality_limits.csv`, writes the pages, and stores what was found.

    Raises:
        UserError: a contract cannot be read.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    gxe, started, promised = _expectations(), datetime.now(UTC), contracts()
    docs = settings().data_dir / "quality"
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    context.delete_data_docs_site("local_site")
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs)}
    index = {"class_name": "DefaultSiteIndexBuilder"}
    context.add_data_docs_site(
        "quality", {"class_name": "SiteBuilder", "store_backend": store, "site_index_builder": index}
    )
    source: Any = context.data_sources.add_pandas("clickhouse")
    definitions, relations = [], []
    with tempfile.TemporaryDirectory() as folder:
        for limit in limits():
            batch = read(c, promised[limit.relation], limit)
            relations.append(limit.relation)
            columns = [gxe.ExpectColumnPairValuesToBeEqual(column_A="type", column_B="promised")]
            for name, data, expected in (
                (limit.relation, batch.rows, expectations(batch)),
                (f"{limit.relation} columns", batch.columns, columns),
            ):
                path = Path(folder) / f"{name}.parquet"
                data.to_parquet(path)
                definition = source.add_parquet_asset(name, path=path).add_batch_definition(
                    name="newest rows"
                )
                suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=expected))
                definitions.append(
                    context.validation_definitions.add(
                        gx.ValidationDefinition(name=name, data=definition, suite=suite)
                    )
                )
        checkpoint = context.checkpoints.add(
            gx.Checkpoint(
                name="quality",
                validation_definitions=definitions,
                result_format={"result_format": "SUMMARY", "partial_unexpected_count": 3},
            )
        )
        result = checkpoint.run()
        context.build_data_docs()
    results = [r for suite in result.run_results.values() for r in suite.results]
    failed = [
        f"{suite.suite_name}: {_said(r)}"
        for suite in result.run_results.values()
        for r in suite.results
        if not r.success
    ]
    done = Run(uuid4(), started, datetime.now(UTC), relations, len(results), sorted(failed), docs)
    store_run(c, done)
    return done


def store_run(c: Client, done: Run) -> None:
    """Adds a run's row to `quality_runs`."""
    c.execute(
        f"insert into {serving('quality_runs')} (run_id, started_at, finished_at, success, relations, expectations, "
        "failed, docs, who) values",
        [
            (
                done.run_id,
                done.started_at,
                done.finished_at,
                done.success,
                done.relations,
                done.expectations,
                done.failed,
                str(done.docs),
                who(),
            )
        ],
    )


def _said(r: Any) -> str:
    """One expectation that was not met, and what was found instead."""
    config = r.expectation_config
    words, found = dict(config.kwargs), r.result or {}
    words.pop("batch_id", None)
    name = config.type.removeprefix("expect_")
    if config.notes:  # a check of ours: what it says is in its notes
        name, words = str(config.notes), {}
    if r.exception_info and r.exception_info.get("raised_exception"):
        return f"{name}: {r.exception_info.get('exception_message')}"
    given = ", ".join(f"{k} {v}" for k, v in words.items() if v is not None and v is not False)
    name += f" ({given})" if given else ""
    if "unexpected_count" in found:
        examples = [] if config.notes else found.get("partial_unexpected_list") or []
        said = f"{found['unexpected_count']} of {found['element_count']} rows"
        return f"{name}: {said}" + (f", such as {examples[:3]}" if examples else "")
    return f"{name}: {found.get('observed_value')}"
