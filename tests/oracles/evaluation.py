"""Metrics of models and strategies, plainly from their formulas: loops, no vectors, no shared code."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np


def ece(probabilities: np.ndarray, labels: np.ndarray, classes: list[int], bins: int) -> float:
    """Guo et al. (2017), equation 3: sum over bins of |B| / n times |accuracy - confidence|."""
    members: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
        top = max(row)
        number = next(m for m in range(bins) if m / bins < top <= (m + 1) / bins)
        members[number].append((top, float(classes[row.index(top)] == label)))
    return sum(
        len(b) / len(labels) * abs(np.mean([right for _, right in b]) - np.mean([c for c, _ in b]))
        for b in members
        if b
    )


def long_run_variance(x: np.ndarray, length: float) -> float:
    """Politis and Romano (1994), equation 9: variance of sqrt(t) times the mean of a stationary-bootstrap resample."""
    t, p = len(x), 1 / length
    centred = x - x.mean()
    total = (centred**2).sum() / t
    for i in range(1, t):
        b = (1 - i / t) * (1 - p) ** i + i / t * (1 - p) ** (t - i)
        total += 2 * b * (centred[: t - i] * centred[i:]).sum() / t
    return float(total)


def reality_check(gain: np.ndarray, length: int, reps: int, seed: int) -> float:
    """White (2000): how often the best centred mean of a stationary bootstrap passes the best mean. [t, k]."""
    rng = np.random.default_rng(seed)
    t = len(gain)
    best = gain.mean(axis=0).max()
    above = 0
    for _ in range(reps):
        at, rows = int(rng.integers(t)), []
        for _ in range(t):
            rows.append(at)
            at = int(rng.integers(t)) if rng.random() < 1 / length else (at + 1) % t
        above += (gain[rows].mean(axis=0) - gain.mean(axis=0)).max() > best
    return above / reps


def benjamini_hochberg(p: list[float], rate: float) -> set[int]:
    """The step-up rule: all up to the largest i with p(i) <= i / k * rate."""
    order = sorted(range(len(p)), key=lambda j: p[j])
    last = max((i for i, j in enumerate(order, 1) if p[j] <= i / len(p) * rate), default=0)
    return set(order[:last])


def deflated_sharpe(returns: np.ndarray, trials: np.ndarray) -> float:
    """Bailey and López de Prado (2014), equations 1 and 2, with sample skewness and kurtosis unbiased."""
    normal = NormalDist()
    n, k = len(returns), len(trials)
    euler = 0.57721566490153286
    luck = (1 - euler) * normal.inv_cdf(1 - 1 / k) + euler * normal.inv_cdf(1 - 1 / (k * math.e))
    benchmark = math.sqrt(sum((x - trials.mean()) ** 2 for x in trials) / (k - 1)) * luck
    m2, m3, m4 = (((returns - returns.mean()) ** power).mean() for power in (2, 3, 4))
    sharpe = returns.mean() / math.sqrt(m2)
    skew = m3 / m2**1.5 * math.sqrt(n * (n - 1)) / (n - 2)
    kurtosis = (n - 1) / ((n - 2) * (n - 3)) * ((n + 1) * m4 / m2**2 - 3 * (n - 1)) + 3
    deviation = math.sqrt(1 - skew * sharpe + (kurtosis - 1) / 4 * sharpe**2)
    return normal.cdf((sharpe - benchmark) * math.sqrt(n - 1) / deviation)


def pool_adjacent_violators(values: list[float]) -> list[float]:
    """Isotonic regression of equally weighted values in order: merge neighbours that fall (Ayer et al. 1955)."""
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([value])
        while len(blocks) > 1 and np.mean(blocks[-2]) >= np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    return [float(np.mean(b)) for b in blocks for _ in b]
