from __future__ import annotations

import numpy as np
import pytest

from python_udfs.errors import UserError
from python_udfs.scorer.card import ModelType
from python_udfs.training.baselines import Logistic, Trees, fit
from python_udfs.training.explain import (
    coverage,
    gradient_attributions,
    linear_attributions,
    logistic_attributions,
    tree_attributions,
)
from python_udfs.training.metrics import direction


def market(classes: int, n: int = 800) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(n, 4)).astype(np.float32)
    y = rows[:, 0] - 0.5 * rows[:, 2] + rng.normal(scale=0.5, size=n)
    labels = np.sign(np.round(y)) if classes == 3 else np.where(y > 0, 1, -1)
    rows[::50, 1] = np.nan
    return rows, labels.astype(np.int8)


def log_odds(model: Logistic | Trees, rows: np.ndarray) -> np.ndarray:
    p = model.probabilities(rows)
    return np.log(p[:, model.classes.index(1)] / p[:, model.classes.index(-1)])


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_attributions_add_up_to_the_log_odds(classes: int) -> None:
    rows, labels = market(classes)
    model = fit(ModelType.LOGISTIC, rows, labels, 7)
    assert isinstance(model, Logistic)
    total = logistic_attributions(model, rows).sum(axis=1)
    rest = log_odds(model, rows) - total
    assert rest == pytest.approx(np.full(len(rows), rest[0]), abs=1e-9), "all but the intercept"


@pytest.mark.parametrize("classes", [2, 3])
def test_tree_attributions_add_up_to_the_log_odds_and_are_shapley_values(classes: int) -> None:
    rows, labels = market(classes)
    model = fit(ModelType.LIGHTGBM, rows, labels, 7)
    assert isinstance(model, Trees)
    attributions = tree_attributions(model, rows)
    rest = log_odds(model, rows) - attributions.sum(axis=1)
    assert rest == pytest.approx(np.full(len(rows), rest[0]), abs=1e-6), "all but the expected score"
    assert attributions.shape == rows.shape
    strength = np.abs(attributions).sum(axis=0)
    assert strength.argsort()[::-1][:2].tolist() == [0, 2]
    assert coverage(attributions, 2) == pytest.approx(strength[[0, 2]].sum() / strength.sum())
    assert direction(model.probabilities(rows), model.classes) @ attributions[:, 0] > 0


def test_linear_attributions_by_hand() -> None:
    found = linear_attributions(
        np.array([2.0, -1.0]), np.array([[3.0, 4.0], [1.0, 1.0]]), np.array([1.0, 1.0])
    )
    assert found.tolist() == [[4, -3], [0, 0]]


def test_gradient_times_input_sums_over_levels_and_time() -> None:
    gradients, inputs = np.arange(24.0).reshape(2, 3, 2, 2), np.full((2, 3, 2, 2), 2.0)
    expected = [
        [2 * sum(range(0, 12, 2)), 2 * sum(range(1, 12, 2))],
        [2 * sum(range(12, 24, 2)), 2 * sum(range(13, 24, 2))],
    ]
    assert gradient_attributions(gradients, inputs).tolist() == expected
    assert gradient_attributions(np.array([[1.0, 2.0]]), np.array([[3.0, -1.0]])).tolist() == [[3, -2]]


# sums of sizes are 9, 4 and 3 of 16; the largest of a row is 4 of 8 and 5 of 8
ATTRIBUTIONS = np.array([[-4.0, 2.0, 2.0], [5.0, -2.0, 1.0], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("top", "per_row", "expected"),
    [
        (1, False, 9 / 16),
        (2, False, 13 / 16),
        (3, False, 1.0),
        (9, False, 1.0),
        (1 / 3, False, 9 / 16),
        (0.34, False, 13 / 16),
        (1.0, False, 1.0),
        (1, True, (4 / 8 + 5 / 8) / 2),
        (2, True, (6 / 8 + 7 / 8) / 2),
    ],
)
def test_coverage_by_hand(top: float, per_row: bool, expected: float) -> None:
    assert coverage(ATTRIBUTIONS, top, per_row=per_row) == pytest.approx(expected)


def test_coverage_of_nothing() -> None:
    assert coverage(np.zeros((3, 2)), 1) is None
    assert coverage(np.empty((0, 2)), 1) is None
    assert coverage(np.array([[3.0]]), 1) == 1


@pytest.mark.parametrize("top", [0, -1, 0.0, 1.5])
def test_an_explanation_names_some_inputs(top: float) -> None:
    with pytest.raises(UserError, match="names at least one input"):
        coverage(ATTRIBUTIONS, top)


def test_an_attribution_that_is_no_number() -> None:
    with pytest.raises(UserError, match="not a finite number"):
        coverage(np.array([[np.nan, 1.0]]), 1)
