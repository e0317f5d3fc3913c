"""What is said about measured times: percentiles, ratios, aims met or missed, and whether two results are equal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def timed(
    action: Callable[[], object],
    calls: int,
    *,
    before: Callable[[], object] | None = None,
    warm_up: int = 10,
) -> Floats:
    """Milliseconds of each call (calls,), after some that are not counted; `before` runs ahead of each, untimed."""
    ms = np.empty(calls)
    for i in range(-warm_up, calls):
        if before is not None:
            before()
        began = time.perf_counter()
        action()
        if i >= 0:
            ms[i] = (time.perf_counter() - began) * 1000
    return ms


def percentiles(ms: npt.ArrayLike) -> tuple[float, float]:
    """p50 and p99 (linear between the two nearest); NaN of nothing."""
    values = np.asarray(ms, dtype=np.float64)
    if not values.size:
        return math.nan, math.nan
    p50, p99 = np.percentile(values, [50, 99])
    return float(p50), float(p99)


def ratio(a: float | None, b: float | None) -> float | None:
    """a / b; None where either is not known or b is no positive number."""
    if a is None or b is None or not b > 0 or math.isnan(a):
        return None
    return a / b


def times(value: float | None) -> str:
    """A ratio as text: 12x, 1.3x, 0.25x; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:,.0f}x" if value >= 10 else f"{value:.2g}x"


def first_difference(expected: Floats, found: Floats, columns: Sequence[str]) -> str:
    """Where two results (rows, columns) differ first, in words; empty: nowhere. NaN equals NaN, and bits must agree."""
    if expected.shape != found.shape:
        there, wanted = (
            f"{rows:,} rows of {columns} columns" for rows, columns in (found.shape, expected.shape)
        )
        return f"{there} instead of {wanted}"
    wrong = ~((expected == found) | (np.isnan(expected) & np.isnan(found)))
    if not wrong.any():
        return ""
    row, column = (int(x) for x in np.argwhere(wrong)[0])
    return (
        f"{int(wrong.any(axis=1).sum()):,} of {len(expected):,} rows differ, first row {row} in {columns[column]}: "
        f"{found[row, column]!r} instead of {expected[row, column]!r}"
    )


@dataclass(frozen=True)
class Aim:
    """A promise and what was measured. None: it could not be."""

    what: str
    limit: float
    unit: str
    measured: float | None
    at_least: bool = False  # else at most

    @property
    def met(self) -> bool | None:
        if self.measured is None or math.isnan(self.measured):
            return None
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def __str__(self) -> str:
        verdict = {True: "met", False: "missed", None: "not measured"}[self.met]
        measured = "" if self.met is None else f", measured {self.measured:.3g} {self.unit}"
        aim = f"{'at least' if self.at_least else 'at most'} {self.limit:g} {self.unit}"
        return f"{self.what}: {aim}{measured}: {verdict}"
