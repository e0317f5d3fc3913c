"""Volatility from its formulas. NaN stands for NULL; every output is a float64 array, one value per bucket.

Families: multi_resolution_volatility, jump_variation, range_volatility, wavelet_energy. Times are int64
microseconds since the epoch. Sums are `math.fsum`, exact before the last rounding.

Sources: Barndorff-Nielsen & Shephard (2004) (bipower); Lee & Mykland (2008), Jumps in financial markets: a new
nonparametric test, eq. 8 and lemma 1 (lee_mykland); Barndorff-Nielsen, Kinnebrock & Shephard (2010), Measuring
downside risk: realised semivariance; Patton & Sheppard (2015), Good volatility, bad volatility (signed jump
variation); Parkinson (1980); Garman & Klass (1980); Mancini (2009), Non-parametric threshold estimation
(volatility_shift); Daubechies (1992), Ten lectures on wavelets, table 6.1 (db4).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from .clock import SECOND_US
from .features import BOOK_MAX_LAG_US, MIN_POINTS, NULL, WINDOW, BookStates, Columns, Floats, Ints

# seconds of the window -> milliseconds between samples
GRIDS: Final = {1: 100, 10: 200, 60: 1000, 300: 5000}
SHIFT_SIGMAS: Final = 4.0
SHIFT_ALARM: Final = 3.0
JUMP_SIGNIFICANCE: Final = 0.01
WAVELET_BUCKETS: Final = 64
# Scaling filter of the orthonormal Daubechies wavelet with four vanishing moments.
DB4: Final = (
    *(0.2303778133088965, 0.7148465705529157, 0.6308807679298589, -0.0279837694168599),
    *(-0.1870348117190931, 0.0308413818355607, 0.0328830116668852, -0.0105974017850690),
)


def mid_at(states: BookStates, when: int, book_max_lag_us: int = BOOK_MAX_LAG_US) -> float:
    """The mid of the last state known at `when` (µs); NaN: none, an empty side, or its event is too old."""
    i = int(np.searchsorted(states.rows.known_at, when, side="right")) - 1
    if i < 0 or when - states.rows.timestamp[i] > book_max_lag_us:
        return NULL
    return float(states.mid[i])


def multi_resolution_volatility(ends: Ints, states: BookStates) -> Columns:
    """Volatility over the clock's last seconds before each of `ends` (µs), shape (n,).

    Over a window of w seconds the mid is sampled every GRIDS[w] ms up to the end; r: the log returns between
    samples; none is defined if a sample is missing. realized_volatility = 1e4 sqrt(sum r^2 / w);
    bipower_volatility = 1e4 sqrt(pi/2 m/(m-1) sum |r_i||r_{i-1}| / w) of m returns. jump_ratio = max(1 -
    bipower^2 / realized^2, 0). volatility_ratio: 10 s over 300 s. volatility_of_volatility: sample standard
    deviation of the 10 s one over the last WINDOW buckets, this included. volatility_shift: sum min(r^2,
    SHIFT_SIGMAS^2 u / m) / u of the 10 s window, u: upper quartile (inverse of the empirical distribution) of
    sum r^2 at the WINDOW buckets before, at least 10 s of realized_volatility_300s; NULL
    where that quartile is 0.
    """
    n = len(ends)
    out: Columns = {}
    returns: dict[int, list[Floats | None]] = {}
    for seconds, step_ms in GRIDS.items():
        realized, bipower, returns[seconds] = np.full(n, NULL), np.full(n, NULL), []
        for b, end in enumerate(ends):
            times = range(int(end) - seconds * SECOND_US, int(end) + 1, step_ms * 1000)
            mids = [mid_at(states, t) for t in times]
            if any(math.isnan(m) for m in mids):
                returns[seconds].append(None)
                continue
            r = np.diff(np.log(mids))
            returns[seconds].append(r)
            products = math.fsum(np.abs(r[1:] * r[:-1]))
            realized[b] = 1e4 * math.sqrt(math.fsum(r * r) / seconds)
            bipower[b] = 1e4 * math.sqrt(math.pi / 2 * len(r) / (len(r) - 1) * products / seconds)
        out[f"realized_volatility_{seconds}s"] = realized
        out[f"bipower_volatility_{seconds}s"] = bipower
    with np.errstate(divide="ignore", invalid="ignore"):
        for seconds in (60, 300):
            share = 1 - (out[f"bipower_volatility_{seconds}s"] / out[f"realized_volatility_{seconds}s"]) ** 2
            out[f"jump_ratio_{seconds}s"] = np.where(share < 0, 0.0, share)
        ratio = out["realized_volatility_10s"] / out["realized_volatility_300s"]
        out["volatility_ratio"] = np.where(np.isfinite(ratio), ratio, NULL)

    ten = out["realized_volatility_10s"]
    spread, shift = np.full(n, NULL), np.full(n, NULL)
    for b in range(n):
        seen = ten[max(0, b - WINDOW + 1) : b + 1]
        seen = seen[~np.isnan(seen)]
        if len(seen) >= MIN_POINTS:
            spread[b] = np.std(seen, ddof=1)
        earlier = [math.fsum(r * r) for r in returns[10][max(0, b - WINDOW) : b] if r is not None]
        own = returns[10][b]
        if own is not None and len(earlier) >= MIN_POINTS:
            u = float(np.quantile(earlier, 0.75, method="inverted_cdf"))
            if u > 0:
                slow = out["realized_volatility_300s"][b]
                u = u if math.isnan(slow) else max(u, 10 * (slow / 1e4) ** 2)
                shift[b] = math.fsum(np.minimum(own**2, SHIFT_SIGMAS**2 * u / len(own))) / u
    out["volatility_of_volatility"] = spread
    out["volatility_shift"] = shift
    out["volatility_shift_flag"] = np.where(np.isnan(shift), NULL, shift > SHIFT_ALARM)
    return out


def jump_variation(mid_return: Floats, rv: Floats, jump: Floats) -> Columns:
    """Jumps and the two halves of variance, from `mid_return`, `rv`, `jump` of `features.rolling`; shape (n,).

    lee_mykland: the return over sqrt(mean |r_j||r_{j-1}|), j over the WINDOW buckets before it.
    """
    n = len(mid_return)
    names = ("lee_mykland", "realized_semivariance_up", "realized_semivariance_down", "lee_mykland_flag")
    out = {name: np.full(n, NULL) for name in names}
    for b in range(n):
        seen = [float(r) for r in mid_return[max(0, b - WINDOW + 1) : b + 1] if not math.isnan(r)]
        if len(seen) >= MIN_POINTS:
            out["realized_semivariance_up"][b] = math.fsum(r * r for r in seen if r > 0)
            out["realized_semivariance_down"][b] = math.fsum(r * r for r in seen if r < 0)
        pairs = [abs(mid_return[j] * mid_return[j - 1]) for j in range(max(1, b - WINDOW), b)]
        pairs = [p for p in pairs if not math.isnan(p)]
        m = len(pairs)
        if m < MIN_POINTS or math.fsum(pairs) == 0 or math.isnan(mid_return[b]):
            continue
        out["lee_mykland"][b] = mid_return[b] / math.sqrt(math.fsum(pairs) / m)
        c = math.sqrt(2 / math.pi)
        root = math.sqrt(2 * math.log(m))
        centre = root / c - (math.log(math.pi) + math.log(math.log(m))) / (2 * c * root)
        scale = 1 / (c * root)
        gumbel = -math.log(-math.log(1 - JUMP_SIGNIFICANCE))
        out["lee_mykland_flag"][b] = (abs(out["lee_mykland"][b]) - centre) / scale > gumbel
    with np.errstate(divide="ignore", invalid="ignore"):
        out["jump_ratio"] = jump / rv
    out["signed_jump_variation"] = out["realized_semivariance_up"] - out["realized_semivariance_down"]
    return out


def range_volatility(
    open_price: Floats, high_price: Floats, low_price: Floats, close_price: Floats
) -> Columns:
    """Variances of a bucket from its four prices, shape (n,), and their means over the last WINDOW buckets."""
    out: Columns = {
        "parkinson": np.log(high_price / low_price) ** 2 / (4 * math.log(2)),
        "garman_klass": 0.5 * np.log(high_price / low_price) ** 2
        - (2 * math.log(2) - 1) * np.log(close_price / open_price) ** 2,
    }
    for name in ("parkinson", "garman_klass"):
        means = np.full(len(open_price), NULL)
        for b in range(MIN_POINTS - 1, len(means)):
            seen = out[name][max(0, b - WINDOW + 1) : b + 1]
            means[b] = math.fsum(seen) / len(seen)
        out[f"{name}_mean"] = means
    return out


def wavelet_step(signal: Floats) -> tuple[Floats, Floats]:
    """Approximation and detail, shape (n / 2,), of a periodic signal of shape (n,): one level of DB4."""
    n, taps = len(signal), len(DB4)
    approximation, detail = np.zeros(n // 2), np.zeros(n // 2)
    for k in range(n // 2):
        for j in range(taps):
            # h_j weighs the sample j after the window's first; its mirror with alternating signs is the wavelet
            x = signal[(2 * k + j + 1 - taps // 2) % n]
            approximation[k] += DB4[j] * x
            detail[k] += (-1) ** j * DB4[taps - 1 - j] * x
    return approximation, detail


def wavelet_energy(mid_return: Floats) -> Columns:
    """Energies of three levels over the last WAVELET_BUCKETS returns, shape (n,)."""
    names = (
        *(f"wavelet_energy_detail_{k}" for k in (1, 2, 3)),
        "wavelet_energy_approximation",
        "wavelet_snr",
    )
    out = {name: np.full(len(mid_return), NULL) for name in names}
    for b in range(WAVELET_BUCKETS - 1, len(mid_return)):
        rest = mid_return[b - WAVELET_BUCKETS + 1 : b + 1]
        if np.isnan(rest).any():
            continue
        noise = 0.0
        for level in (1, 2, 3):
            rest, detail = wavelet_step(rest)
            out[f"wavelet_energy_detail_{level}"][b] = math.fsum(detail**2)
            noise += out[f"wavelet_energy_detail_{level}"][b]
        out["wavelet_energy_approximation"][b] = math.fsum(rest**2)
        out["wavelet_snr"][b] = math.fsum(rest**2) / noise if noise else NULL
    return out
