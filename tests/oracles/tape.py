"""Tape-reading features from their definitions: one instrument at a time, in integers, by plain loops.

NaN stands for NULL; every output is a float64 array, one value per bucket. Times are microseconds, prices and quantities
values times 10**8. `ordered` is `clock.on_time` of the trades; states are what `features.book_states` keeps, with levels.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from statistics import median
from typing import Final

import numpy as np

from .clock import SECOND_US, Bucket, Trade, members
from .features import NULL, Columns

STEP_US: Final = 100_000
MAX_LAG_US: Final = 10 * SECOND_US
E8: Final = 10**8
Level = tuple[int, int]  # price, quantity


def _columns(rows: Sequence[dict[str, float]]) -> Columns:
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}


@dataclass(slots=True)
class Order:
    """What one side printed at one timestamp."""

    at: int
    is_buy: bool
    fills: list[Trade]

    @property
    def size(self) -> int:
        return sum(t.quantity_e8 for t in self.fills)

    @property
    def levels(self) -> int:
        return len({t.price_e8 for t in self.fills})


def orders(trades: Iterable[Trade]) -> list[Order]:
    """A bucket's taker orders by time; at one time the sell comes first."""
    found: dict[tuple[int, bool], list[Trade]] = defaultdict(list)
    for t in trades:
        found[t.timestamp, t.side == "buy"].append(t)
    return [Order(*key, fills) for key, fills in sorted(found.items(), key=lambda item: item[0])]


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)


