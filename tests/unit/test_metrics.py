from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr, variation
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from python_udfs.training.metrics import (
    block_ics,
    calibration,
    direction,
    evaluate,
    evaluate_by,
    expected_calibration_error,
    hit_rate,
    ic_ir,
    pearson_ic,
    rank_ic,
    time_blocks,
)
from python_udfs.training.significance import data_snooping
from tests.oracles import evaluation as oracle

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


def test_correlations_agree_with_scipy_ties_included() -> None:
    rng = np.random.default_rng(1)
    x, y = np.round(rng.normal(size=300), 1), np.round(rng.normal(size=300), 1)
    y += 0.2 * x
    assert pearson_ic(x, y) == pytest.approx(pearsonr(x, y).statistic)
    assert rank_ic(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert rank_ic(x, x**3) == 1.0


@pytest.mark.parametrize(
    ("score", "returns"),
    [
        ([], []),
        ([1.0], [1.0]),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]),
        ([1.0, 2.0, 3.0], [4.0, 4.0, 4.0]),
        ([1.0, np.nan, 3.0], [np.nan, 2.0, 3.0]),
    ],
)
def test_what_has_no_correlation_has_none(score: list[float], returns: list[float]) -> None:
    for ic in (pearson_ic, rank_ic):
        assert ic(np.array(score), np.array(returns)) is None


def test_a_row_without_a_return_has_no_part() -> None:
    score, returns = np.array([1.0, 2.0, 3.0, 9.0]), np.array([1.0, 3.0, 2.0, np.nan])
    assert rank_ic(score, returns) == pytest.approx(0.5)
    assert hit_rate(score, returns) == 1.0


def test_hit_rate_counts_where_both_take_a_side() -> None:
    assert hit_rate(np.array([1.0, -2, 0, 3, 1]), np.array([2.0, -1, 5, -1, 0])) == pytest.approx(2 / 3)
    assert hit_rate(np.zeros(3), np.ones(3)) is None
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 200))
    assert hit_rate(x, y) == pytest.approx(accuracy_score(y > 0, x > 0))


def test_probability_metrics_agree_with_sklearn_and_the_formula() -> None:
    rng = np.random.default_rng(3)
    p = rng.dirichlet([1, 2, 1], size=500)
    labels = np.array([rng.choice(CLASSES, p=row) for row in p], dtype=np.int8)
    m = evaluate(p, np.full((500, 3), 1 / 3), labels, rng.normal(size=500), CLASSES)
    assert m.brier == pytest.approx(brier_score_loss(labels, p, labels=CLASSES, scale_by_half=False))
    assert m.log_loss == pytest.approx(log_loss(labels, p, labels=CLASSES))
    for i, name in enumerate(CLASSES):
        assert m.auc[str(name)] == pytest.approx(mann_whitney_auc(p[:, i], labels == name))
    for bins in (1, 5, 10):
        assert expected_calibration_error(p, labels, CLASSES, bins) == pytest.approx(
            oracle.ece(p, labels, CLASSES, bins)
        )
    assert m.ece is not None and m.ece < 0.07, "drawn from what was said"
    assert expected_calibration_error(p[:, [2, 1, 0]], labels, CLASSES) > 0.1


def mann_whitney_auc(score: np.ndarray, happened: np.ndarray) -> float:
    pairs = [(a > b) + (a == b) / 2 for a in score[happened] for b in score[~happened]]
    return float(np.mean(pairs))


def test_certainty_falls_into_the_last_bin() -> None:
    p = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert expected_calibration_error(p, np.array([0, 0], dtype=np.int8), [0, 1]) == 0.5


def test_blocks_are_aligned_and_small_ones_have_no_ic() -> None:
    as_of = np.array([0, 59_999_999, 60_000_000, 150_000_000], dtype=np.int64)
    assert time_blocks(as_of, 60).tolist() == [0, 0, 1, 2]
    score = np.arange(7.0)
    ics = block_ics(score, np.array([0.0, 1, 2, 5, 4, 3, 9]), np.array([0, 0, 0, 4, 4, 4, 5]), least=3)
    assert ics.tolist() == [1.0, -1.0]


def test_ic_ir_is_the_mean_over_the_sample_deviation() -> None:
    ics = np.array([0.1, 0.3, -0.1, 0.2])
    assert ic_ir(ics) == pytest.approx(1 / variation(ics, ddof=1))
    assert ic_ir(ics[:1]) is None
    assert ic_ir(np.full(5, 0.2)) is None
    assert ic_ir(np.empty(0)) is None


