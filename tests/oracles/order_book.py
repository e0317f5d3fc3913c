"""The order book's levels from their formulas: exact rationals until the end, where a formula allows it. NaN stands for NULL.

Prices and quantities are integers of 1e-8 (venue units: contracts if inverse), times int64 microseconds since the epoch. Functions on
one book return a dict column -> value; `everything` gives all columns, one value a bucket, in bucket order.

Sources: Cont, Stoikov & Talreja (2010), A stochastic model for order book dynamics (a book as sizes by distance); Almgren, Thum, Hauptmann &
Li (2005), Direct estimation of equity market impact (linear and square-root cost); Stoikov (2018), The micro-price.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Final

import numpy as np
import scipy.stats

from tests.oracles.features import BOOK_MAX_LAG_US, NULL, Columns, Floats, Ints

E8: Final = 10**8
DEPTH: Final = 20
MIN_LEVELS: Final = 5
Level = tuple[int, int]  # price, quantity, both times 1e8
Values = dict[str, float]


@dataclass(frozen=True, slots=True)
class Book:
    """One state as the feed gave it. best_bid, best_ask: (price, quantity) as published beside the levels; a 0: that side is empty."""

    timestamp: int
    update_id: int
    known_at: int
    bids: tuple[Level, ...]
    asks: tuple[Level, ...]
    best_bid: Level
    best_ask: Level


@dataclass(frozen=True, slots=True)
class Sides:
    """A usable state: the shown levels of both sides, best first, and the mid times 1e8."""

    bids: tuple[Level, ...]
    asks: tuple[Level, ...]
    mid: Fraction

    def distances(self, side: str) -> list[Fraction]:
        """Distance of each level from mid in bps."""
        levels = self.bids if side == "bid" else self.asks
        return [abs(price - self.mid) / self.mid * 10_000 for price, _ in levels]

    def quantities(self, side: str) -> list[Fraction]:
        return [Fraction(q, E8) for _, q in (self.bids if side == "bid" else self.asks)]


def usable(book: Book) -> Sides | None:
    """The first 20 levels with a quantity, if both best levels are there and the shown levels lie around their mid."""
    if 0 in (*book.best_bid, *book.best_ask):
        return None
    bids, asks = (tuple(x for x in side if x[1] > 0)[:DEPTH] for side in (book.bids, book.asks))
    mid = Fraction(book.best_bid[0] + book.best_ask[0], 2)
    if not bids or not asks or bids[0][0] >= mid or asks[0][0] <= mid:
        return None
    return Sides(bids, asks, mid)


def kept(books: Sequence[Book], *, lag_us: int = BOOK_MAX_LAG_US) -> list[Book]:
    """In order of knowledge, without what was known too late to be used and what was older than something known."""
    out, newest = [], (-1, -1)
    for b in sorted(books, key=lambda b: (b.known_at, b.timestamp, b.update_id)):
        if b.known_at - b.timestamp <= lag_us and (b.timestamp, b.update_id) >= newest:
            newest = (b.timestamp, b.update_id)
            out.append(b)
    return out


def depth(book: Sides) -> Values:
    """Imbalances, depths, gaps and microprices of one book."""
    out: Values = {}
    size = {side: book.quantities(side) for side in ("bid", "ask")}
    away = {side: book.distances(side) for side in ("bid", "ask")}
    levels = min(len(book.bids), len(book.asks))
    for n in (5, 10, 20):
        if levels >= n:
            b, a = (sum(size[side][i] / (i + 1) for i in range(n)) for side in ("bid", "ask"))
            out[f"weighted_imbalance_{n}"] = float((b - a) / (b + a))
        for side in ("bid", "ask"):
            if len(size[side]) >= n:
                out[f"{side}_depth_{n}"] = float(sum(size[side][:n]))
    for side in ("bid", "ask"):
        out[f"{side}_reach_bps"] = float(away[side][-1])
        for bps in (5, 10, 25):
            if away[side][-1] >= bps:
                within = [q for q, d in zip(size[side], away[side], strict=True) if d <= bps]
                out[f"{side}_depth_{bps}bps"] = float(sum(within))
        if len(size[side]) >= 10:
            gaps = [after - before for before, after in pairwise(away[side][:10])]
            out[f"{side}_fault_line_bps"] = float(max(gaps))
            out[f"{side}_fault_line_distance_bps"] = float(away[side][gaps.index(max(gaps))])
    if levels >= 10:
        b, a = (sum(q / d for q, d in zip(size[s][:10], away[s][:10], strict=True)) for s in ("bid", "ask"))
        out["book_pressure"] = math.log(b / a)
    for n in (5, 10):
        if levels >= n:
            total_bid, total_ask = sum(size["bid"][:n]), sum(size["ask"][:n])
            mean_bid = sum(p * Fraction(q, E8) for p, q in book.bids[:n]) / total_bid
            mean_ask = sum(p * Fraction(q, E8) for p, q in book.asks[:n]) / total_ask
            micro = (mean_ask * total_bid + mean_bid * total_ask) / (total_bid + total_ask)
            out[f"microprice_{n}_gap_bps"] = float((micro - book.mid) / book.mid * 10_000)
    return out


def shape(book: Sides) -> Values:
    """The cumulative depth curve's fits and the distribution of size, per side with at least 5 levels."""
    out: Values = {}
    moments: dict[str, Fraction] = {}
    totals: dict[str, Fraction] = {}
    for side in ("bid", "ask"):
        x, q = book.distances(side), book.quantities(side)
        y = list(accumulate(q))
        n, total = len(x), y[-1]
        moments[side], totals[side] = sum((a * b for a, b in zip(x, q, strict=True)), Fraction(0)), total
        if n < MIN_LEVELS:
            continue
        out[f"{side}_depth_slope"] = float(_fit(x, y, 1)[1])
        out[f"{side}_depth_curvature"] = float(_fit(x, y, 2)[2])
        unit = [((a - x[0]) / (x[-1] - x[0]), (b - y[0]) / (y[-1] - y[0])) for a, b in zip(x, y, strict=True)]
        area = sum((right[0] - left[0]) * (left[1] + right[1]) / 2 for left, right in pairwise(unit))
        out[f"{side}_depth_convexity"] = float(1 - 2 * area)
        reached = {p: next(a for a, b in zip(x, y, strict=True) if b * 10 >= total * p) for p in (1, 9)}
        out[f"{side}_tail_width_bps"] = float(reached[9] - reached[1])
        out[f"{side}_size_entropy"] = float(scipy.stats.entropy([float(v) for v in q], base=n))
        out[f"{side}_gravity_bps"] = float(moments[side] / total)
    if min(len(book.bids), len(book.asks)) >= MIN_LEVELS:
        out["book_gravity_bps"] = float((moments["ask"] - moments["bid"]) / (totals["bid"] + totals["ask"]))
    return out


