"""Labels beyond `features.labels`, from their formulas: one bucket at a time, no shared work, exact fractions for weights.

NaN stands for NULL; times are microseconds. Sources: López de Prado (2018), Advances in Financial Machine
Learning, ch. 3 (triple barrier) and 4 (concurrency, average uniqueness); Kaufman (1995), Smarter Trading
(efficiency ratio).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Final

import numpy as np

from .clock import SECOND_US, Bucket, Trade
from .features import BOOK_MAX_LAG_US, BUCKET_HORIZONS, NULL, BookStates, Columns, Floats, Ints

CLOCK_HORIZONS: Final = (5, 10, 30, 60, 300)
PATH_HORIZONS: Final = (10, 60, 300)
BARRIER_HORIZONS: Final = (60, 300)
FILL_HORIZONS: Final = (1, 5, 30)
WAIT_US: Final = 30 * SECOND_US
SHAPES: Final = ("flat", "monotone", "v", "inverted_v", "choppy")  # coded by place
Quote = tuple[float, float]


def complete_to(states: BookStates, watermark: int | None = None) -> int:
    """How far the book is known: its last state, or all before its watermark."""
    last = int(states.rows.known_at[-1]) if len(states.rows.known_at) else -1
    return max(last, (watermark or 0) - 1)


def quote(states: BookStates, when: int) -> Quote | None:
    """Bid and ask of the last state known at `when`; None if there is none, it is one-sided or too old."""
    i = bisect_right(states.rows.known_at, when) - 1
    if i < 0 or not states.valid[i] or when - states.rows.timestamp[i] > BOOK_MAX_LAG_US:
        return None
    return float(states.rows.bid_price[i]), float(states.rows.ask_price[i])


def mid(states: BookStates, when: int, complete: int) -> float:
    """The mid known at `when`; NaN beyond where the book is complete to."""
    found = quote(states, when) if when <= complete else None
    return NULL if found is None else (found[0] + found[1]) / 2


def returns(
    ends: Ints,
    mid_close: Floats,
    *,
    window: int = 50,
    winsor: int = 500,
    least: int = 100,
    level: float = 0.01,
) -> Columns:
    """Per k: label_ret_raw_k, label_ret_wins_k (cut at quantiles of past returns per second), expected_duration_k_s."""
    out: Columns = {}
    n = len(ends)
    for k in BUCKET_HORIZONS:
        raw, wins, expected = (np.full(n, NULL) for _ in range(3))

        def per_second(b: int, k: int = k) -> float:
            return float(mid_close[b] / mid_close[b - k] - 1) / max((ends[b] - ends[b - k]) / SECOND_US, 1.0)

        for b in range(n):
            took = [int(ends[t] - ends[t - k]) for t in range(max(k, b - window + 1), b + 1)]
            if len(took) >= 10:
                expected[b] = float(Fraction(sum(took), len(took) * SECOND_US))
            if b + k >= n:
                continue
            raw[b] = mid_close[b + k] / mid_close[b] - 1
            past = [per_second(t) for t in range(max(k, b - winsor + 1), b + 1)]
            past = [x for x in past if not math.isnan(x)]
            if len(past) >= least:
                low, high = np.quantile(past, [level, 1 - level])
                wins[b] = np.clip(per_second(b + k), low, high)
        out |= {
            f"label_ret_raw_{k}": raw,
            f"label_ret_wins_{k}": wins,
            f"expected_duration_{k}_s": expected,
        }
    return out


def shape(points: Sequence[float], *, efficiency: float = 0.6, leg: float = 1 / 3) -> str:
    """Shape of a path through `points` (returns since the start, the start's 0 first)."""
    travelled = float(np.abs(np.diff(points)).sum())
    if travelled == 0:
        return "flat"
    if round(abs(points[-1]) / travelled, 8) >= efficiency:
        return "monotone"
    best = {}
    for name, up in (("v", -1), ("inverted_v", 1)):
        there = max(up * p for p in points)
        back = there - up * points[-1]
        is_two_legged = max(there, back) > 0 and round(min(there, back) / max(there, back), 8) >= round(
            leg, 8
        )
        best[name] = round((there + back) / travelled, 8) if is_two_legged else 0.0
    name = max(best, key=lambda x: best[x])
    return name if best[name] >= efficiency else "choppy"


def paths(
    ends: Ints,
    mid_close: Floats,
    variance_per_second: Floats,
    states: BookStates,
    watermark: int | None = None,
) -> Columns:
    """Triple barrier, excursions and shape over samples at whole seconds in (end, end + h] and at end + h."""
    complete = complete_to(states, watermark)
    n = len(ends)
    out: Columns = {}

    def samples(b: int, h: int) -> list[tuple[int, float]]:
        first = int(ends[b]) // SECOND_US + 1
        times = [(first + i) * SECOND_US for i in range(h)] + [int(ends[b]) + h * SECOND_US]
        return [(t, mid(states, t, complete) / mid_close[b] - 1) for t in times]

    for h in BARRIER_HORIZONS:
        side, outcome, waited, known = (np.full(n, NULL) for _ in range(4))
        for b in range(n):
            end = int(ends[b]) + h * SECOND_US
            width = math.sqrt(variance_per_second[b]) * math.sqrt(h)
            known[b] = end if end <= complete else NULL
            if not width > 0:
                continue
            for t, r in samples(b, h):
                if math.isnan(r):
                    break
                if abs(r) >= width:
                    side[b], outcome[b], known[b] = math.copysign(1, r), r, t
                    waited[b] = (t - ends[b]) / SECOND_US
                    break
            else:
                side[b], outcome[b] = 0, r
        out |= {
            f"label_barrier_{h}s": side,
            f"label_ret_barrier_{h}s": outcome,
            f"label_touch_s_barrier_{h}s": waited,
            f"label_known_at_barrier_{h}s": known,
        }
    for h in PATH_HORIZONS:
        ret, high, low, form = (np.full(n, NULL) for _ in range(4))
        for b in range(n):
            way = [r for _, r in samples(b, h)]
            if not any(math.isnan(r) for r in way):
                ret[b], high[b], low[b] = way[-1], max(0.0, *way), min(0.0, *way)
                ten = [way[i * h // 10 - 1] for i in range(1, 10)]
                form[b] = SHAPES.index(shape([0.0, *ten, way[-1]]))
        out |= {
            f"label_ret_path_{h}s": ret,
            f"label_mfe_{h}s": high,
            f"label_mae_{h}s": low,
            f"label_shape_{h}s": form,
            f"label_known_at_{h}s": (ends + h * SECOND_US).astype(np.float64),
        }
    return out


def weights(
    ends: Ints, mid_close: Floats, variance_per_second: Floats, columns: Columns, closed_to: int
) -> Columns:
    """Overlap and average uniqueness of each label: pair by pair, in exact fractions.

    columns: label_known_at_* of the labels. closed_to: before it no bucket is missing.
    """
    n = len(ends)
    is_open = ~np.isnan(mid_close)
    out: Columns = {}
    for k in BUCKET_HORIZONS:
        overlap, uniqueness = np.full(n, NULL), np.full(n, NULL)
        for i in range(n - k):
            if is_open[i]:
                own = set(range(i + 1, i + k + 1))
                spans = {
                    j: own & set(range(j + 1, j + k + 1)) for j in range(n) if is_open[j] and abs(j - i) <= k
                }
                overlap[i] = sum(bool(span) for span in spans.values()) - 1
                uniqueness[i] = sum(Fraction(1, sum(t in s for s in spans.values())) for t in own) / k
        out |= {f"label_overlap_{k}": overlap, f"label_uniqueness_{k}": uniqueness}
        out[f"label_known_at_{k}"] = columns[f"label_known_at_{k}"]
    names = [f"barrier_{h}s" for h in BARRIER_HORIZONS] + [f"{h}s" for h in CLOCK_HORIZONS]
    for name in names:
        known = columns[f"label_known_at_{name}"]
        opens = is_open & (variance_per_second > 0) if "barrier" in name else is_open
        spans = [
            (int(ends[j]), 2**62 if math.isnan(known[j]) else int(known[j])) for j in range(n) if opens[j]
        ]
        overlap, uniqueness = np.full(n, NULL), np.full(n, NULL)
        for i in range(n):
            if not opens[i] or math.isnan(known[i]) or known[i] >= closed_to:
                continue
            a, z = int(ends[i]), int(known[i])
            near = [(max(a, s), min(z, e)) for s, e in spans if s < z and e > a]
            overlap[i] = len(near) - 1
            edges = sorted({t for span in near for t in span})
            total = Fraction(0)
            for s, e in pairwise(edges):
                total += Fraction(e - s, sum(x <= s and y >= e for x, y in near))
            uniqueness[i] = total / (z - a)
        out |= {
            f"label_overlap_{name}": overlap,
            f"label_uniqueness_{name}": uniqueness,
            f"label_known_at_{name}": known,
        }
    return out


def fills(
    buckets: Sequence[Bucket],
    ordered: Sequence[Trade],
    states: BookStates,
    closed_to: int,
    watermark: int | None = None,
    *,
    first_in_queue: bool = False,
) -> Columns:
    """Maker's fills and markouts from quotes at each bucket's end, and markouts of a taker who crosses there.

    ordered: `clock.on_time` of all trades. closed_to: before it no trade is missing.
    """
    complete = complete_to(states, watermark)
    rows: list[dict[str, float]] = []
    for bucket in buckets:
        end = bucket.bucket_ts_end
        row: dict[str, float] = {}
        found = quote(states, end)
        bid, ask = found or (NULL, NULL)
        for side, taker, price, sign in (("buy", "sell", bid, 1), ("sell", "buy", ask, -1)):
            at = NULL
            if found:
                for t in ordered:
                    gap = sign * (price - (t.price_e8 / 10**8))
                    through = gap > 0 or (first_in_queue and gap == 0)
                    if t.side == taker and end < t.timestamp <= end + WAIT_US and through:
                        at = t.timestamp
                        break
            filled = not math.isnan(at)
            over = end + WAIT_US if found and end + WAIT_US < closed_to else NULL
            for h in (0, *FILL_HORIZONS):
                name = f"{side}_maker_{h}s" if h else f"{side}_fill"
                later = mid(states, int(at) + h * SECOND_US, complete) if filled else NULL
                row[f"label_ret_{name}"] = sign * (later / price - 1)
                row[f"label_known_at_{name}"] = at + h * SECOND_US if filled else over
            row[f"label_wait_s_{side}_fill"] = (at - end) / SECOND_US
        for h in FILL_HORIZONS:
            later = mid(states, end + h * SECOND_US, complete)
            row[f"label_ret_buy_taker_{h}s"] = later / ask - 1
            row[f"label_ret_sell_taker_{h}s"] = 1 - later / bid
            row[f"label_known_at_taker_{h}s"] = end + h * SECOND_US
        rows.append(row)
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}
