"""Out-of-sample metrics of class probabilities. Pure functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from python_udfs.scorer.card import CalibrationBin, Metrics

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


def evaluate(
    probabilities: npt.NDArray[np.float64],
    prior: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int8],
    returns: npt.NDArray[np.float64],
    classes: Sequence[int],
) -> Metrics:
    """All metrics of n rows.

    Args:
        probabilities: [n, c], rows sum to 1, columns in the order of `classes`.
        prior: [n, c], the class shares of the rows each prediction was trained on.
        labels: [n], each one of `classes`.
        returns: [n], the label's return.
        classes: the c classes, ascending.
    """
    n = len(labels)
    truth = labels[:, None] == np.asarray(classes)[None, :]
    chosen = np.asarray(classes)[probabilities.argmax(axis=1)]
    score = direction(probabilities, classes)
    constant = n < 2 or np.ptp(score) == 0 or np.ptp(returns) == 0
    present = [bool(truth[:, i].any() and not truth[:, i].all()) for i in range(len(classes))]
    return Metrics(
        rows=n,
        log_loss=-np.log(np.maximum(probabilities[truth], _FLOOR)).mean(),
        prior_log_loss=-np.log(np.maximum(prior[truth], _FLOOR)).mean(),
        accuracy=(chosen == labels).mean(),
        balanced_accuracy=np.mean([(chosen == labels)[t].mean() for t in truth.T if t.any()]),
        brier=((probabilities - truth) ** 2).sum(axis=1).mean(),
        ic=None if constant else float(spearmanr(score, returns).statistic),
        auc={
            str(name): float(roc_auc_score(truth[:, i], probabilities[:, i])) if present[i] else None
            for i, name in enumerate(classes)
        },
        class_shares={str(name): float(truth[:, i].mean()) for i, name in enumerate(classes)},
        calibration={
            str(name): calibration(probabilities[:, i], truth[:, i]) for i, name in enumerate(classes)
        },
    )
