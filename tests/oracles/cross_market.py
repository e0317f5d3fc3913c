"""Cross-market features from their formulas. NaN stands for NULL; times are int64 microseconds since the epoch.

Sources: Hayashi & Yoshida (2005), On covariance estimation of non-synchronously observed diffusion processes;
Hoffmann, Rosenbaum & Yoshida (2013), Estimation of the lead-lag parameter from non-synchronous data; Huth &
Abergel (2014), High frequency lead/lag relationships (the ratio).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import statsmodels.api as sm

from .clock import MINUTE_US, SECOND_US, Bucket, Trade
from .features import NULL, BookStates

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Key = tuple[str, str, str]
HOUR_S: Final = 3600
STALE_MINUTE_US: Final = 120 * SECOND_US
HURST_LAGS: Final = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Settings:
    """The vars of dbt_project.yml."""

    run_s: int = 300
    window_s: int = 600
    step_ms: int = 100
    steps: int = 10
    lookback_s: int = 86_400
    book_max_lag_us: int = 10 * SECOND_US
    rolling: int = 50


@dataclass(slots=True)
class Venue:
    """One instrument: its on-time trades in order, book states, buckets with their notional, and how far it is closed."""

    key: Key
    base: str
    trades: Sequence[Trade]
    states: BookStates
    buckets: Sequence[Bucket]
    notional: Floats
    closed_to: int
    knowledge: Ints = field(init=False)  # moments at which a newer book became known

    def __post_init__(self) -> None:
        self.knowledge = np.unique(self.states.rows.known_at)

    def state_at(self, t: int) -> int:
        """Index of the newest state known by t, -1: none."""
        return int(np.searchsorted(self.states.rows.known_at, t, side="right")) - 1

    def mid_at(self, t: int, settings: Settings) -> float:
        """NaN: none, one-sided or too old."""
        i = self.state_at(t)
        if i < 0 or t - int(self.states.rows.timestamp[i]) > settings.book_max_lag_us:
            return NULL
        return float(self.states.mid[i])

    def ticks(self, first: int, last: int) -> tuple[Ints, Floats]:
        """Moments in [first, last) at which a two-sided book became known, and its mid."""
        times = [int(t) for t in self.knowledge if first <= t < last]
        mids = [float(self.states.mid[self.state_at(t)]) for t in times]
        known = [i for i, m in enumerate(mids) if not math.isnan(m)]
        return np.array([times[i] for i in known], dtype=np.int64), np.array([mids[i] for i in known])

    def minutes(self, settings: Settings) -> set[int]:
        """Ends of the minutes that are told."""
        signs = {t.timestamp // MINUTE_US for t in self.trades} | {
            int(t) // MINUTE_US for t in self.knowledge
        }
        ends = {(m + 1 + k) * MINUTE_US for m in signs for k in range(settings.window_s // 60 + 1)}
        return {m for m in ends if m < self.closed_to}


def minute(venue: Venue, end: int) -> dict[str, float]:
    """What came in [end - 60 s, end): counts, the longest silence with both ends, the median time between."""
    out: dict[str, float] = {}
    trades = [t.timestamp for t in venue.trades if end - MINUTE_US <= t.timestamp < end]
    books = [int(t) for t in venue.knowledge if end - MINUTE_US <= t < end]
    for name, count, times in (("trade", "minute_trades", trades), ("book", "minute_book_updates", books)):
        out[count] = len(times)
        out[f"minute_{name}_gap_max_ms"] = float(np.max(np.diff([end - MINUTE_US, *times, end]))) / 1000
        out[f"minute_{name}_gap_median_ms"] = (
            float(np.median(np.diff(times))) / 1000 if len(times) > 1 else NULL
        )
    return out


def last_minute(venue: Venue, told: set[int], at: int) -> dict[str, float] | None:
    """The last told minute that ended by `at`, None if that is more than two minutes ago."""
    end = max((m for m in told if m <= at), default=0)
    return minute(venue, end) if end >= at - STALE_MINUTE_US else None


def partners(
    venues: Sequence[Venue], run: int, settings: Settings
) -> dict[Key, tuple[Key | None, Key | None]]:
    """By instrument: its reference and the other leg of its basis at `run` (µs)."""
    out: dict[Key, tuple[Key | None, Key | None]] = {}
    for base in {v.base for v in venues}:
        own = [v for v in venues if v.base == base]
        ends = [b.bucket_ts_end for v in own for b in v.buckets]
        run_us = settings.run_s * SECOND_US
        if not any(0 <= run - -(-e // run_us) * run_us <= HOUR_S * SECOND_US for e in ends):
            continue
        traded = {}
        for v in own:
            inside = [
                n
                for b, n in zip(v.buckets, v.notional, strict=True)
                if run - settings.lookback_s * SECOND_US < b.bucket_ts_end <= run
            ]
            if inside and math.fsum(inside) > 0:
                traded[v.key] = math.fsum(inside)
        ranked = sorted(traded, key=lambda k: (-traded[k], k))
        for v in own:
            if v.key not in traded or run >= v.closed_to:
                continue
            others = [k for k in ranked if k != v.key]
            legs = [k for k in others if k[0] == v.key[0] and _is_basis(k[1], v.key[1])]
            out[v.key] = others[0] if others else None, legs[0] if legs else None
    return out


def _is_basis(one: str, two: str) -> bool:
    return {one, two} <= {"spot", "linear", "inverse"} and (one == "spot") != (two == "spot")


def grid(venue: Venue, run: int, settings: Settings, step_ms: int) -> Floats:
    """Mids as of run - window, one step after it, … up to one step before the run."""
    first = run - settings.window_s * SECOND_US
    return np.array([venue.mid_at(t, settings) for t in range(first, run, step_ms * 1000)])


def lagged_correlations(this: Floats, other: Floats, steps: int, min_points: int) -> Floats:
    """corr(r_this(t), r_other(t + lag)) of log returns, lag from -steps to steps; NaN: undefined."""
    r, s = np.diff(np.log(this)), np.diff(np.log(other))
    out = []
    for lag in range(-steps, steps + 1):
        pairs = [(r[i], s[i + lag]) for i in range(len(r)) if 0 <= i + lag < len(s)]
        known = np.array([p for p in pairs if not math.isnan(p[0] + p[1])]).reshape(-1, 2)
        varies = len(known) >= max(min_points, 2) and known.std(axis=0).min() > 0
        out.append(float(np.corrcoef(known.T)[0, 1]) if varies else NULL)
    return np.array(out)


def hayashi_yoshida(
    this: tuple[Ints, Floats], other: tuple[Ints, Floats], step_us: int, steps: int, max_gap_us: int
) -> Floats:
    """The double sum over all pairs of overlapping intervals (t0, t1], the first series shifted by the lag."""

    def intervals(times: Ints, prices: Floats) -> tuple[Ints, Ints, Floats]:
        keep = np.diff(times) <= max_gap_us
        return times[:-1][keep], times[1:][keep], np.diff(np.log(prices))[keep]

    t0, t1, r = intervals(*this)
    s0, s1, q = intervals(*other)
    scale = math.sqrt(math.fsum(r * r) * math.fsum(q * q))
    out = []
    for lag in range(-steps, steps + 1):
        shift = lag * step_us
        overlap = (t0[:, None] + shift < s1[None, :]) & (t1[:, None] + shift > s0[None, :])
        out.append(math.fsum((r[:, None] * q[None, :])[overlap]) / scale if scale > 0 else NULL)
    return np.array(out)


def peak(correlations: Floats, steps: int, step_ms: int) -> tuple[float, float]:
    """Lag (ms) and value of the greatest |correlation|; of equals the nearest to 0, then the negative."""
    found = [(-abs(c), abs(k - steps), k - steps, c) for k, c in enumerate(correlations) if not math.isnan(c)]
    return (min(found)[2] * step_ms, min(found)[3]) if found else (NULL, NULL)


def last_prices(venue: Venue, run: int, settings: Settings) -> dict[int, float]:
    """The last trade's price by second, over the window."""
    first = run - settings.window_s * SECOND_US
    return {t.timestamp // SECOND_US: t.price_e8 / 1e8 for t in venue.trades if first <= t.timestamp < run}


def spreads(this: Venue, other: Venue, run: int, settings: Settings) -> dict[str, float]:
    """How two prices hang together over the window before the run, second by second."""
    p, q = last_prices(this, run, settings), last_prices(other, run, settings)
    differences = [abs(p[s] - q[s]) / ((p[s] + q[s]) / 2) * 1e4 for s in p.keys() & q.keys()]
    out = {
        "price_difference_mean_bps": math.fsum(differences) / len(differences)
        if len(differences) >= 10
        else NULL,
        "price_difference_p99_bps": float(np.percentile(differences, 99)) if len(differences) >= 10 else NULL,
        **dict.fromkeys(("slope", "intercept", "residual_sd_bps", "half_life_s", "hurst"), NULL),
    }
    y, x = (np.log(grid(v, run, settings, 1000)) for v in (this, other))
    known = ~np.isnan(y + x)
    least = settings.window_s // 10
    if known.sum() >= least and np.ptp(x[known]) > 0:
        # centred first: the slope does not change, and no digits are lost
        x0, y0 = x[known].mean(), y[known].mean()
        fit = sm.OLS(y[known] - y0, sm.add_constant(x[known] - x0)).fit()
        out["slope"] = float(fit.params[1])
        out["intercept"] = float(y0 + fit.params[0] - fit.params[1] * x0)
        out["residual_sd_bps"] = float(np.sqrt(np.mean(fit.resid**2)) * 1e4)
        e = (y - y0) - fit.params[1] * (x - x0) - fit.params[0]
        steps = ~np.isnan(e[1:] + e[:-1])
        if steps.sum() >= least and np.ptp(e[:-1][steps]) > 0:
            phi = float(np.polyfit(e[:-1][steps], e[1:][steps], 1)[0])
            if 0 < phi < 1:
                out["half_life_s"] = -math.log(2) / math.log(phi)
    s = y - x
    moves = [s[k:] - s[:-k] for k in HURST_LAGS]
    moves = [m[~np.isnan(m)] for m in moves]
    if len(moves[-1]) >= least and all(m.std() > 0 for m in moves):
        out["hurst"] = float(np.polyfit(np.log(HURST_LAGS), [math.log(m.std()) for m in moves], 1)[0])
    return out


def rolling_z(values: Floats, keys: Sequence[object], b: int, window: int) -> float:
    """values[b] against the last `window` values that have the key of b."""
    past = [
        values[i]
        for i in range(max(0, b - window + 1), b + 1)
        if keys[i] == keys[b] and not math.isnan(values[i])
    ]
    if len(past) < 10 or min(past) == max(past):
        return NULL
    return float((values[b] - np.mean(past)) / np.std(past))


def verdict(
    mids: tuple[float, float],
    own: dict[str, float] | None,
    other: dict[str, float] | None,
    pair: dict[str, float] | None,
    limits: dict[str, float],
) -> str:
    """`on`, or the first check that fails. None: the minute, or the pair's run, is not told."""
    if math.isnan(sum(mids)):
        return "no_book"
    if own is None or other is None:
        return "no_minute"
    for count, limit, reason in (
        ("minute_trades", "min_trades_per_minute", "few_trades"),
        ("minute_book_updates", "min_book_updates_per_minute", "few_book_updates"),
    ):
        if min(own[count], other[count]) < limits[limit]:
            return reason
    for gap, limit, reason in (
        ("minute_trade_gap_max_ms", "max_trade_gap_ms", "trade_gap"),
        ("minute_book_gap_max_ms", "max_book_gap_ms", "book_gap"),
    ):
        if max(own[gap], other[gap]) > limits[limit]:
            return reason
    if pair is None or math.isnan(pair["price_difference_mean_bps"]):
        return "no_prices"
    if (
        pair["price_difference_mean_bps"] > limits["max_difference_mean_bps"]
        or pair["price_difference_p99_bps"] > limits["max_difference_p99_bps"]
    ):
        return "price_difference"
    return "on"
