"""Out-of-sample metrics of class probabilities. Pure functions of arrays.

A row whose score or return is not finite has no part in a correlation or hit rate. A metric that the rows do not
define (constant score, one class, fewer than two rows) is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from python_udfs.scorer.card import CalibrationBin, Metrics
from python_udfs.training.significance import block_length, bootstrap_interval

Floats = npt.NDArray[np.float64]

# The least probability that the log loss sees: a class the training rows lacked costs much, not infinity.
_FLOOR: Final = 1e-7
_BINS: Final = 10


def direction(probabilities: npt.NDArray[np.float64], classes: Sequence[int]) -> npt.NDArray[np.float64]:
    """P(up) - P(down) of each row. probabilities: [n, c]; a class that is not there has probability 0."""
    weight = np.sign(np.asarray(classes, dtype=np.float64))
    return np.asarray(probabilities @ weight, dtype=np.float64)


def calibration(
    predicted: npt.NDArray[np.float64], happened: npt.NDArray[np.bool_], bins: int = _BINS
) -> list[CalibrationBin]:
    """Mean prediction and observed share in `bins` equally full bins of predicted probability ([n] each)."""
    order = np.argsort(predicted, kind="stable")
    return [
        CalibrationBin(predicted=predicted[part].mean(), observed=happened[part].mean(), n=len(part))
        for part in np.array_split(order, min(bins, len(order)))
        if len(part)
    ]


def pearson_ic(score: Floats, returns: Floats) -> float | None:
    """Linear correlation of scores with the returns that followed, [n] each."""
    score, returns = _paired(score, returns)
    ic = _correlation(score, returns)
    return None if np.isnan(ic) else ic


def rank_ic(score: Floats, returns: Floats) -> float | None:
    """Spearman's rank correlation of scores with the returns that followed, [n] each; ties share their rank."""
    score, returns = _paired(score, returns)
    ic = _correlation(rankdata(score), rankdata(returns))
    return None if np.isnan(ic) else ic


def hit_rate(score: Floats, returns: Floats) -> float | None:
    """Share of rows whose score has the sign of the return, of those where neither is zero; [n] each."""
    score, returns = _paired(score, returns)
    called = (score != 0) & (returns != 0)
    return float((np.sign(score) == np.sign(returns))[called].mean()) if called.any() else None