def _fit(x: Sequence[Fraction], y: Sequence[Fraction], degree: int) -> list[Fraction]:
    """Coefficients of the least-squares polynomial, constant first: the normal equations, solved exactly."""
    size = degree + 1
    rows = [
        [sum((v ** (i + j) for v in x), Fraction(0)) for j in range(size)]
        + [sum((v**i * w for v, w in zip(x, y, strict=True)), Fraction(0))]
        for i in range(size)
    ]
    for i in range(size):
        rows[i] = [v / rows[i][i] for v in rows[i]]
        for k in range(size):
            if k != i:
                rows[k] = [a - rows[k][i] * b for a, b in zip(rows[k], rows[i], strict=True)]
    return [row[-1] for row in rows]


def impact(book: Sides, *, market_type: str, contract_value: Fraction) -> Values:
    """Cost of taking notional from one book, and its fits on size. contract_value: as in `features.trade_flow`."""
    out: Values = {}
    for action, levels in (("buy", book.asks), ("sell", book.bids)):
        # (price, notional) of each level
        offers = [
            (
                Fraction(p, E8),
                contract_value * Fraction(q, E8) * (1 if market_type == "inverse" else Fraction(p, E8)),
            )
            for p, q in levels
        ]
        for name, wanted in (("10k", 10**4), ("100k", 10**5), ("1m", 10**6)):
            cost = _cost(offers, Fraction(wanted), book.mid / E8)
            if cost is not None:
                out[f"{action}_cost_{name}_bps"] = float(cost)
        if len(offers) < MIN_LEVELS:
            continue
        sizes = list(accumulate(n for _, n in offers))
        costs = [_cost(offers, size, book.mid / E8) for size in sizes]
        y = np.array([float(c) for c in costs if c is not None])
        for form, x in (
            ("linear", np.array([float(s / 10**6) for s in sizes])),
            ("sqrt", np.array([math.sqrt(s / 10**6) for s in sizes])),
        ):
            fit = scipy.stats.linregress(x, y)
            out[f"{action}_impact_{form}"] = float(fit.slope)
            out[f"{action}_impact_{form}_r2"] = float(fit.rvalue**2)
    return out


def _cost(offers: Sequence[tuple[Fraction, Fraction]], wanted: Fraction, mid: Fraction) -> Fraction | None:
    """Bps between mid and the mean price of `wanted` notional, level by level; None: not that much is shown."""
    left, coins = wanted, Fraction(0)
    for price, notional in offers:
        taken = min(left, notional)
        coins += taken / price
        left -= taken
        if left == 0:
            return abs(wanted / coins - mid) / mid * 10_000
    return None


