from __future__ import annotations

import numpy as np
import pytest
from arch.bootstrap import optimal_block_length
from scipy.stats import spearmanr, ttest_1samp
from statsmodels.stats.multitest import multipletests

from python_udfs.training.metrics import rank_ic
from python_udfs.training.significance import (
    benjamini_hochberg,
    block_length,
    block_means,
    bootstrap_interval,
    data_snooping,
    feature_tests,
    long_run_variance,
)
from tests.oracles import evaluation as oracle


def autoregressive(rng: np.random.Generator, t: int, phi: float) -> np.ndarray:
    x = rng.normal(size=t)
    for i in range(1, t):
        x[i] += phi * x[i - 1]
    return x


def test_block_length_is_the_librarys_and_grows_with_memory() -> None:
    rng = np.random.default_rng(1)
    white, slow = rng.normal(size=2000), autoregressive(rng, 2000, 0.9)
    assert block_length(white) < 5
    assert block_length(slow) > 20
    assert block_length(slow) == np.ceil(optimal_block_length(slow)["stationary"].iloc[0])
    middle = block_length(np.column_stack([white, slow, slow, np.zeros(2000)]))
    assert middle == block_length(slow), "constant series ask for none"
    assert block_length(np.column_stack([white, white, slow])) == block_length(white)


@pytest.mark.parametrize("values", [[], [1.0], [2.0] * 50])
def test_series_without_memory_to_measure_ask_for_no_blocks(values: list[float]) -> None:
    assert block_length(np.array(values)) == 1


def test_the_interval_of_a_mean_of_independent_values_is_the_normal_one() -> None:
    x = np.random.default_rng(2).normal(3, 2, size=1000)
    low, high = bootstrap_interval(np.mean, x, length=1, reps=4000) or (np.nan, np.nan)
    half = 1.96 * x.std() / np.sqrt(1000)
    assert (low, high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.15 * half)


def test_the_interval_of_a_mean_with_memory_covers_what_an_independent_one_misses() -> None:
    rng = np.random.default_rng(3)
    covered = {1: 0, 0: 0}
    for _ in range(60):
        x = autoregressive(rng, 600, 0.8)
        for length in covered:
            low, high = bootstrap_interval(np.mean, x, length=length or block_length(x), reps=200) or (1, -1)
            covered[length] += low <= 0 <= high
    assert covered[1] < 45, "rows taken one by one pretend to know more than they do"
    assert covered[0] >= 50


def test_no_interval_without_data_or_statistic() -> None:
    assert bootstrap_interval(np.mean, np.array([1.0]), length=1) is None
    assert bootstrap_interval(lambda _: np.nan, np.arange(9.0), length=1) is None


def test_long_run_variance_by_its_formula() -> None:
    x = np.column_stack([autoregressive(np.random.default_rng(4), 300, phi) for phi in (0.0, 0.7)])
    assert long_run_variance(x, 6) == pytest.approx([oracle.long_run_variance(c, 6) for c in x.T])


def test_reality_check_by_its_formula() -> None:
    rng = np.random.default_rng(5)
    gain = rng.normal([0, 0, 0, 0.05, 0.2], size=(100, 5))
    ours = data_snooping(gain, length=3, reps=4000)
    expected = oracle.reality_check(gain, 3, 1500, 1)
    assert 0.05 < expected < 0.5
    assert ours.reality_check == pytest.approx(expected, abs=0.04)
    assert ours.best == gain.mean(axis=0).argmax()


def test_an_edge_is_found_among_many_that_have_none_and_luck_is_not() -> None:
    rng = np.random.default_rng(1)
    luck = rng.normal(size=(400, 30))
    found = data_snooping(luck)
    assert found.spa is not None and found.spa > 0.1
    assert found.reality_check is not None and found.reality_check > 0.1
    # the best of thirty looks good alone
    assert found.best is not None
    assert ttest_1samp(luck[:, found.best], 0, alternative="greater").pvalue < 0.05
    edge = data_snooping(np.column_stack([luck, rng.normal(0.25, 1, size=400)]))
    assert (edge.best, edge.spa) == (30, pytest.approx(0, abs=0.01))


def test_luck_among_many_is_not_taken_for_more() -> None:
    """100 rules without skill: with the longest block that one of them asks for, 4 of 10 passed."""
    rng = np.random.default_rng(8)
    shared = rng.normal(size=(60, 140, 1))
    found = [data_snooping(rng.normal(size=(140, 100)) + x, reps=100, seed=i) for i, x in enumerate(shared)]
    assert np.mean([x.spa is not None and x.spa < 0.05 for x in found]) < 0.2
    assert np.mean([x.reality_check is not None and x.reality_check < 0.05 for x in found]) < 0.2


def test_p_values_are_uniform_when_nothing_beats_the_benchmark() -> None:
    rng = np.random.default_rng(7)
    p = [data_snooping(rng.normal(size=(60, 4)), length=1, reps=100).spa for _ in range(100)]
    assert 0.01 <= np.mean(np.array(p) < 0.1) <= 0.2
    assert 0.4 < np.mean(np.array(p)) < 0.6


