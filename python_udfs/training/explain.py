"""How much each input had to do with a prediction, and how much of that the named inputs cover.

An attribution is [n, k]: of each row, what each input added to the explained output.

References: S. Lundberg et al. (2020), From local explanations to global understanding with explainable AI for trees;
A. Shrikumar et al. (2016), Not just a black box (gradient times input).
"""

from __future__ import annotations

import math

import lightgbm as lgb
import numpy as np
import numpy.typing as npt

from python_udfs.errors import UserError
from python_udfs.training.baselines import Logistic, Trees

Floats = npt.NDArray[np.float64]


def linear_attributions(coefficients: Floats, rows: Floats, reference: Floats) -> Floats:
    """Exact for a linear output: coefficient x (value - reference). [k], [n, k], [k] to [n, k]."""
    return np.asarray((rows - reference) * coefficients, dtype=np.float64)


def logistic_attributions(model: Logistic, rows: npt.NDArray[np.float32]) -> Floats:
    """Of the logit of up less that of down, against the mean training row; rows [n, k], NaN for missing.

    A class that the model does not have counts as a logit of 0.
    """
    prepared = model.pipeline[:-1].transform(rows.astype(np.float64))
    weights = model.pipeline[-1].coef_
    if len(weights) == 1:  # of two classes sklearn keeps the second one's alone
        weights = np.concatenate([-weights, weights]) / 2
    up_less_down = np.sign(np.asarray(model.classes, dtype=np.float64)) @ weights
    return linear_attributions(up_less_down, prepared, np.zeros(rows.shape[1]))


def tree_attributions(model: Trees, rows: npt.NDArray[np.float32]) -> Floats:
    """TreeSHAP of the raw score of up less that of down; rows [n, k], NaN for missing."""
    booster: lgb.Booster = model.booster
    of_class = np.asarray(booster.predict(rows, pred_contrib=True, num_threads=1)).reshape(
        len(rows), len(model.classes), -1
    )
    # the last is the expected score: no input's
    sign = np.sign(np.asarray(model.classes, dtype=np.float64))
    return np.asarray(np.einsum("nck,c->nk", of_class[:, :, :-1], sign), dtype=np.float64)


def gradient_attributions(gradients: npt.NDArray[np.floating], inputs: npt.NDArray[np.floating]) -> Floats:
    """Gradient times input, [n, ..., k] each: what lies between (levels, window) is summed, [n, k]."""
    product = np.asarray(gradients, dtype=np.float64) * inputs
    return np.asarray(product.reshape(len(product), -1, product.shape[-1]).sum(axis=1), dtype=np.float64)


def coverage(attributions: Floats, top: int | float, *, per_row: bool = False) -> float | None:
    """Share of all |attribution| that falls on the inputs which an explanation names.

    Args:
        attributions: [n, k].
        top: how many inputs it names: an int, or as a float in (0, 1] a share of k (rounded up).
        per_row: False: it names the same inputs for every row, those with the largest sum of |attribution|.
            True: it names each row's own largest; the share is the mean over the rows that have any.

    Returns:
        In [0, 1]; None when nothing is attributed to anything.

    Raises:
        UserError: `top` is out of range or an attribution is not finite.
    """
    k = attributions.shape[1]
    number = math.ceil(top * k - 1e-9) if isinstance(top, float) else top
    if number < 1 or (isinstance(top, float) and top > 1):
        raise UserError(f"an explanation names at least one input and at most all: not {top}")
    if not np.isfinite(attributions).all():
        raise UserError(
            "an attribution is not a finite number: is an input missing that the model cannot take?"
        )
    size = np.abs(attributions) if per_row else np.abs(attributions).sum(axis=0, keepdims=True)
    total = size.sum(axis=1)
    if not (total > 0).any():
        return None
    named = -np.sort(-size, axis=1)[:, :number].sum(axis=1)
    return float(np.minimum(named[total > 0] / total[total > 0], 1).mean())
