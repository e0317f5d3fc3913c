"""Drift and calibration from their formulas, for comparison with the models in monitoring/."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def edges(reference: Floats) -> Floats:
    """The deciles, linear between ranks, equal ones once."""
    return np.unique(np.quantile(reference, np.arange(1, 10) / 10))


def counts(values: Floats, at: Floats) -> npt.NDArray[Any]:
    """Values in (-inf, e1], (e1, e2], ... (ek, inf)."""
    return np.bincount(np.searchsorted(at, values, side="left"), minlength=len(at) + 1)


def psi(reference: Floats, current: Floats) -> float:
    """Population stability index over the reference's deciles; an empty bin counts as 0.0001."""
    at = edges(reference)
    q, p = (np.maximum(counts(x, at) / len(x), 1e-4) for x in (reference, current))
    return float(((p - q) * np.log(p / q)).sum())


def turnover(signals: npt.NDArray[np.int64]) -> int:
    """What one instrument trades in a day, from out of the market on: sum of the changes of its signal."""
    return int(np.abs(np.diff(signals, prepend=0)).sum())
