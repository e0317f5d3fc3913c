"""Suites from the contracts: silent on relations that keep their promises, loud on each planted fault, and in the way of a promotion."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from clickhouse_driver import Client
from typer.testing import CliRunner

from python_udfs import cli, db
from python_udfs.errors import UserError
from python_udfs.quality import checkpoint, gate
from python_udfs.quality.checkpoint import Run, store_run
from python_udfs.quality.contract import Contract, _number, contracts, limits
from python_udfs.scorer import deployment
from python_udfs.settings import Settings

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
ROWS = 20
PREDICTION: dict[str, Any] = {
    "predicted_at": NOON + timedelta(milliseconds=100), "exchange": "x", "market_type": "spot", "symbol": "S",
    "bucket_id": 1, "bucket_ts_end": NOON, "model_name": "m", "model_version": "v", "feature_hash": "h",
    "missing_features": 0, "age_ms": 100, "probabilities": [0.25, 0.25, 0.5], "score": 0.25, "confidence": 0.5,
    "signal": 1, "role": "champion", "served": True, "read_us": 1, "prepare_us": 2, "run_us": 3, "total_us": 6,
}  # fmt: skip


def _value(contract: Contract, name: str, i: int) -> Any:
    """A value that keeps the contract, of row i."""
    kind = contract.columns[name]
    times = {
        "bucket_ts_start": NOON + timedelta(seconds=i),
        "bucket_ts_end": NOON + timedelta(seconds=i + 1),
        "last_trade_at": NOON + timedelta(seconds=i + 1),
        "anchor_ts": NOON,
    }
    if name in times:
        return times[name]
    if seconds := re.fullmatch(r"label_known_at_(\d+)s", name):
        return times["bucket_ts_end"] + timedelta(seconds=int(seconds[1]))
    if name in contract.grain and "Int" in kind:
        return i + 1
    if "Nullable" in kind:
        return None
    if name in contract.values:
        return contract.values[name][0]
    if name in contract.ranges:
        r = contract.ranges[name]
        low = r.low if r.low is not None else 0
        return int(low + 1) if "Int" in kind else low + ((r.high - low) / 2 if r.high is not None else 1)
    if "Array" in kind:
        return []
    return NOON if "Date" in kind else "a" if "String" in kind else 1


@pytest.fixture
def c(store: Settings) -> Iterator[Client]:
    """Every relation of the seed, by its contract, with a few rows that keep it."""
    features = store.database("features")
    with db.connect() as client:
        for name, contract in contracts().items():
            if contract.layer != "features":
                continue
            columns = ", ".join(f"`{n}` {kind}" for n, kind in contract.columns.items())
            client.execute(f"create table {features}.{name} ({columns}) engine = Memory")
            rows = [tuple(_value(contract, n, i) for n in contract.columns) for i in range(ROWS)]
            client.execute(f"insert into {features}.{name} values", rows)
        for i in range(3):
            row = PREDICTION | {"request_id": UUID(int=i)}
            client.execute(
                f"insert into {store.database('serving')}.predictions ({', '.join(row)}) values",
                [tuple(row.values())],
            )
        yield client


def test_promises_kept_and_each_planted_fault(c: Client, store: Settings) -> None:
    done = checkpoint.run(c)
    assert done.failed == []
    assert done.relations == [limit.relation for limit in limits()]
    assert done.expectations > 400
    assert gate.objections(c) == []
    pages = [path.read_text() for path in (done.docs / "validations").rglob("*.html")]
    assert (done.docs / "index.html").is_file()
    assert len(pages) == 2 * len(done.relations)

    features, serving = store.database("features"), store.database("serving")
    # the same row again; a NaN; out of range; a class that is none; another type; a column gone; a check broken; too old; no rows
    c.execute(
        f"insert into {features}.unified_buckets select * from {features}.unified_buckets where bucket_id = 1"
    )
    c.execute(f"alter table {features}.feature_vector_v1 update flow_imbalance = 1.5 where bucket_id = 2")
    c.execute(f"alter table {features}.feature_vector_v1 update vwap = nan where bucket_id = 3")
    c.execute(f"alter table {features}.feature_vector_v2 modify column buy_count UInt64")
    c.execute(
        f"alter table {features}.feature_vector_v2 update bucket_ts_end = bucket_ts_end - toIntervalHour(1) where 1"
    )
    c.execute(f"alter table {features}.bucket_labels update label_cls_1 = 7 where bucket_id = 4")
    c.execute(f"alter table {features}.training_set drop column ofi")
    c.execute(
        f"insert into {serving}.predictions ({', '.join(PREDICTION)}) values",
        [tuple((PREDICTION | {"total_us": 7}).values())],
    )
    done = checkpoint.run(c)
    found = "\n".join(done.failed)
    for planted in (
        "unified_buckets: compound_columns_to_be_unique",
        "feature_vector_v1: column_values_to_be_between (column flow_imbalance, min_value -1.0, max_value 1.0): 1 of 20 rows, such as [1.5]",
        "feature_vector_v1: column_values_to_not_be_null (column vwap)",
        "feature_vector_v1: `no NaN, no infinity`: 1 of 20 rows",
        "feature_vector_v2 columns: column_pair_values_to_be_equal",
        "feature_vector_v2: `bucket_ts_end >= bucket_ts_start`: 20 of 20 rows",
        "feature_vector_v2: column_min_to_be_between (column (seconds behind), max_value 60.0): 3600",
        "bucket_labels: column_values_to_be_in_set (column label_cls_1",
        "training_set columns: column_pair_values_to_be_equal",
        "predictions: `read_us + prepare_us + run_us = total_us`",
    ):
        assert planted in found, (planted, found)
    assert not done.success
    assert [
        tuple(r)
        for r in c.execute(f"select success, failed from {serving}.quality_runs order by finished_at")
    ] == [
        (True, []),
        (False, done.failed),
    ]
    assert "the quality run of" in gate.objections(c)[0]


def test_a_relation_that_is_not_there_fails(store: Settings) -> None:
    result = CliRunner().invoke(cli.app, ["quality"])
    assert result.exit_code == 1
    assert "failed: unified_buckets: table_row_count_to_be_between (min_value 1): 0" in result.output
    assert "failed: predictions" not in result.output


def _ran(c: Client, *failed: str, at: datetime = NOON) -> None:
    store_run(c, Run(uuid4(), at, at, ["a"], 2, list(failed), checkpoint.settings().data_dir))


def test_the_newest_run_decides_whether_a_model_may_be_promoted(
    store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = deployment.Deployment()
    with db.connect() as c:
        assert deployment.quality_passes(c, now, now) == (deployment.Verdict.PASS, [])
        _ran(c, "a: wrong", "b: wrong, too")
        verdict, reasons = deployment.quality_passes(c, now, now)
        assert verdict == deployment.Verdict.FAIL
        assert reasons == ["the quality run of 2026-01-05 12:00 UTC failed: a: wrong", "b: wrong, too"]
        monkeypatch.setattr(deployment, "GATES", [deployment.quality_passes])
        with pytest.raises(deployment.GateError, match=r"promote m: no: .*a: wrong; b: wrong, too"):
            deployment._ask_gates(c, now, now, "promote m")
        deployment._ask_gates(c, now, now, "promote m", (deployment.quality_passes,))
        _ran(c, *(f"{i}: wrong" for i in range(12)), at=NOON + timedelta(hours=1))
        assert gate.objections(c)[-1] == "and 2 more"
        _ran(c, at=NOON + timedelta(hours=2))
        assert gate.objections(c) == []
        c.execute(f"drop table {store.database('serving')}.quality_runs sync")
        assert gate.objections(c) == []


def test_force_needs_a_reason_and_keeps_it(monkeypatch: pytest.MonkeyPatch, store: Settings) -> None:
    asked: list[tuple[Any, ...]] = []

    def promote(
        _: Client, text: str, reason: str, *, waived: tuple[Any, ...]
    ) -> tuple[deployment.Deployment, bool]:
        asked.append((text, reason, waived))
        return deployment.Deployment(), True

    monkeypatch.setattr(deployment, "promote", promote)
    run = CliRunner().invoke
    assert run(cli.app, ["models", "promote", "m", "--force"]).exit_code == 2
    assert run(cli.app, ["models", "promote", "m", "--force", "--reason", "known"]).exit_code == 0
    assert run(cli.app, ["models", "promote", "m"]).exit_code == 0
    assert asked == [("m", "forced: known", (deployment.quality_passes,)), ("m", "", ())]


def test_bounds_of_a_contract() -> None:
    assert _number("1 + 1e-9", {}) == 1 + 1e-9
    assert _number("{{ var('x') }}", {"x": 5}) == 5
    for wrong in ("{{ var('y') }}", "a_column + 1", "1 +"):
        with pytest.raises(UserError, match="accepted_range"):
            _number(wrong, {})


def test_contracts_take_over_what_the_families_promise() -> None:
    found = contracts()
    assert found["feature_vector_v2"].ranges["vpin"].high == pytest.approx(1)
    assert found["feature_vector_v2"].ranges["book_age_ms"].high == 10_000
    assert found["training_set"].values["label_cls_3"] == [-1, 0, 1]
    assert set(found["feature_vector_v1"].columns) < set(found["feature_vector_v2"].columns)
    assert found["feature_vector_v1"].grain == ["exchange", "market_type", "symbol", "bucket_id"]
    assert not found["feature_vector_v2"].ranges["mid_close"].inclusive
