from __future__ import annotations

import numpy as np
import pytest

from python_udfs.training.metrics import calibration, direction, evaluate

CLASSES = [-1, 0, 1]


def test_metrics_of_four_rows_by_hand() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [0.6, 0.3, 0.1]])
    prior = np.full((4, 3), 1 / 3)
    m = evaluate(p, prior, np.array([-1, 0, 1, 1], dtype=np.int8), np.array([-2.0, 0.0, 3.0, 1.0]), CLASSES)
    assert m.rows == 4
    assert m.log_loss == pytest.approx(-np.log([0.7, 0.5, 0.8, 0.1]).mean())
    assert m.prior_log_loss == pytest.approx(np.log(3))
    assert m.accuracy == 0.75
    assert m.balanced_accuracy == pytest.approx((1 + 1 + 0.5) / 3)
    assert m.brier == pytest.approx(
        (
            (0.3**2 + 0.2**2 + 0.1**2)
            + (0.2**2 + 0.5**2 + 0.3**2)
            + (0.1**2 + 0.1**2 + 0.2**2)
            + (0.6**2 + 0.3**2 + 0.9**2)
        )
        / 4
    )
    # scores -0.6, 0.1, 0.7, -0.5 rank 1 3 4 2; returns rank 1 2 4 3: 1 - 6 * 2 / (4 * 15)
    assert m.ic == pytest.approx(0.8)
    assert m.auc == {"-1": 1.0, "0": 1.0, "1": pytest.approx(0.625)}
    assert m.class_shares == {"-1": 0.25, "0": 0.25, "1": 0.5}


def test_a_probability_of_zero_costs_much_and_not_infinity() -> None:
    p = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    m = evaluate(p, p, np.array([-1, 1], dtype=np.int8), np.array([-1.0, 1.0]), CLASSES)
    assert 5 < m.log_loss < 20
    assert m.ic is None, "a constant score ranks nothing"
    assert m.auc["0"] is None, "a class that did not come has no ranking"


def test_direction_ignores_the_middle_and_a_class_that_is_not_there() -> None:
    assert direction(np.array([[0.2, 0.5, 0.3]]), CLASSES) == pytest.approx([0.1])
    assert direction(np.array([[0.6, 0.4]]), [0, 1]) == pytest.approx([0.4])


def test_calibration_bins_are_equally_full_and_in_order() -> None:
    predicted = np.linspace(0, 1, 25)
    bins = calibration(predicted, predicted > 0.5, bins=5)
    assert [b.n for b in bins] == [5] * 5
    assert [b.observed for b in bins] == [0.0, 0.0, pytest.approx(0.4), 1.0, 1.0]
    assert bins[0].predicted == pytest.approx(predicted[:5].mean())
    assert len(calibration(predicted[:3], predicted[:3] > 0)) == 3, "never an empty bin"
