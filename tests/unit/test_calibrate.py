from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from sklearn.isotonic import IsotonicRegression
from statsmodels.api import Logit, add_constant

from python_udfs.errors import UserError
from python_udfs.scorer.card import INPUT, OUTPUT, ModelType
from python_udfs.training.baselines import fit
from python_udfs.training.calibrate import Calibrator, Method
from python_udfs.training.export import to_onnx
from python_udfs.training.metrics import evaluate, expected_calibration_error
from python_udfs.training.split import inner_folds, out_of_sample, walk_forward
from tests.oracles import evaluation as oracle

CLASSES = [-1, 0, 1]
METHODS = list(Method)


def overconfident(seed: int, n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities three times too sure in log odds, and labels drawn from the true ones."""
    rng = np.random.default_rng(seed)
    true = rng.dirichlet([3, 4, 3], size=n)
    said = true**3 / (true**3).sum(axis=1, keepdims=True)
    return said, np.array([rng.choice(CLASSES, p=row) for row in true], dtype=np.int8)


@pytest.mark.parametrize("method", METHODS)
def test_what_was_said_becomes_what_comes(method: Method) -> None:
    said, labels = overconfident(1)
    later, truth = overconfident(2)
    calibrated = Calibrator.fit(said, labels, CLASSES, method).transform(later)
    assert calibrated.sum(axis=1) == pytest.approx(np.ones(len(later)))
    assert expected_calibration_error(later, truth, CLASSES) > 0.15
    assert expected_calibration_error(calibrated, truth, CLASSES) < 0.04
    before, after = (
        evaluate(p, np.full_like(p, 1 / 3), truth, np.zeros(len(p)), CLASSES) for p in (later, calibrated)
    )
    assert after.log_loss < before.log_loss
    assert after.brier < before.brier


def test_isotonic_is_the_librarys_at_its_knots_and_pools_violators() -> None:
    said, labels = overconfident(3, 500)
    constants = Calibrator.fit(said, labels, CLASSES, Method.ISOTONIC).constants
    grid = np.linspace(0, 1, 257)
    for i, name in enumerate(CLASSES):
        theirs = IsotonicRegression(out_of_bounds="clip").fit(said[:, i], labels == name)
        assert constants[i] == pytest.approx(theirs.predict(grid))
        assert (np.diff(constants[i]) >= 0).all()
        order = np.argsort(said[:, i])
        pooled = oracle.pool_adjacent_violators((labels == name)[order].astype(float).tolist())
        assert theirs.predict(said[order, i]) == pytest.approx(pooled)


def test_platt_is_a_logistic_regression_on_the_log_odds() -> None:
    said, labels = overconfident(4)
    constants = Calibrator.fit(said, labels, CLASSES, Method.PLATT).constants
    for i, name in enumerate(CLASSES):
        odds = np.log(said[:, i] / (1 - said[:, i]))
        intercept, slope = Logit((labels == name).astype(float), add_constant(odds)).fit(disp=0).params
        assert constants[i] == pytest.approx([slope, intercept], abs=1e-3)


def test_platt_never_turns_a_class_around() -> None:
    said, labels = overconfident(5)
    calibrator = Calibrator.fit(1 - said, labels, CLASSES, Method.PLATT)
    assert (calibrator.constants[:, 0] == 0).all()
    assert calibrator.transform(said)[0] == pytest.approx([(labels == name).mean() for name in CLASSES])


@pytest.mark.parametrize("method", METHODS)
def test_a_class_that_did_not_come_keeps_its_probability(method: Method) -> None:
    said, labels = overconfident(6)
    labels[labels == 0] = 1
    calibrator = Calibrator.fit(said, labels, CLASSES, method)
    one = Calibrator(method, calibrator.constants[1:2]).transform(np.array([[0.3]]))
    assert one == pytest.approx(1), "alone it is everything"
    expected = np.linspace(0, 1, 257) if method is Method.ISOTONIC else [1, 0]
    assert calibrator.constants[1] == pytest.approx(expected)


@pytest.mark.parametrize("method", METHODS)
def test_one_class_only_or_one_row_changes_nothing(method: Method) -> None:
    p = np.array([[0.2, 0.5, 0.3]])
    assert Calibrator.fit(p, np.array([1], dtype=np.int8), CLASSES, method).transform(p).shape == (1, 3)
    many = np.tile(p, (50, 1))
    same = Calibrator.fit(many, np.full(50, 7, dtype=np.int8), CLASSES, method).transform(p)
    assert same == pytest.approx(p)


def test_no_rows_to_calibrate_on() -> None:
    with pytest.raises(UserError, match="no out-of-sample row"):
        Calibrator.fit(np.empty((0, 3)), np.empty(0, dtype=np.int8), CLASSES, Method.PLATT)


def test_a_row_that_every_class_denies_stays() -> None:
    calibrator = Calibrator(Method.ISOTONIC, np.zeros((2, 257)))
    assert calibrator.transform(np.array([[0.4, 0.6]])).tolist() == [[0.4, 0.6]]


@pytest.mark.parametrize("method", METHODS)
def test_constants_survive_json(method: Method) -> None:
    said, labels = overconfident(7, 300)
    calibrator = Calibrator.fit(said, labels, CLASSES, method)
    again = Calibrator.from_constants(json.loads(json.dumps(calibrator.to_constants())))
    assert (again.transform(said) == calibrator.transform(said)).all()


def run(model: bytes, rows: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([OUTPUT], {INPUT: rows})[0])


@pytest.mark.parametrize("method", METHODS)
def test_the_onnx_graph_says_the_same(method: Method) -> None:
    said, labels = overconfident(8, 800)
    calibrator = Calibrator.fit(said, labels, CLASSES, method)
    shape = [None, 3]
    graph = helper.make_graph(
        [helper.make_node("Identity", [INPUT], [OUTPUT])],
        "identity",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, shape)],
    )
    identity = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    onnx.checker.check_model(identity)
    rows = np.concatenate([overconfident(9, 500)[0], np.eye(3), np.zeros((1, 3))]).astype(np.float32)
    model = calibrator.append_to(identity.SerializeToString())
    assert run(model, rows) == pytest.approx(calibrator.transform(rows), abs=1e-5)
    assert model == calibrator.append_to(identity.SerializeToString()), "the same bytes again"


@pytest.mark.parametrize("model", [ModelType.LOGISTIC, ModelType.LIGHTGBM])
@pytest.mark.parametrize("method", METHODS)
def test_a_baseline_calibrated_inside_its_training_fold_exports(model: ModelType, method: Method) -> None:
    rng = np.random.default_rng(10)
    rows = rng.normal(size=(1500, 3)).astype(np.float32)
    labels = np.sign(np.round(rows[:, 0] + rng.normal(size=1500))).astype(np.int8)
    as_of = np.arange(1500)
    (outer,) = walk_forward(as_of, as_of + 2, folds=1, first_train_share=0.8)

    def predict(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        return fit(model, rows[train], labels[train], 7).probabilities(rows[test])

    seen, said = out_of_sample(inner_folds(outer, as_of, as_of + 2, folds=2), predict)
    assert np.isin(seen, outer.train).all()
    calibrator = Calibrator.fit(said, labels[seen], CLASSES, method)
    final = fit(model, rows[outer.train], labels[outer.train], 7)
    exported = run(calibrator.append_to(to_onnx(final, 3)), rows[outer.test])
    assert exported == pytest.approx(calibrator.transform(final.probabilities(rows[outer.test])), abs=1e-4)
