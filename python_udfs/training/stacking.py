"""A logistic regression on what base models said out of fold.

Reference: Wolpert (1992), Stacked generalization.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from python_udfs.errors import UserError

Floats = npt.NDArray[np.float64]

_FLOOR: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Stack:
    """A fitted stack: probabilities of the same base models, in the same order, to its own."""

    logistic: LogisticRegression

    @property
    def classes(self) -> list[int]:
        return [int(name) for name in self.logistic.classes_]

    def probabilities(self, base: Sequence[Floats]) -> Floats:
        """base: [n, c_i] of each model. Returns [n, c]."""
        return np.asarray(self.logistic.predict_proba(_features(base)), dtype=np.float64)


def fit_stack(base: Sequence[Floats], labels: npt.NDArray[np.int8], seed: int) -> Stack:
    """Fits on rows that none of the base models was trained on.

    Args:
        base: [n, c_i] probabilities of each model.
        labels: [n].
        seed: of the solver.

    Raises:
        UserError: the rows have one class only.
        ValueError: no model, or models of different rows.
    """
    if not base or any(len(p) != len(labels) for p in base):
        raise ValueError("each base model must say something of each row")
    if len(np.unique(labels)) < 2:
        raise UserError(f"all {len(labels)} rows have one class: nothing to stack on")
    return Stack(LogisticRegression(C=0.1, max_iter=1000, random_state=seed).fit(_features(base), labels))


def _features(base: Sequence[Floats]) -> Floats:
    """Log odds of each class of each model: a logistic of one base model alone can be that model."""
    p = np.clip(np.concatenate(base, axis=1), _FLOOR, 1 - _FLOOR)
    return np.asarray(np.log(p / (1 - p)), dtype=np.float64)
