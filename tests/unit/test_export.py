from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from python_udfs.errors import UserError
from python_udfs.scorer.card import INPUT, OUTPUT, Column, ModelType, load_model
from python_udfs.training.baselines import _snap_to_float32, fit
from python_udfs.training.dataset import Dataset, Label
from python_udfs.training.export import parity, parity_rows, to_onnx, write_folder
from python_udfs.training.train import BASELINES, train

FEATURES = 4
BOTH = pytest.mark.parametrize("model", BASELINES)


def rows(n: int = 1500, seed: int = 0) -> npt.NDArray[np.float32]:
    """Columns of very different size; the first two have holes, the last never."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, FEATURES)) * [1, 1e-7, 1e6, 10]).astype(np.float32)
    x[:, :2][rng.random((n, 2)) < 0.2] = np.nan
    return x


def labels(x: npt.NDArray[np.float32], classes: int = 3, seed: int = 1) -> npt.NDArray[np.int8]:
    """Noisy classes that follow the first and third column."""
    signal = np.nan_to_num(x[:, 0]) + x[:, 2] / 1e6 + np.random.default_rng(seed).normal(size=len(x))
    return np.where(signal > 0.5, 1, np.where(signal < -0.5, -1, 0 if classes == 3 else -1)).astype(np.int8)


def run(onnx: bytes, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    result: npt.NDArray[np.float32] = ort.InferenceSession(onnx).run([OUTPUT], {INPUT: x})[0]
    return result


def dataset(n: int = 1500, seed: int = 0) -> Dataset:
    x = rows(n, seed)
    y = labels(x)
    return Dataset(
        label=Label("label_cls_3", "3"),
        contract=[Column(name=name, type="Nullable(Float64)") for name in "abcd"],
        features=x,
        classes=y,
        returns=y + 0.1 * np.random.default_rng(5).normal(size=n),
        as_of=np.arange(n, dtype=np.int64) * 1_000_000,
        known_at=np.arange(n, dtype=np.int64) * 1_000_000 + 3_000_000,
        instrument=np.zeros(n, dtype=np.int64),
        instruments=["x:spot:AAA"],
    )


def thresholds(booster: lgb.Booster) -> npt.NDArray[np.float64]:
    lines = [line for line in booster.model_to_string().splitlines() if line.startswith("threshold=")]
    return np.array([float(value) for line in lines for value in line.removeprefix("threshold=").split()])


@BOTH
@pytest.mark.parametrize("classes", [2, 3])
def test_onnx_equals_the_framework_with_holes_everywhere(model: ModelType, classes: int) -> None:
    x = rows()
    fitted = fit(model, x, labels(x, classes), seed=7)
    onnx = to_onnx(fitted, FEATURES)
    compared = parity_rows(rows(800, seed=9))
    assert np.isnan(compared).any(axis=0).all(), "each column is missing somewhere, the never missing one too"
    assert np.isnan(compared[-1]).all()
    assert parity(fitted, onnx, compared) < 1e-5
    out = run(onnx, compared)
    assert out.dtype == np.float32
    assert out.shape == (len(compared), classes)
    assert np.allclose(out.sum(axis=1), 1, atol=1e-5)
    assert np.array_equal(run(onnx, compared[:1]), out[:1]), "a batch of one is no other model"


@BOTH
def test_a_column_that_was_always_missing(model: ModelType) -> None:
    x = rows()
    x[:, 1] = np.nan
    fitted = fit(model, x, labels(x), seed=7)
    assert parity(fitted, to_onnx(fitted, FEATURES), parity_rows(rows())) < 1e-5


@BOTH
def test_the_same_rows_and_seed_give_the_same_bytes(model: ModelType) -> None:
    x = rows()
    first, second = (to_onnx(fit(model, x, labels(x), seed=7), FEATURES) for _ in range(2))
    assert first == second


def test_a_threshold_between_neighbouring_floats_keeps_them_apart() -> None:
    high = np.float32(1.0000002)
    low = np.nextafter(high, np.float32(0))
    x = np.repeat(np.array([[low], [high]], dtype=np.float32), 200, axis=0)
    fitted = fit(ModelType.LIGHTGBM, x, np.repeat([-1, 1], 200).astype(np.int8), seed=7)
    both = np.array([[low], [high]], dtype=np.float32)
    assert fitted.probabilities(both)[:, 1] == pytest.approx([0.0, 1.0], abs=0.1)
    assert parity(fitted, to_onnx(fitted, 1), both) < 1e-5


def test_lowered_thresholds_change_no_decision() -> None:
    x = rows()
    data = lgb.Dataset(x, labels(x) + 1)
    plain = lgb.train({"objective": "multiclass", "num_class": 3, "verbosity": -1}, data, num_boost_round=20)
    lowered = _snap_to_float32(plain)
    before, after = thresholds(plain), thresholds(lowered)
    assert (after == after.astype(np.float32)).all()
    assert (after <= before).all()
    assert (after < before).any()
    assert np.array_equal(plain.predict(x), lowered.predict(x))


def test_the_export_of_another_model_is_refused() -> None:
    x = rows()
    one = fit(ModelType.LOGISTIC, x, labels(x), seed=7)
    other = fit(ModelType.LOGISTIC, x, -labels(x), seed=7)
    with pytest.raises(UserError, match="differs from the trained one by"):
        parity(one, to_onnx(other, FEATURES), x[:10])


def test_a_wild_value_counts_no_more_than_the_largest_usual_one() -> None:
    x = rows()
    fitted = fit(ModelType.LOGISTIC, x, labels(x), seed=7)
    usual, wild = x[:1].copy(), x[:1].copy()
    usual[0, 2], wild[0, 2] = np.quantile(x[:, 2], 0.9999), 1e30
    assert np.array_equal(fitted.probabilities(usual), fitted.probabilities(wild))
    assert np.allclose(run(to_onnx(fitted, FEATURES), wild), fitted.probabilities(wild), atol=1e-6)


@BOTH
def test_one_class_only(model: ModelType) -> None:
    with pytest.raises(UserError, match="all 50 training rows have the class 0: nothing to learn"):
        fit(model, rows(50), np.zeros(50, dtype=np.int8), seed=7)


@BOTH
def test_training_finds_what_was_planted_and_writes_a_model_that_loads(
    model: ModelType, tmp_path: Path
) -> None:
    card = train(dataset(), model, tmp_path / "m", folds=3)
    assert card.pooled.log_loss < card.pooled.prior_log_loss - 0.1
    assert card.pooled.ic is not None
    assert card.pooled.ic > 0.4
    # 3 s of label on rows a second apart: the two before the cut are not known at it
    assert [fold.purged_rows for fold in card.folds] == [2, 2, 2]
    assert [fold.train_rows for fold in card.folds] == [598, 898, 1198]
    loaded, onnx = load_model(tmp_path / "m")
    assert loaded == card
    assert run(onnx, rows(3)).shape == (3, 3)
    evaluation = json.loads((tmp_path / "m" / "evaluation.json").read_text())
    assert evaluation["rows"]["as_of_us"][0] == 600_000_000
    assert {len(column) for column in evaluation["rows"].values()} == {900}
    assert evaluation["rows"]["fold"][::300] == [1, 2, 3]


@BOTH
def test_training_finds_nothing_in_noise(model: ModelType, tmp_path: Path) -> None:
    data = dataset()
    order = np.random.default_rng(3).permutation(len(data.as_of))
    card = train(
        replace(data, classes=data.classes[order], returns=data.returns[order]),
        model,
        tmp_path / "m",
        folds=3,
    )
    assert card.pooled.log_loss > card.pooled.prior_log_loss - 0.01
    assert card.pooled.ic is not None
    assert abs(card.pooled.ic) < 0.1


def test_training_again_replaces_the_whole_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "m", {"old": b"1", "both": b"1"})
    write_folder(tmp_path / "m", {"new": b"2", "both": b"2"})
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} == {
        "new": b"2",
        "both": b"2",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["m"], "nothing is left beside it"
