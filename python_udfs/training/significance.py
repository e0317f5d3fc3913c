"""What could be luck: block-bootstrap intervals, data snooping over all tried models, false discoveries.

References: Politis and Romano (1994), The stationary bootstrap; Patton, Politis and White (2009) for its block
length; White (2000), A reality check for data snooping; Hansen (2005), A test for superior predictive ability;
Benjamini and Hochberg (1995), Controlling the false discovery rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from arch.bootstrap import SPA, StationaryBootstrap, optimal_block_length
from scipy.signal import correlate
from scipy.stats import false_discovery_control, rankdata, ttest_1samp

Floats = npt.NDArray[np.float64]

MIN_PERIODS: Final = 8
_SEED: Final = 7


def block_length(values: npt.NDArray[np.floating[Any]]) -> int:
    """Mean block length of the stationary bootstrap for series in time order, [t] or [t, k]: what half of the k ask for.

    At least 1 and at most a quarter of t; constant series ask for none. Not the longest: of 200 noisy estimates that is
    mostly a quarter of t, with which a long-run variance is too small.
    """
    t = len(values)
    if t < MIN_PERIODS:
        return 1
    series = np.asarray(values, dtype=np.float64).reshape(t, -1)
    series = series[:, np.ptp(series, axis=0) > 0]
    if not series.shape[1]:
        return 1
    best = optimal_block_length(series)["stationary"].to_numpy()
    return int(min(max(1, math.ceil(np.nan_to_num(np.nanmedian(best), nan=1.0))), max(1, t // 4)))


def bootstrap_interval(
    statistic: Callable[..., float],
    *series: npt.NDArray[np.floating[Any]],
    length: int,
    confidence: float = 0.95,
    reps: int = 500,
    seed: int = _SEED,
) -> tuple[float, float] | None:
    """Percentile interval of a statistic of series in time order, by the stationary bootstrap.

    Args:
        statistic: of the resampled series; NaN where a resample has none.
        series: one or more arrays with t rows, resampled together.
        length: mean block length, see `block_length`.

    Returns:
        None when t < 2 or more than half of the resamples have no statistic.
    """
    if len(series[0]) < 2:
        return None
    samples = StationaryBootstrap(length, *series, seed=seed)
    drawn = samples.apply(lambda *drawn: np.array([statistic(*drawn)]), reps)[:, 0]
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) <= reps / 2:
        return None
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def block_means(values: Floats, blocks: npt.NDArray[np.int64]) -> Floats:
    """[t, k]: the mean of rows [n, k] in each block, in the order of their ids [n].

    With values like each model's log-likelihood less that of the prior: what `data_snooping` tests.
    """
    _, of = np.unique(blocks, return_inverse=True)
    counts = np.bincount(of)
    return np.stack([np.bincount(of, column, minlength=len(counts)) / counts for column in values.T], axis=1)


@dataclass(frozen=True, slots=True)
class Snooping:
    """P-values of "no model beats the benchmark", None with fewer than MIN_PERIODS periods.

    `spa`: Hansen's consistent one on studentised differences, between `spa_lower` (liberal) and `spa_upper`
    (conservative). `reality_check`: White's, on the raw differences.
    """

    spa: float | None
    spa_lower: float | None
    spa_upper: float | None
    reality_check: float | None
    best: int | None  # the model with the highest mean
    tested: int  # models whose difference varies; the others cannot be told from the benchmark
    length: int  # mean length of a block, periods


def data_snooping(
    performance: Floats,
    benchmark: Floats | None = None,
    *,
    length: int | None = None,
    reps: int = 1000,
    seed: int = _SEED,
) -> Snooping:
    """Tests the best of all tried models against luck.

    Args:
        performance: [t, k] of every configuration that was tried, more is better, in time order.
        benchmark: [t]; None: zero.
        length: mean block length; None: `block_length` of the differences.

    Raises:
        ValueError: a value is not finite.
    """
    gain = performance - (np.zeros(len(performance)) if benchmark is None else benchmark)[:, None]
    if not np.isfinite(gain).all():
        raise ValueError("performance must be finite: a period without a position earned 0")
    t, k = gain.shape
    varies = np.ptp(gain, axis=0) > 0 if t else np.zeros(k, dtype=np.bool_)
    length = length or block_length(gain)
    best = int(gain.mean(axis=0).argmax()) if t and k else None
    if t < MIN_PERIODS or not varies.any():
        certain = None if t < MIN_PERIODS else 1.0
        return Snooping(certain, certain, certain, certain, best, int(varies.sum()), length)
    gain = gain[:, varies]

    def test(differences: Floats) -> dict[str, float]:
        spa = SPA(np.zeros(t), -differences, block_size=length, reps=reps, studentize=False, seed=seed)
        spa.compute()
        return {str(name): float(p) for name, p in spa.pvalues.items()}

    # arch 8 computes standard deviations and never divides by them: the series are studentised here
    studentised = test(gain / np.sqrt(long_run_variance(gain, length)))
    return Snooping(
        spa=studentised["consistent"],
        spa_lower=studentised["lower"],
        spa_upper=studentised["upper"],
        reality_check=test(gain)["upper"],
        best=best,
        tested=gain.shape[1],
        length=length,
    )


def long_run_variance(values: Floats, length: float) -> Floats:
    """[k]: t times the variance of the mean of [t, k] under the stationary bootstrap (Politis and Romano)."""
    t = len(values)
    centred = values - values.mean(axis=0)
    lag = np.arange(t)
    keep = 1 - 1 / length
    weight = np.where(lag > 0, 2.0, 1.0) * ((1 - lag / t) * keep**lag + lag / t * keep ** (t - lag))
    weight[0] = 1.0
    covariance = np.stack([correlate(x, x, method="fft")[t - 1 :] for x in centred.T], axis=1) / t
    # positive in theory: rounding alone could make it zero
    return np.asarray(np.maximum(weight @ covariance, np.finfo(float).tiny), dtype=np.float64)


def benjamini_hochberg(
    p_values: Floats, rate: float = 0.05
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Adjusted p-values [k], and which of k stay at that false discovery rate. NaN (no test) stays NaN."""
    adjusted = np.full(len(p_values), np.nan)
    tested = ~np.isnan(p_values)
    if tested.any():
        adjusted[tested] = false_discovery_control(p_values[tested])
    return adjusted, adjusted <= rate


