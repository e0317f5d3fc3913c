"""Rules that need no model, scored on the folds of the models: chance, holding, one feature, and people.

Signs, choices and scales come from a fold's training rows; a score is what the rule says of its test rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from python_udfs.training.dataset import Dataset
from python_udfs.training.split import Fold
from python_udfs.training.train import strong

Floats = npt.NDArray[np.float64]

CANDIDATES: Final = 200
SINGLES: Final = 3
_CLIP: Final = 5.0


@dataclass(frozen=True, slots=True)
class Rule:
    """What a rule says of the m test rows of all folds; NaN: nothing."""

    name: str
    score: Floats  # [m]
    cut: Floats  # [m], what |score| must exceed to be traded
    chosen: tuple[str, ...]  # what it was in each fold


@dataclass(frozen=True, slots=True)
class Search:
    """The best of many candidates on the training rows of each fold, and all of them, for the reality check."""

    best: list[Rule]
    tried: Floats  # [m, candidates], signs as of the training rows
    names: list[str]


def scaled(train: npt.NDArray[np.floating[Any]], rows: npt.NDArray[np.floating[Any]]) -> Floats:
    """Rows [n, k] in the medians and quartile ranges of the training rows, cut at 5; missing: 0."""
    known = np.where(np.isfinite(train), train, np.nan).astype(np.float64)
    empty = ~np.isfinite(known).any(axis=0)
    known[:, empty] = 0
    low, middle, high = np.nanquantile(known, [0.25, 0.5, 0.75], axis=0)
    width = np.where(high > low, (high - low) / 1.349, np.nanstd(known, axis=0))
    z = (np.where(np.isfinite(rows), rows, np.nan) - middle) / np.where(width > 0, width, 1)
    return np.asarray(np.nan_to_num(np.clip(z, -_CLIP, _CLIP)), dtype=np.float64)


def search(
    data: Dataset, folds: list[Fold], weights: Floats, names: list[str], *, titles: list[str]
) -> Search:
    """Scores every candidate and picks the best of each fold by its rank correlation on the training rows.

    Args:
        weights: [k, candidates] of scaled features.
        names: of the candidates.
        titles: of the best, second best, ... rule to return.
    """
    tried, scores, cuts, chosen = [], [], [], []
    for fold in folds:
        train = scaled(data.features[fold.train], data.features[fold.train]) @ weights
        test = scaled(data.features[fold.train], data.features[fold.test]) @ weights
        ics = _rank_correlations(train, data.returns[fold.train])
        sign = np.where(ics < 0, -1.0, 1.0)
        order = np.argsort(-np.abs(ics), kind="stable")[: len(titles)]
        tried.append(test * sign)
        scores.append(test[:, order] * sign[order])
        cuts.append(np.tile([strong(train[:, j]) for j in order], (len(fold.test), 1)))
        chosen.append([f"{'-' if sign[j] < 0 else ''}{names[j]}" for j in order])
    score, cut = np.concatenate(scores), np.concatenate(cuts)
    best = [
        Rule(title, score[:, i], cut[:, i], tuple(of_fold[i] for of_fold in chosen))
        for i, title in enumerate(titles[: score.shape[1]])
    ]
    return Search(best, np.concatenate(tried), names)


def random_search(data: Dataset, folds: list[Fold], *, candidates: int = CANDIDATES, seed: int = 7) -> Search:
    """The best on the training rows of so many sums of features with random signs (-1, 0, 1)."""
    k = data.features.shape[1]
    weights = np.random.default_rng(seed).integers(-1, 2, (k, candidates)).astype(np.float64)
    names = [f"random {i + 1}" for i in range(candidates)]
    return search(data, folds, weights, names, titles=[f"random search, best of {candidates}"])


def single_features(data: Dataset, folds: list[Fold], *, best: int = SINGLES) -> Search:
    """Each feature alone; the best few on the training rows of each fold."""
    names = [column.name for column in data.contract]
    titles = ["best single feature", *(f"single feature no. {i}" for i in range(2, best + 1))]
    return search(data, folds, np.eye(len(names)), names, titles=titles[: len(names)])


def holding(rows: int) -> Rule:
    """Always long: it forecasts nothing, so that it has no IC."""
    return Rule("buy and hold", np.ones(rows), np.zeros(rows), ())


def _rank_correlations(scores: Floats, returns: Floats) -> Floats:
    """[k] rank correlations of scores [n, k] with returns [n]; 0 where a score is constant."""
    x, y = rankdata(scores, axis=0), rankdata(returns)
    x, y = x - x.mean(axis=0), y - y.mean()
    norm = np.sqrt((x**2).sum(axis=0) * (y**2).sum())
    return np.asarray(np.where(norm > 0, (x * y[:, None]).sum(axis=0) / np.where(norm > 0, norm, 1), 0.0))