def test_the_spa_test_does_not_care_for_a_models_scale_and_a_bad_model_does_not_hide_a_good_one() -> None:
    rng = np.random.default_rng(8)
    gain = rng.normal([0.18, 0, 0], size=(300, 3))
    wild = gain * [1, 1, 1000]
    assert data_snooping(wild).spa == data_snooping(gain).spa
    assert (data_snooping(gain).spa or 0) < 0.05 < (data_snooping(wild).reality_check or 0)


def test_against_a_benchmark_only_the_difference_counts() -> None:
    rng = np.random.default_rng(9)
    benchmark = rng.normal(size=200)
    gain = rng.normal(size=(200, 2))
    assert data_snooping(gain + benchmark[:, None], benchmark).spa == pytest.approx(
        data_snooping(gain).spa or 0
    )


def test_snooping_edges() -> None:
    rng = np.random.default_rng(10)
    flat = data_snooping(np.zeros((50, 2)))
    assert (flat.spa, flat.reality_check, flat.tested) == (1.0, 1.0, 0)
    short = data_snooping(rng.normal(size=(3, 2)))
    assert (short.spa, short.reality_check, short.tested) == (None, None, 2)
    assert data_snooping(np.empty((0, 2))).best is None
    one = data_snooping(np.column_stack([rng.normal(size=60), np.zeros(60)]))
    assert one.tested == 1
    with pytest.raises(ValueError, match="finite"):
        data_snooping(np.array([[1.0], [np.nan]]))


def test_benjamini_hochberg_against_statsmodels_and_the_step_up_rule() -> None:
    rng = np.random.default_rng(11)
    for _ in range(20):
        p = np.concatenate([rng.random(15), rng.random(5) ** 6])
        adjusted, found = benjamini_hochberg(p, 0.1)
        reject, expected, *_ = multipletests(p, 0.1, method="fdr_bh")
        assert adjusted == pytest.approx(expected)
        assert found.tolist() == reject.tolist()
        assert set(np.flatnonzero(found)) == oracle.benjamini_hochberg(p.tolist(), 0.1)


def test_a_feature_without_a_test_counts_for_nothing() -> None:
    adjusted, found = benjamini_hochberg(np.array([0.01, np.nan, 0.04]))
    assert adjusted == pytest.approx([0.02, np.nan, 0.04], nan_ok=True)
    assert found.tolist() == [True, False, True]
    assert benjamini_hochberg(np.array([np.nan]))[1].tolist() == [False]


def test_features_are_found_by_the_ics_of_blocks() -> None:
    rng = np.random.default_rng(12)
    n, k = 2000, 40
    features = rng.normal(size=(n, k))
    returns = 0.2 * features[:, 3] - 0.2 * features[:, 7] + rng.normal(size=n)
    features[:, 1] = 4.0  # constant
    features[rng.random(n) < 0.3, 3] = np.nan
    features[5, 0] = np.inf
    blocks = np.arange(n) // 100
    found = feature_tests(features, returns, blocks)
    assert np.flatnonzero(found.discovered).tolist() == [3, 7]
    assert found.ic[3] > 0 > found.ic[7]
    assert (found.blocks[1], np.isnan(found.p[1])) == (0, True)
    for j in (0, 3, 9):
        ics = [
            spearmanr(features[rows, j], returns[rows]).statistic
            for rows in (np.flatnonzero((blocks == b) & np.isfinite(features[:, j])) for b in range(20))
        ]
        assert found.ic[j] == pytest.approx(np.mean(ics))
        assert found.p[j] == pytest.approx(ttest_1samp(ics, 0).pvalue)


def test_one_block_or_small_blocks_test_no_feature() -> None:
    x = np.random.default_rng(13).normal(size=(30, 2))
    assert np.isnan(feature_tests(x, x[:, 0], np.zeros(30, dtype=np.int64)).p).all()
    assert np.isnan(feature_tests(x, x[:, 0], np.arange(30) // 5).p).all()


def test_feature_ics_are_those_of_the_metric() -> None:
    rng = np.random.default_rng(14)
    x, y = np.round(rng.normal(size=(40, 1)), 1), np.round(rng.normal(size=40), 1)
    found = feature_tests(x, y, np.arange(40) // 20)
    assert found.ic[0] == pytest.approx(np.mean([rank_ic(x[:20, 0], y[:20]), rank_ic(x[20:, 0], y[20:])]))


def test_means_of_blocks_by_hand() -> None:
    means = block_means(np.array([[1.0, 2], [3, 4], [5, 9]]), np.array([7, 7, -1]))
    assert means.tolist() == [[5, 9], [2, 3]]


def test_shuffled_labels_leave_no_model_better_than_the_prior() -> None:
    """Log-likelihood gains over the prior of models that knew the labels before these were shuffled."""
    rng = np.random.default_rng(15)
    n = 3000
    logit = rng.normal(size=n)
    labels = rng.random(n) < 1 / (1 + np.exp(-logit))
    said = 1 / (1 + np.exp(-np.outer(logit, [0.2, 0.5, 1.0])))

    def snooping(truth: np.ndarray) -> float | None:
        gain = np.log(np.where(truth[:, None], said, 1 - said)) - np.log(0.5)
        return data_snooping(block_means(gain, np.arange(n) // 50)).spa

    assert snooping(labels) == 0
    assert (snooping(rng.permutation(labels)) or 0) > 0.5