@dataclass(frozen=True, slots=True)
class FeatureTests:
    """Of each of k features; NaN where fewer than two blocks have an IC."""

    ic: npt.NDArray[np.float64]  # mean rank IC of the blocks
    p: npt.NDArray[np.float64]  # two-sided t-test of the blocks' ICs against zero
    adjusted: npt.NDArray[np.float64]
    discovered: npt.NDArray[np.bool_]
    blocks: npt.NDArray[np.int64]  # that have an IC


def feature_tests(
    features: npt.NDArray[np.floating[Any]],
    returns: Floats,
    blocks: npt.NDArray[np.int64],
    *,
    rate: float = 0.05,
    least: int = 10,
) -> FeatureTests:
    """Which features predict the return, Benjamini-Hochberg over all of them.

    The blocks' ICs are taken as independent (Fama and MacBeth 1973): make blocks several horizons long.

    Args:
        features: [n, k]; a missing value (not finite) leaves the row out for that feature.
        returns: [n]; the same.
        blocks: [n] ids, see `metrics.time_blocks`.
        rate: of false discoveries.
        least: rows that a block must have.
    """
    ids = np.unique(blocks)
    ics = np.full((len(ids), features.shape[1]), np.nan)
    for i, block in enumerate(ids):
        rows = blocks == block
        ics[i] = _rank_ics(features[rows].astype(np.float64), returns[rows], least)
    counts = np.isfinite(ics).sum(axis=0)
    ic, p = np.full((2, features.shape[1]), np.nan)
    for j in np.flatnonzero(counts >= 2):
        of_feature = ics[np.isfinite(ics[:, j]), j]
        ic[j] = of_feature.mean()
        # blocks that all have one IC leave nothing to test against
        p[j] = ttest_1samp(of_feature, 0).pvalue if np.ptp(of_feature) > 0 else np.nan
    return FeatureTests(ic, p, *benjamini_hochberg(p, rate), blocks=counts)


def _rank_ics(features: Floats, returns: Floats, least: int) -> Floats:
    """Spearman correlation of each column [m, k] with the returns [m], each over its own complete rows."""
    known = np.isfinite(returns)
    both = np.isfinite(features) & known[:, None]

    def ranks(values: Floats, kept: npt.NDArray[np.bool_]) -> Floats:
        # infinities rank last and are left out: they move no other rank
        ranked = rankdata(np.where(kept, values, np.inf), axis=0)
        centred = ranked - np.where(kept, ranked, 0).sum(axis=0) / np.maximum(kept.sum(axis=0), 1)
        return np.asarray(np.where(kept, centred, 0), dtype=np.float64)

    x = ranks(features, both)
    y = np.broadcast_to(ranks(returns, known)[:, None], features.shape).copy()
    holes = ~(both == known[:, None]).all(axis=0)
    y[:, holes] = ranks(np.broadcast_to(returns[:, None], features.shape)[:, holes], both[:, holes])
    norm = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    defined = (norm > 0) & (both.sum(axis=0) >= max(least, 2))
    return np.where(defined, (x * y).sum(axis=0) / np.where(defined, norm, 1), np.nan)
