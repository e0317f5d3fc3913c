from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from python_udfs.errors import UserError
from python_udfs.scorer.card import Card, Column, contract_differences, load_model
from python_udfs.training.dataset import choose_features, parse_label

ONNX = b"not really a model"
LIVE = [
    Column(name="symbol", type="LowCardinality(String)"),
    Column(name="bucket_id", type="UInt64"),
    Column(name="a", type="Float64"),
    Column(name="b", type="Nullable(Float64)"),
    Column(name="c", type="UInt32"),
    Column(name="note", type="String"),
]


def card(**changes: Any) -> Card:
    now = datetime(2024, 8, 8, tzinfo=UTC)
    values = {"name": "m", "instruments": ["x:spot:AAA"], "created_at": now}
    return Card.unjudged(ONNX, [c for c in LIVE if c.name in "abc"], **(values | changes))


def folder(tmp_path: Path, edit: Callable[[dict[str, Any]], object] = lambda _: None) -> Path:
    written = json.loads(card().model_dump_json())
    edit(written)
    (tmp_path / "card.json").write_text(json.dumps(written))
    (tmp_path / "model.onnx").write_bytes(ONNX)
    return tmp_path


def test_a_card_survives_its_file(tmp_path: Path) -> None:
    assert load_model(folder(tmp_path)) == (card(), ONNX)


def test_a_changed_onnx_file_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path) / "model.onnx"
    path.write_bytes(ONNX + b"\0")
    with pytest.raises(
        UserError, match=r"model\.onnx is not the file its card describes: sha256 [0-9a-f]{12}…"
    ):
        load_model(tmp_path)


@pytest.mark.parametrize("missing", ["model.onnx", "card.json"])
def test_half_a_model_is_no_model(tmp_path: Path, missing: str) -> None:
    (folder(tmp_path) / missing).unlink()
    with pytest.raises(UserError, match=f"no model in .*{missing} is missing. Run `marketprism train`"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.pop("classes"), r"\[classes\]: Field required"),
        (lambda c: c.update(card_format=2), r"\[card_format\]: Input should be 1"),
        (lambda c: c.update(features=["b", "a", "c"]), "`features` and the names in `contract` differ"),
        (lambda c: c.update(version="0" * 12), "`version` is not the start of `onnx_sha256`"),
        (lambda c: c.update(surprise=1), r"\[surprise\]: Extra inputs are not permitted"),
    ],
)
def test_a_card_that_was_edited_names_the_field(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_model(folder(tmp_path, edit))


def test_a_card_that_is_no_json(tmp_path: Path) -> None:
    (folder(tmp_path) / "card.json").write_text("{")
    with pytest.raises(UserError, match=r"card\.json \[card\]: Invalid JSON"):
        load_model(tmp_path)


def test_the_live_row_of_training_fits() -> None:
    assert contract_differences(card(), LIVE) == []


def test_columns_that_the_model_does_not_use_may_change() -> None:
    live = [
        Column(name="note", type="UInt8"),
        *LIVE[:2],
        LIVE[2],
        Column(name="new", type="Float64"),
        *LIVE[3:5],
    ]
    assert contract_differences(card(), live) == []


def test_a_renamed_column_is_named() -> None:
    live = [Column(name="bb", type=column.type) if column.name == "b" else column for column in LIVE]
    assert contract_differences(card(), live) == ["b Nullable(Float64) is missing"]


def test_a_changed_type_is_named_with_both_types() -> None:
    live = [Column(name="b", type="Float64") if column.name == "b" else column for column in LIVE]
    assert contract_differences(card(), live) == ["b is Float64, was Nullable(Float64)"]


def test_another_order_is_named() -> None:
    live = [*LIVE[:2], LIVE[4], LIVE[3], LIVE[2]]
    assert contract_differences(card(), live) == ["the order changed: c where a was, a where c was"]


def test_everything_at_once() -> None:
    live = [Column(name="c", type="UInt64"), LIVE[2]]
    assert contract_differences(card(), live) == [
        "b Nullable(Float64) is missing",
        "c is UInt64, was UInt32",
        "the order changed: c where a was, a where c was",
    ]


def test_features_come_in_the_order_of_the_table() -> None:
    assert [column.name for column in choose_features(["c", "a"], LIVE, 1)] == ["a", "c"]


@pytest.mark.parametrize("name", ["bucket_id", "note", "symbol", "label_ret_ps_3", "nothing"])
def test_what_is_no_numeric_feature_is_refused(name: str) -> None:
    with pytest.raises(
        UserError, match=f"not a numeric feature of feature_vector_v1: {name}. Choose from a, b, c"
    ):
        choose_features(["a", name], LIVE, 1)


@pytest.mark.parametrize("chosen", [[], ["a", "a"]])
def test_each_feature_once(chosen: list[str]) -> None:
    with pytest.raises(UserError, match="name each feature once, and at least one"):
        choose_features(chosen, LIVE, 1)


@pytest.mark.parametrize(
    ("column", "companions"),
    [
        ("label_cls_3", ("label_ret_ps_3", "label_known_at_3", "3 buckets")),
        ("label_cls_60s", ("label_ret_60s", "label_known_at_60s", "60 s")),
    ],
)
def test_a_label_knows_its_companions(column: str, companions: tuple[str, str, str]) -> None:
    label = parse_label(column, [column])
    assert (label.return_column, label.known_at_column, label.horizon) == companions


@pytest.mark.parametrize("column", ["label_cls_7", "label_ret_ps_3", "mid_close"])
def test_an_unknown_label_lists_those_there_are(column: str) -> None:
    available = ["mid_close", "label_ret_ps_3", "label_cls_3", "label_cls_60s"]
    with pytest.raises(UserError, match=f"no class label '{column}': there is label_cls_3, label_cls_60s"):
        parse_label(column, available)