def expected_calibration_error(
    probabilities: Floats, labels: npt.NDArray[np.int8], classes: Sequence[int], bins: int = 10
) -> float:
    """Mean distance of confidence and accuracy of the most probable class, over equally wide bins.

    Reference: C. Guo et al., On calibration of modern neural networks (2017). probabilities: [n, c], n >= 1.
    """
    confidence = probabilities.max(axis=1)
    right = np.asarray(classes)[probabilities.argmax(axis=1)] == labels
    edges = np.linspace(0, 1, bins + 1)
    # (low, high], so that 1 falls into the last
    of_row = np.searchsorted(edges[1:-1], confidence, side="left")
    gap = np.bincount(of_row, confidence - right, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def time_blocks(as_of: npt.NDArray[np.int64], block_s: float) -> npt.NDArray[np.int64]:
    """The number of the UTC-aligned block of time that each row (µs) falls into, [n]."""
    return np.asarray(as_of // round(block_s * 1e6), dtype=np.int64)


def block_ics(
    score: Floats, returns: Floats, blocks: npt.NDArray[np.int64], least: int = 10
) -> npt.NDArray[np.float64]:
    """Rank IC of each block with at least so many rows, in the order of their ids: [b] <= the blocks there are."""
    ics = [
        rank_ic(score[rows], returns[rows])
        for rows in (np.flatnonzero(blocks == block) for block in np.unique(blocks))
        if len(rows) >= least
    ]
    return np.array([ic for ic in ics if ic is not None], dtype=np.float64)


def ic_ir(ics: Floats) -> float | None:
    """Mean of the blocks' ICs over their standard deviation, per block and not annualised; [b]."""
    ratio = _mean_over_deviation(ics)
    return None if np.isnan(ratio) else ratio


def _paired(score: Floats, returns: Floats) -> tuple[Floats, Floats]:
    both = np.isfinite(score) & np.isfinite(returns)
    return score[both], returns[both]


def _correlation(x: Floats, y: Floats) -> float:
    """NaN where it is not defined."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    x, y = x - x.mean(), y - y.mean()
    # not x @ y: BLAS threads wait for each other on a busy machine, a thousand times in a bootstrap
    norm = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return min(max(float((x * y).sum()) / norm, -1.0), 1.0) if norm > 0 else np.nan


def _mean_over_deviation(values: Floats) -> float:
    return float(values.mean() / values.std(ddof=1)) if len(values) > 1 and np.ptp(values) > 0 else np.nan


def ic_with_intervals(
    score: Floats, returns: Floats, as_of: npt.NDArray[np.int64], *, block_s: float, seed: int = 7
) -> dict[str, float | int | None]:
    """Rank IC and IC_IR with 95 % intervals by the stationary bootstrap, as fields of `Metrics`.

    Ranks are taken once; their product over time says how long the blocks are that stay together, so that the
    rows of one instant and overlapping labels do.

    Args:
        score, returns, as_of: [n], as_of ascending (µs).
        block_s: seconds of a block of the IC_IR; several label horizons.
    """
    kept = np.isfinite(score) & np.isfinite(returns)
    blocks = time_blocks(as_of[kept], block_s)
    score, returns = score[kept], returns[kept]
    ics = block_ics(score, returns, blocks)
    x, y = rankdata(score) - (len(score) + 1) / 2, rankdata(returns) - (len(score) + 1) / 2
    low, high = bootstrap_interval(_correlation, x, y, length=block_length(x * y), seed=seed) or (None, None)
    ratio_low, ratio_high = bootstrap_interval(
        _mean_over_deviation, ics, length=block_length(ics), seed=seed
    ) or (None, None)
    return {
        "ic_low": low,
        "ic_high": high,
        "ic_ir": ic_ir(ics),
        "ic_ir_low": ratio_low,
        "ic_ir_high": ratio_high,
        "ic_blocks": len(ics),
    }


def evaluate(
    probabilities: npt.NDArray[np.float64],
    prior: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int8],
    returns: npt.NDArray[np.float64],
    classes: Sequence[int],
    *,
    as_of: npt.NDArray[np.int64] | None = None,
    block_s: float = 600.0,
    seed: int = 7,
) -> Metrics:
    """All metrics of n rows, n >= 1.

    Args:
        probabilities: [n, c], rows sum to 1, columns in the order of `classes`.
        prior: [n, c], the class shares of the rows each prediction was trained on.
        labels: [n], each one of `classes`.
        returns: [n], the label's return.
        classes: the c classes, ascending.
        as_of: [n] microseconds, ascending. With it: IC_IR and intervals; without: those fields are None.
        block_s, seed: see `ic_with_intervals`.
    """
    n = len(labels)
    truth = labels[:, None] == np.asarray(classes)[None, :]
    chosen = np.asarray(classes)[probabilities.argmax(axis=1)]
    score = direction(probabilities, classes)
    present = [bool(truth[:, i].any() and not truth[:, i].all()) for i in range(len(classes))]
    return Metrics(
        rows=n,
        log_loss=-np.log(np.maximum(probabilities[truth], _FLOOR)).mean(),
        prior_log_loss=-np.log(np.maximum(prior[truth], _FLOOR)).mean(),
        accuracy=(chosen == labels).mean(),
        balanced_accuracy=np.mean([(chosen == labels)[t].mean() for t in truth.T if t.any()]),
        brier=((probabilities - truth) ** 2).sum(axis=1).mean(),
        ic=rank_ic(score, returns),
        auc={
            str(name): float(roc_auc_score(truth[:, i], probabilities[:, i])) if present[i] else None
            for i, name in enumerate(classes)
        },
        class_shares={str(name): float(truth[:, i].mean()) for i, name in enumerate(classes)},
        calibration={
            str(name): calibration(probabilities[:, i], truth[:, i]) for i, name in enumerate(classes)
        },
        ic_pearson=pearson_ic(score, returns),
        hit_rate=hit_rate(score, returns),
        ece=expected_calibration_error(probabilities, labels, classes),
        **({} if as_of is None else ic_with_intervals(score, returns, as_of, block_s=block_s, seed=seed)),
    )


def evaluate_by(
    groups: npt.NDArray[np.int64],
    *,
    probabilities: Floats,
    prior: Floats,
    labels: npt.NDArray[np.int8],
    returns: Floats,
    classes: Sequence[int],
    as_of: npt.NDArray[np.int64] | None = None,
    block_s: float = 600.0,
    seed: int = 7,
) -> dict[int, Metrics]:
    """`evaluate` of each group of rows: a fold, a regime, an instrument. groups: [n] ids."""
    return {
        int(group): evaluate(
            probabilities[rows],
            prior[rows],
            labels[rows],
            returns[rows],
            classes,
            as_of=None if as_of is None else as_of[rows],
            block_s=block_s,
            seed=seed,
        )
        for group, rows in ((group, groups == group) for group in np.unique(groups))
    }
