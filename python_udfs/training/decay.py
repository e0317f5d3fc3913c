"""How fast a signal fades, and what a model's latency therefore costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from scipy.optimize import curve_fit

from python_udfs.jobs.report import svg
from python_udfs.jobs.report.svg import Scale, line, rect, text
from python_udfs.training.metrics import rank_ic

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEAST_R2: Final = 0.5


@dataclass(frozen=True, slots=True)
class DelayedIc:
    """The rank IC of scores that are acted upon late."""

    asked_s: float  # at least so late
    delay_s: float | None  # how late on average
    ic: float | None
    rows: int


def delayed_ics(
    score: Floats,
    as_of: Ints,
    returns: Floats,
    instrument: Ints,
    delays_s: Sequence[float],
    *,
    max_late_s: float = np.inf,
) -> list[DelayedIc]:
    """What the instrument's newest score of at least so long ago says of each row's return.

    Args:
        score, returns: [n]; a row without either (not finite) has no part in its own place.
        as_of: [n] µs, ascending.
        instrument: [n] ids.
        delays_s: ascending; 0 is the row's own score.
        max_late_s: a score later than asked by more than this is too old to stand for the delay.
    """
    found = []
    for asked in delays_s:
        late = round(asked * 1e6)
        source = np.full(len(as_of), -1)
        for name in np.unique(instrument):
            rows = np.flatnonzero(instrument == name)
            if late == 0:
                source[rows] = rows  # two rows of one instant each have their own
                continue
            at = np.searchsorted(as_of[rows], as_of[rows] - late, side="right") - 1
            source[rows[at >= 0]] = rows[at[at >= 0]]
        rows = np.flatnonzero(source >= 0)
        delay = (as_of[rows] - as_of[source[rows]]) / 1e6
        fresh = (delay - asked <= max_late_s) & np.isfinite(score[source[rows]]) & np.isfinite(returns[rows])
        rows, delay = rows[fresh], delay[fresh]
        found.append(
            DelayedIc(
                asked_s=asked,
                delay_s=float(delay.mean()) if len(rows) else None,
                ic=rank_ic(score[source[rows]], returns[rows]),
                rows=len(rows),
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class HalfLife:
    """IC(delay) = ic_0 * 2^(-delay / half_life_s); r2 is the share of the ICs' variance that it explains."""

    ic_0: float
    half_life_s: float
    r2: float

    def ic(self, delay_s: float) -> float:
        return float(self.ic_0 * 2.0 ** (-delay_s / self.half_life_s))


def fit_half_life(delays_s: Floats, ics: Floats) -> HalfLife | None:
    """Least squares of an exponential decay through [d] delays and ICs; what is not finite is left out.

    Returns:
        None when the ICs do not say: fewer than three, no decay (the fitted half-life is more than a hundred times
        the longest delay), a decay between the first two delays alone, or less than half of the variance explained.
    """
    known = np.isfinite(delays_s) & np.isfinite(ics)
    delay, ic = delays_s[known], ics[known]
    if len(delay) < 3 or np.ptp(delay) == 0 or np.ptp(ic) == 0:
        return None
    longest, shortest = float(delay.max()), float(np.diff(np.unique(delay)).min())
    first = float(ic[delay.argmin()])
    try:
        (ic_0, rate), _ = curve_fit(
            lambda d, a, b: a * np.exp2(-d * b),
            delay,
            ic,
            p0=(first or 1e-3, 1 / longest),
            bounds=((-1, 0), (1, np.inf)),
            x_scale=(max(abs(first), 1e-3), 1 / longest),
            max_nfev=2000,
        )
    except RuntimeError:  # no convergence
        return None
    r2 = float(1 - ((ic - ic_0 * np.exp2(-delay * rate)) ** 2).sum() / ((ic - ic.mean()) ** 2).sum())
    if r2 < LEAST_R2 or not 1 / (100 * longest) < rate < 10 / shortest:
        return None
    return HalfLife(float(ic_0), float(1 / rate), r2)


@dataclass(frozen=True, slots=True)
class Point:
    """A model on the frontier's plane. `half_life_s`: None prices no decay in."""

    name: str
    latency_s: float
    ic: float
    half_life_s: float | None = None

    @property
    def priced_ic(self) -> float:
        """What is left of the IC when the signal arrives."""
        return self.ic if self.half_life_s is None else self.ic * 2 ** (-self.latency_s / self.half_life_s)


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both latency and priced IC, fastest first; of equals, the first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.latency_s, -p.priced_ic)):
        if not best or point.priced_ic > best[-1].priced_ic:
            best.append(point)
    return best


WIDTH, HEIGHT = 720, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 700, 24, 320


def frontier_chart(points: Sequence[Point]) -> Markup:
    """Accuracy against latency (log scale) as an SVG in the report's style.

    A dot is the IC when the signal arrives; the whisker above it ends at the IC of a signal without latency; the line
    joins the models that no other beats.

    Raises:
        ValueError: no point, or one without a positive latency.
    """
    if not points or any(not p.latency_s > 0 for p in points):
        raise ValueError("the frontier needs points with a latency above 0")
    slowest, fastest = max(p.latency_s for p in points), min(p.latency_s for p in points)
    x = Scale(fastest / 2, slowest * 2, _LEFT, _RIGHT, log=True)
    y = Scale(*svg.padded([0.0, *(v for p in points for v in (p.ic, p.priced_ic))]), _BOTTOM, _TOP)
    parts: list[str] = []
    marks = svg.ticks(y.low, y.high, 6)
    step = marks[1] - marks[0] if len(marks) > 1 else 1
    for mark in marks:
        parts += [
            line(_LEFT, y(mark), _RIGHT, y(mark), "axis" if mark == 0 else "grid"),
            text(_LEFT - 8, y(mark) + 4, svg.tick_label(mark, step), "t", "end"),
        ]
    for k in range(-7, 5):
        for mark in (10.0**k, 2 * 10.0**k, 5 * 10.0**k):
            if x.low <= mark <= x.high:
                parts += [
                    line(x(mark), _TOP, x(mark), _BOTTOM, "grid"),
                    text(x(mark), _BOTTOM + 18, svg.seconds(mark), "t", "middle"),
                ]
    best = frontier(points)
    parts.append(svg.polyline([(x(p.latency_s), y(p.priced_ic)) for p in best], "price"))
    for p in points:
        px, py = x(p.latency_s), y(p.priced_ic)
        title = (
            f"{p.name}: IC {svg.number(p.priced_ic)} after {svg.seconds(p.latency_s)}, "
            f"{svg.number(p.ic)} without latency, half-life {svg.seconds(p.half_life_s)}"
        )
        right = px > (_LEFT + _RIGHT) / 2
        parts += [
            line(px, y(p.ic), px, py, "median"),
            rect(px - 5, py - 5, 10, 10, "solid own" if p in best else "bar", title=title, radius=5),
            text(px + (-9 if right else 9), py + 18, p.name, "strong", "end" if right else "start"),
        ]
    parts += [
        text(
            (_LEFT + _RIGHT) / 2,
            _BOTTOM + 40,
            "latency, p99 from request to signal (log scale)",
            "l",
            "middle",
        ),
        text(14, (_TOP + _BOTTOM) / 2, "rank IC when the signal arrives", "l", "middle", turn=True),
    ]
    listed = ", ".join(f"{p.name} {svg.number(p.priced_ic)} after {svg.seconds(p.latency_s)}" for p in points)
    alt = f"IC against latency: {listed}. Not beaten: {', '.join(p.name for p in best)}"
    return svg.drawing(WIDTH, HEIGHT, alt, parts)