def tape_runs(buckets: Sequence[Bucket], ordered: Sequence[Trade]) -> Columns:
    """Runs of prints and of 100 ms steps, momentum over 10 and 50 prints (bps), sweeps of two prices or more.

    A step's side is the sign of what takers bought in it, net. Momentum: NULL without the older print, or where
    it is more than 300 s older than the bucket's end.
    """
    rows = []
    for b in buckets:
        trades = members(b, ordered)
        runs = [(side, len(list(g))) for side, g in groupby(t.side for t in trades)]
        signed = [(side == "buy") * 2 - 1 for side, _ in runs]
        net: dict[int, int] = defaultdict(int)
        for t in trades:
            net[t.timestamp // STEP_US] += t.quantity_e8 if t.side == "buy" else -t.quantity_e8
        steps = [(side, len(list(g))) for side, g in groupby(_sign(net[s]) for s in sorted(net))]
        row: dict[str, float] = {
            "print_run_mean": len(trades) / len(runs),
            "print_run_max": max(n for _, n in runs),
            "print_run_last": signed[-1] * runs[-1][1],
            "step_run_max": max(abs(side) * n for side, n in steps),
            "step_run_last": steps[-1][0] * steps[-1][1],
            "active_step_share": len(net) / (b.bucket_ts_end // STEP_US - min(net) + 1),
        }
        last = b.first_index + b.trade_count - 1
        for n in (10, 50):
            usable = last >= n and ordered[last - n].timestamp >= b.bucket_ts_end - 300 * SECOND_US
            row[f"micro_momentum_{n}_bps"] = (
                (ordered[last].price_e8 / ordered[last - n].price_e8 - 1) * 1e4 if usable else NULL
            )
        for name, is_buy in (("buy", True), ("sell", False)):
            swept = [o for o in orders(trades) if o.is_buy == is_buy and o.levels >= 2]
            row[f"sweep_count_{name}"] = len(swept)
            row[f"sweep_share_{name}"] = sum(o.size for o in swept) / b.volume_e8
            row[f"sweep_levels_{name}"] = max((o.levels for o in swept), default=0)
        rows.append(row)
    return _columns(rows)


def _two_digits(size: int) -> int:
    """The size with all but its first two digits zero."""
    power = max(len(str(size)) - 2, 0)
    return size // 10**power * 10**power


def _quantile(counts: Counter[int], q: float) -> int:
    """The smallest value that at least the share q of all is not above."""
    n, seen = counts.total(), 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= q * n:
            return value
    raise ValueError("nothing counted")


def _in_rhythm(own: Sequence[Order]) -> list[bool]:
    """Of one side's orders, which end three gaps alike (to 0.1 of the largest) or three equal sizes."""
    out = []
    for i in range(len(own)):
        if i < 3:
            out.append(False)
            continue
        gaps = [own[j].at - own[j - 1].at for j in range(i - 2, i + 1)]
        alike = min(gaps) > 0 and max(gaps) - min(gaps) <= 0.1 * max(gaps)
        out.append(alike or len({own[j].size for j in range(i - 2, i + 1)}) == 1)
    return out


def aggressor_classes(buckets: Sequence[Bucket], ordered: Sequence[Trade]) -> Columns:
    """Orders by size, round lots and rhythm; quantiles (0.5, 0.9, 0.99) of the 50 buckets before, from 10 on."""
    rows = []
    past: list[Counter[int]] = []
    for b in buckets:
        own = orders(members(b, ordered))
        times = sorted({o.at for o in own})
        gaps = [after - before for before, after in pairwise(times)]
        row: dict[str, float] = {
            "order_count": len(own),
            "order_size_median": median(o.size for o in own) / E8,
            "order_gap_cv": float(np.std(gaps) / np.mean(gaps)) if len(gaps) >= 3 else NULL,
        }
        shares = {"round_lot": 0, "retail": 0, "algo": 0, "block": 0}
        known = sum(past[-50:], Counter())
        if len(past) >= 10:
            lot = 10 ** (len(str(_quantile(known, 0.5))) - 1)
            retail, block = _quantile(known, 0.9), _quantile(known, 0.99)
            for is_buy in (True, False):
                side = [o for o in own if o.is_buy == is_buy]
                for o, rhythm in zip(side, _in_rhythm(side), strict=True):
                    is_round = o.size % lot == 0
                    shares["round_lot"] += is_round * o.size
                    if o.size >= block:
                        shares["block"] += o.size
                    elif rhythm:
                        shares["algo"] += o.size
                    elif is_round and o.size <= retail:
                        shares["retail"] += o.size
        for name, size in shares.items():
            row[f"{name}_share"] = size / b.volume_e8 if len(past) >= 10 else NULL
        past.append(Counter(_two_digits(o.size) for o in own))
        rows.append(row)
    return _columns(rows)


def bin_size(price_e8: int, tick_e8: int) -> int:
    """The tick, or the first power of ten that is at least half a basis point of the price."""
    size = 1
    while size * 20_000 < price_e8:
        size *= 10
    return max(size, tick_e8)


def absorption(buckets: Sequence[Bucket], ordered: Sequence[Trade], *, tick_e8: int) -> Columns:
    """Volume at a level since it was last passed, in more than one order, over 60 s and at most 50 buckets."""
    rows = []
    for i, b in enumerate(buckets):
        size = bin_size(ordered[b.first_index].price_e8, tick_e8)
        near = [
            c
            for c in buckets[max(0, i - 49) : i + 1]
            if c.bucket_ts_end >= b.bucket_ts_end - 60 * SECOND_US
            and bin_size(ordered[c.first_index].price_e8, tick_e8) == size
        ]
        prints = [(c.bucket_id, t, t.price_e8 // size) for c in near for t in members(c, ordered)]
        candidates = []
        for side, passed in (("sell", lambda x, p: x < p), ("buy", lambda x, p: x > p)):
            for level in {p for _, _, p in prints}:
                first = max((k for k, (_, _, p) in enumerate(prints) if passed(p, level)), default=-1) + 1
                held: dict[tuple[int, int], int] = defaultdict(int)
                for bucket, t, p in prints[first:]:
                    if p == level and t.side == side:
                        held[bucket, t.timestamp] += t.quantity_e8
                if held:
                    candidates.append(
                        (sum(held.values()) - max(held.values()), 1 if side == "sell" else -1, level)
                    )
        absorbed, sign, level = max(candidates)
        past = buckets[max(0, i - 199) : i + 1]
        seconds = sum(c.bucket_ts_end - c.bucket_ts_start for c in past) / SECOND_US
        usual = sum(c.volume_e8 for c in past) / E8 / seconds if len(past) >= 20 and seconds else NULL
        price = level * size / E8 if absorbed else NULL
        close = ordered[b.first_index + b.trade_count - 1].price_e8 / E8
        rows.append(
            {
                "absorbed_volume": absorbed / E8,
                "absorbed_share": absorbed / sum(c.volume_e8 for c in near),
                "usual_volume_per_s": usual,
                "absorption_score": absorbed / E8 / (usual * 60),
                "absorption_side": sign if absorbed else NULL,
                "absorption_price": price,
                "absorption_distance_bps": (close / price - 1) * 1e4,
            }
        )
    return _columns(rows)


@dataclass(frozen=True, slots=True)
class State:
    """A book state as it became known, with its levels, best first."""

    known_at: int
    bids: tuple[Level, ...]
    asks: tuple[Level, ...]


@dataclass(slots=True)
class Side:
    """One side of the book at a step, against the step before. `best`: None where the side is empty."""

    depth: float
    best: Level | None
    view: tuple[float, float]
    walls: dict[int, float]  # price: multiple, from half a wall's on
    depth_before: float | None = None
    executed: float = 0.0
    hidden: float = 0.0
    up: dict[int, float] = field(default_factory=dict)
    gone: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Step:
    """The last state of a 100 ms step of a bucket."""

    bucket: int
    known_at: int
    follows: bool
    sides: dict[str, Side]


def _side(levels: Sequence[Level]) -> Side:
    quantities = [q / E8 for _, q in levels]
    middle = sorted(quantities)[(len(quantities) - 1) // 2] if levels else NULL
    return Side(
        depth=sum(quantities[:5]),
        best=levels[0] if levels else None,
        view=(levels[0][0], levels[-1][0]) if levels else (NULL, NULL),
        walls={p: q / E8 / middle for p, q in levels if q / E8 >= 7.5 * middle},
    )


def book_steps(buckets: Sequence[Bucket], ordered: Sequence[Trade], states: Sequence[State]) -> list[Step]:
    """The grid. A state is of the first bucket that had not ended before it, from 10 s before its start on."""
    ends = [b.bucket_ts_end for b in buckets]
    last: dict[tuple[int, int], State] = {}
    for state in states:
        i = bisect_left(ends, state.known_at)
        if i < len(buckets) and state.known_at >= buckets[i].bucket_ts_start - MAX_LAG_US:
            last[i, state.known_at // STEP_US] = state
    places = sorted((i, state.known_at) for (i, _), state in last.items())
    executed: dict[tuple[int, int], list[Trade]] = defaultdict(list)
    for i, b in enumerate(buckets):
        for t in members(b, ordered):
            k = bisect_left(places, (i, t.timestamp))
            if k < len(places):
                executed[places[k]].append(t)

    steps: list[Step] = []
    for i, known_at in places:
        state = last[i, known_at // STEP_US]
        step = Step(
            i,
            known_at,
            bool(steps) and known_at - steps[-1].known_at <= MAX_LAG_US,
            {"bid": _side(state.bids), "ask": _side(state.asks)},
        )
        if step.follows:
            for name, taker, sign in (("bid", "sell", -1), ("ask", "buy", 1)):
                side, before = step.sides[name], steps[-1].sides[name]
                fills = [t for t in executed[i, known_at] if t.side == taker]
                side.depth_before = before.depth
                side.executed = sum(t.quantity_e8 for t in fills) / E8
                if side.best and before.best and side.best[0] == before.best[0]:
                    at_best = sum(t.quantity_e8 for t in fills if t.price_e8 == side.best[0])
                    side.hidden = max(at_best - before.best[1], 0) / E8

                def behind(price: float, than: float, sign: int = sign) -> bool:
                    return sign * price > sign * than

                def in_view(price: float, of: Side, sign: int = sign) -> bool:
                    return sign * of.view[0] < sign * price <= sign * of.view[1]

                side.up = {
                    p: m
                    for p, m in side.walls.items()
                    if m >= 15 and behind(p, side.view[0]) and in_view(p, before) and p not in before.walls
                }
                side.gone = [
                    p
                    for p in before.walls
                    if in_view(p, side)
                    and p not in side.walls
                    and not any(t.price_e8 == p or behind(t.price_e8, p) for t in fills)
                ]
        steps.append(step)
    return steps


def _seen(buckets: Sequence[Bucket], steps: Sequence[Step]) -> list[list[int]]:
    """Per bucket: the numbers of its steps, those before its start not counted."""
    own: list[list[int]] = [[] for _ in buckets]
    for k, step in enumerate(steps):
        if step.known_at >= buckets[step.bucket].bucket_ts_start:
            own[step.bucket].append(k)
    return own


def liquidity_vacuum(buckets: Sequence[Bucket], steps: Sequence[Step], mid_close: Sequence[float]) -> Columns:
    """Collapses of the first five levels by 60 % within 500 ms, and icebergs. mid_close: of `top_of_book`."""
    own = _seen(buckets, steps)
    rows: list[dict[str, float]] = [{} for _ in buckets]
    for name in ("bid", "ask"):
        falls, large = [], []
        for k, step in enumerate(steps):
            window = [
                s.sides[name]
                for s in steps[max(0, k - 60) : k + 1]
                if s.known_at >= step.known_at - STEP_US * 5
            ]
            before = [s.depth_before for s in window if s.depth_before is not None]
            peak = max(before, default=0.0)
            falls.append(max(1 - step.sides[name].depth / peak, 0.0) if peak > 0 else 0.0)
            least = 0.75 * (peak - step.sides[name].depth)
            drops = [(s.depth_before - s.depth, s.executed) for s in window if s.depth_before is not None]
            large.append((any(d >= least for d, _ in drops), any(d - e >= least for d, e in drops)))
        down = [fall >= 0.6 for fall in falls]
        onset = [down[k] and not (steps[k].follows and down[k - 1]) for k in range(len(steps))]
        for row, numbers, mid in zip(rows, own, mid_close, strict=True):
            hidden = [steps[k].sides[name].hidden for k in numbers]
            nothing = 0.0 if not math.isnan(mid) else NULL
            row[f"depth_vanish_count_{name}"] = (
                sum(onset[k] and not large[k][0] for k in numbers) if numbers else nothing
            )
            row[f"depth_pull_count_{name}"] = (
                sum(onset[k] and large[k][1] for k in numbers) if numbers else nothing
            )
            row[f"depth_fall_max_{name}"] = max(falls[k] for k in numbers) if numbers else nothing
            row[f"iceberg_count_{name}"] = sum(h > 0 for h in hidden) if numbers else nothing
            row[f"iceberg_volume_{name}"] = math.fsum(hidden) if numbers else nothing
    return _columns(rows)


def spoofing(
    buckets: Sequence[Bucket],
    ordered: Sequence[Trade],
    steps: Sequence[Step],
    mid_close: Sequence[float],
    usual_volume_per_s: Sequence[float],
) -> Columns:
    """Walls that went up and were gone within 60 s; net prints on the other side in the 10 s after."""
    own = _seen(buckets, steps)
    rows: list[dict[str, float]] = [{} for _ in buckets]
    for name, sign in (("bid", -1), ("ask", 1)):
        standing: dict[int, tuple[int, float]] = {}
        pulls = []  # step, multiple
        for k, step in enumerate(steps):
            side = step.sides[name]
            for p in side.gone:
                since = standing.pop(p, None)
                if since and step.known_at - since[0] <= 60 * SECOND_US:
                    pulls.append((k, since[1]))
            standing |= {p: (step.known_at, m) for p, m in side.up.items()}
        for i, (b, row) in enumerate(zip(buckets, rows, strict=True)):
            blind = not own[i] and math.isnan(mid_close[i])
            row[f"wall_pull_count_{name}"] = NULL if blind else sum(k in own[i] for k, _ in pulls)
            score = 0.0
            for k, multiple in pulls:
                start = steps[k].known_at
                after = [t for t in members(b, ordered) if start < t.timestamp <= start + 10 * SECOND_US]
                if not after:
                    continue
                net = sum(
                    sign * (t.quantity_e8 if t.side == "buy" else -t.quantity_e8)
                    for t in ordered[: b.first_index + b.trade_count]
                    if start < t.timestamp <= start + 10 * SECOND_US
                )
                score = max(score, multiple * max(net, 0) / E8)
            row[f"spoof_score_{name}"] = NULL if blind else score / (usual_volume_per_s[i] * 10)
    return _columns(rows)