def dynamics(
    starts: Ints,
    ends: Ints,
    books: Sequence[Book],
    buy_volume: Floats,
    sell_volume: Floats,
    *,
    lag_us: int = BOOK_MAX_LAG_US,
) -> list[Values]:
    """How the book changed over each bucket. books: of `kept`."""
    sides = [usable(b) for b in books]
    changes: list[list[int]] = [[] for _ in ends]
    for i, b in enumerate(books):
        bucket = int(np.searchsorted(ends, b.known_at, side="left"))
        if bucket < len(ends) and b.known_at >= starts[bucket]:
            changes[bucket].append(i)
    # (from, to, best bid, best ask): when which best prices were known and not too old
    held = [
        (b.known_at, min(after, b.timestamp + lag_us), s.bids[0][0], s.asks[0][0])
        for b, s, after in zip(books, sides, [b.known_at for b in books[1:]] + [2**62], strict=False)
        if s is not None
    ]
    out: list[Values] = []
    for start, end, own, bought, sold in zip(starts, ends, changes, buy_volume, sell_volume, strict=True):
        row: Values = {}
        out.append(row)
        closing = close(books, end, lag_us=lag_us)
        seconds = Fraction(int(end - start), 10**6)
        flows = [
            _flow(sides[i - 1], sides[i])
            for i in own
            if i > 0 and books[i].known_at - books[i - 1].known_at <= lag_us
        ]
        pairs = [f for f in flows if f is not None]
        if pairs:
            row["book_stability"] = 1 - math.fsum(float(p["distance"]) for p in pairs) / len(pairs)
        if seconds:
            row["book_refresh_rate"] = float(len(own) / seconds)
        if seconds and (pairs or (not own and closing)):
            for side, taken in (("bid", sold), ("ask", bought)):
                added, removed = (
                    sum((p[f"{side}_{k}"] for p in pairs), Fraction(0)) for k in ("added", "removed")
                )
                row[f"{side}_add_rate"] = float(added / seconds)
                row[f"{side}_cancel_rate"] = float(
                    max(removed - Fraction(round(taken * E8), E8), Fraction(0)) / seconds
                )
                row[f"{side}_net_rate"] = float((added - removed) / seconds)
        spells = [(max(a, start), min(b, end), *best) for a, b, *best in held if max(a, start) < min(b, end)]
        for k, side in enumerate(("bid", "ask"), 2):
            prices = [s[k] for s in spells]
            if closing and seconds:
                last = (closing.bids if side == "bid" else closing.asks)[0][0]
                row[f"best_{side}_time_share"] = sum(s[1] - s[0] for s in spells if s[k] == last) / int(
                    end - start
                )
            if closing and spells:
                runs = 1 + sum(x != y for x, y in pairwise(prices))
                row[f"best_{side}_lifetime_ms"] = sum(s[1] - s[0] for s in spells) / 1000 / runs
    return out


def _flow(before: Sides | None, now: Sides | None) -> Mapping[str, Fraction] | None:
    """Size added and removed at the prices that both books show, and their sum over all size there."""
    if before is None or now is None:
        return None
    out: dict[str, Fraction] = {}
    moved = total = 0
    for side, old, new in (("bid", before.bids, now.bids), ("ask", before.asks, now.asks)):
        border = max(old[-1][0], new[-1][0]) if side == "bid" else min(old[-1][0], new[-1][0])
        sizes = [
            {p: q for p, q in levels if (p >= border if side == "bid" else p <= border)}
            for levels in (old, new)
        ]
        deltas = [sizes[1].get(p, 0) - sizes[0].get(p, 0) for p in {*sizes[0], *sizes[1]}]
        out[f"{side}_added"] = Fraction(sum(d for d in deltas if d > 0), E8)
        out[f"{side}_removed"] = Fraction(-sum(d for d in deltas if d < 0), E8)
        moved += sum(abs(d) for d in deltas)
        total += sum(sizes[0].values()) + sum(sizes[1].values())
    out["distance"] = Fraction(moved, total)
    return out


def close(books: Sequence[Book], when: int, *, lag_us: int = BOOK_MAX_LAG_US) -> Sides | None:
    """The last of `kept` books known at `when`, unless it is unusable or too old."""
    known = [b for b in books if b.known_at <= when]
    return usable(known[-1]) if known and when - known[-1].timestamp <= lag_us else None


def everything(
    starts: Ints,
    ends: Ints,
    books: Sequence[Book],
    buy_volume: Floats,
    sell_volume: Floats,
    *,
    market_type: str,
    contract_value: Fraction,
) -> Columns:
    """Every column of book_depth, book_shape, impact_cost and book_dynamics; a column that never has a value is missing."""
    states = kept(books)
    rows = dynamics(starts, ends, states, buy_volume, sell_volume)
    depths: list[Values] = []
    for row, end in zip(rows, ends, strict=True):
        book = close(states, int(end))
        depths.append(depth(book) if book else {})
        row.update(depths[-1])
        if book:
            row.update(shape(book), **impact(book, market_type=market_type, contract_value=contract_value))
    for b in range(1, len(rows)):
        for side in ("bid", "ask"):
            now, before = (d.get(f"{side}_depth_10") for d in (depths[b], depths[b - 1]))
            if now is not None and before is not None and ends[b] > ends[b - 1]:
                rows[b][f"{side}_depth_velocity"] = (now - before) / (int(ends[b] - ends[b - 1]) / 1e6)
    names = sorted({name for row in rows for name in row})
    return {name: np.array([row.get(name, NULL) for row in rows], dtype=np.float64) for name in names}