def planted(seed: int, strength: float, n: int = 3000) -> tuple[np.ndarray, ...]:
    """Probabilities that know a share of the return, classes by its sign, five instruments at each instant."""
    rng = np.random.default_rng(seed)
    signal, noise = rng.normal(size=(2, n))
    returns = strength * signal + noise
    p = np.column_stack([1 / (1 + np.exp(signal)), 1 / (1 + np.exp(-signal))])
    labels = np.where(returns > 0, 1, -1).astype(np.int8)
    return p, np.full((n, 2), 0.5), labels, returns, np.arange(n) // 5 * 2_000_000


def test_intervals_hold_the_ic_and_exclude_zero_when_there_is_a_signal() -> None:
    p, prior, labels, returns, as_of = planted(4, 0.3)
    m = evaluate(p, prior, labels, returns, [-1, 1], as_of=as_of, block_s=60)
    assert m.ic_low is not None and m.ic is not None and m.ic_high is not None
    assert 0 < m.ic_low < m.ic < m.ic_high
    assert m.ic_high - m.ic_low == pytest.approx(2 * 1.96 / np.sqrt(3000), rel=0.4)
    assert m.ic_blocks == 20
    assert m.ic_ir_low is not None and m.ic_ir is not None and m.ic_ir_high is not None
    assert 0 < m.ic_ir_low < m.ic_ir < m.ic_ir_high
    ics = [
        spearmanr((p[:, 1] - p[:, 0])[a : a + 150], returns[a : a + 150]).statistic
        for a in range(0, 3000, 150)
    ]
    assert m.ic_ir == pytest.approx(np.mean(ics) / np.std(ics, ddof=1))


def test_on_shuffled_labels_every_metric_is_at_chance() -> None:
    p, prior, labels, returns, as_of = planted(5, 0.5)
    order = np.random.default_rng(6).permutation(len(labels))
    m = evaluate(p, prior, labels[order], returns[order], [-1, 1], as_of=as_of, block_s=60)
    assert m.ic_low is not None and m.ic_high is not None and m.ic_low < 0 < m.ic_high
    assert m.ic_ir_low is not None and m.ic_ir_high is not None and m.ic_ir_low < 0 < m.ic_ir_high
    assert m.ic_pearson == pytest.approx(0, abs=0.05)
    assert m.hit_rate == pytest.approx(0.5, abs=0.03)
    assert m.auc["1"] == pytest.approx(0.5, abs=0.03)
    assert m.balanced_accuracy == pytest.approx(0.5, abs=0.03)
    assert m.log_loss > m.prior_log_loss
    score = (p[:, 1] - p[:, 0])[:, None] * [1, -1, 2]
    blocks = time_blocks(as_of, 60)
    tried = np.array(
        [[rank_ic(s[blocks == b], returns[order][blocks == b]) for s in score.T] for b in range(20)]
    )
    snooping = data_snooping(tried.astype(np.float64))
    assert snooping.spa is not None and snooping.spa > 0.1
    assert snooping.reality_check is not None and snooping.reality_check > 0.1


def test_each_group_is_evaluated_alone() -> None:
    p, prior, labels, returns, as_of = planted(7, 0.3)
    regime = np.where(np.arange(len(labels)) < 2000, 4, -1)
    returns[regime == -1] *= -1
    both = evaluate_by(
        regime, probabilities=p, prior=prior, labels=labels, returns=returns, classes=[-1, 1], as_of=as_of
    )
    assert list(both) == [-1, 4]
    assert both[4].rows == 2000
    assert (both[4].ic or 0) > 0.15 and (both[-1].ic or 0) < -0.15
    assert both[4] == evaluate(
        p[:2000], prior[:2000], labels[:2000], returns[:2000], [-1, 1], as_of=as_of[:2000]
    )


@pytest.mark.parametrize("n", [1, 2])
def test_very_few_rows_have_what_they_define(n: int) -> None:
    p, prior, labels, returns, as_of = (a[:n] for a in planted(8, 0.3))
    m = evaluate(p, prior, labels, returns, [-1, 1], as_of=as_of)
    assert (m.rows, m.ic_blocks, m.ic_ir) == (n, 0, None)
    assert (m.ic is None) == (n == 1)
    if n == 1:
        assert m.ic_low is None


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    p = np.array([[0.5, 0.5], [0.6, 0.4]])
    # apart: one too modest, one too sure; together they would hide each other
    assert expected_calibration_error(p, np.array([0, 1], dtype=np.int8), [0, 1], bins=2) == pytest.approx(
        0.55
    )
