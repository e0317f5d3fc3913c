"""What the tests of scoring share: feature tables and buckets by hand, and small models with known weights."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from python_udfs import db
from python_udfs.scorer.card import INPUT, OUTPUT, Card, Column, ModelType, save_model
from python_udfs.scorer.relation import Instrument
from python_udfs.settings import settings

KEYS = (
    "exchange LowCardinality(String), market_type LowCardinality(String), symbol LowCardinality(String), "
    "bucket_id UInt64, bucket_ts_start DateTime64(6, 'UTC'), bucket_ts_end DateTime64(6, 'UTC')"
)
CONTRACT = [
    Column(name="flow", type="Float64"),
    Column(name="spread", type="Nullable(Float64)"),
    Column(name="trades", type="UInt32"),
]
NOON = datetime(2024, 8, 8, 12, tzinfo=UTC)
ONE = Instrument("x", "spot", "ONE")
TWO = Instrument("x", "linear", "TWO")
ODD = Instrument("o'x", "spot", "BTC/USD'T:\\`%s")


def create(columns: Sequence[Column] = CONTRACT, table: str = "feature_vector_v1", more: str = "") -> None:
    """The table as dbt makes it, with these features, in the database of the current prefix."""
    names = ", ".join(f"`{column.name}` {column.type}" for column in columns)
    with db.connect(settings().database("features")) as c:
        c.execute(f"drop table if exists {table} sync")
        c.execute(
            f"create table {table} ({KEYS}, {names}{more}) engine = MergeTree "
            "partition by toYYYYMMDD(bucket_ts_start) order by (exchange, market_type, symbol, bucket_id) "
            "settings index_granularity = 256"
        )


def bucket(
    instrument: Instrument, end: datetime, flow: float = 0.0, spread: float | None = 1.0, trades: int = 5
) -> tuple[Any, ...]:
    """A bucket of 2 s. Its sequence in the hour counts such buckets."""
    start = end - timedelta(seconds=2)
    hour = start.replace(minute=0, second=0, microsecond=0)
    bucket_id = int(hour.timestamp()) * 100_000 + int((start - hour).total_seconds()) // 2
    return (*instrument, bucket_id, start, end, flow, spread, trades)


def insert(*buckets: tuple[Any, ...], table: str = "feature_vector_v1") -> None:
    with db.connect(settings().database("features")) as c:
        c.execute(f"insert into {table} values", buckets)


def written() -> list[dict[str, Any]]:
    with db.connect(settings().database("serving")) as c:
        return db.rows(c, "select * except (created_at) from predictions order by predicted_at, symbol, role")


def follow_flow(window: int, certainty: float) -> list[npt.NDArray[np.float64]]:
    """Weights of a model over CONTRACT that says up where the last `flow` is 1, with this logit, and down at -1."""
    weights = np.zeros((window * len(CONTRACT), 3))
    weights[(window - 1) * len(CONTRACT)] = -certainty, 0, certainty
    return [weights]


def make_model(
    folder: Path,
    weights: Sequence[npt.NDArray[Any]],
    *,
    features: Sequence[Column] = CONTRACT,
    window: int = 1,
    source: str = "feature_vector",
    version: int = 1,
    confidence: float | None = None,
    content: bytes | None = None,
) -> Path:
    """A network of these layers, tanh in between, over one flattened input; what is missing counts as 0.

    content: an ONNX file instead.
    """
    shape = [len(features)] if window == 1 else [window, len(features)]
    nodes = [
        helper.make_node("IsNaN", [INPUT], ["is_missing"]),
        helper.make_node("Where", ["is_missing", "zero", INPUT], ["clean"]),
        helper.make_node("Flatten", ["clean"], ["x0"], axis=1),
    ]
    for i, _ in enumerate(weights):
        nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"y{i}"]))
        if i < len(weights) - 1:
            nodes.append(helper.make_node("Tanh", [f"y{i}"], [f"x{i + 1}"]))
    nodes.append(helper.make_node("Softmax", [f"y{len(weights) - 1}"], [OUTPUT], axis=1))
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", 3])],
        [
            numpy_helper.from_array(np.float32(0), "zero"),
            *(numpy_helper.from_array(w.astype(np.float32), f"w{i}") for i, w in enumerate(weights)),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    content = content or model.SerializeToString()
    card = Card.unjudged(
        content,
        features,
        name=folder.name,
        type=ModelType.LOGISTIC if window == 1 else ModelType.STUDENT,
        source=source,
        feature_vector_version=version,
        window=window,
        confidence=confidence,
    )
    save_model(folder, card, content)
    return folder
