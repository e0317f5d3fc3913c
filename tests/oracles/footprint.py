"""Footprint features and levels from their formulas. NaN stands for NULL. One instrument at a time.

Times are int64 microseconds since the epoch; prices and quantities are integers, values times 10**8, so that
sums are exact. Every run is computed from its trades alone, with nothing carried over. Definitions: the column
documentation of models/features/footprint; DBSCAN is scikit-learn's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from sklearn.cluster import DBSCAN

from .clock import HOUR_US, MINUTE_US, SECOND_US, Bucket, Trade, members
from .features import NULL, Columns, Floats, Ints

RUN_US: Final = 5 * MINUTE_US
WINDOWS_H: Final = (1, 4, 24)
MAX_LAG_US: Final = 600 * SECOND_US
E8: Final = 10**8


def price_bin(price_e8: int, tick_e8: int) -> int:
    """Lower edge of the price's bin: the widest of 1, 2, 5, 10, … ticks that is at most 1 bp of the price."""
    tick = tick_e8 or 1
    width, step = tick, 0
    while True:
        wider = tick * (1, 2, 5)[step % 3] * 10 ** (step // 3)
        if wider * 10_000 > price_e8:
            break
        width, step = wider, step + 1
    return price_e8 // width * width


def _ratio(a: float, b: float) -> float:
    return a / b if b else NULL


def _longest(flags: Sequence[bool]) -> int:
    best = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        best = max(best, run)
    return best


def footprint(buckets: Sequence[Bucket], ordered: Sequence[Trade], *, tick_e8: int) -> Columns:
    """The shape of each bucket's volume over price; shape (n,) a column. ordered: `clock.on_time` of the trades."""
    rows = [_shape(members(b, ordered), tick_e8) for b in buckets]
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]} if rows else {}


def _shape(trades: Sequence[Trade], tick_e8: int) -> dict[str, float]:
    by_bin: dict[int, list[Trade]] = defaultdict(list)
    for t in trades:
        by_bin[price_bin(t.price_e8, tick_e8)].append(t)
    bins = [by_bin[edge] for edge in sorted(by_bin)]
    buy = [sum(t.quantity_e8 for t in own if t.side == "buy") for own in bins]
    sell = [sum(t.quantity_e8 for t in own if t.side == "sell") for own in bins]
    volume = [b + s for b, s in zip(buy, sell, strict=True)]
    delta = [b - s for b, s in zip(buy, sell, strict=True)]
    low = [min(t.price_e8 for t in own) for own in bins]
    high = [max(t.price_e8 for t in own) for own in bins]
    n, total, close = len(bins), sum(volume), trades[-1].price_e8
    poc = volume.index(max(volume))
    strongest = max(range(n), key=lambda i: (abs(delta[i]), -i))

    def distance(i: int) -> float:
        return ((low[i] + high[i]) / 2 / close - 1) * 1e4

    held = [
        high[j] - low[i] for i in range(n) for j in range(i, n) if 10 * sum(volume[i : j + 1]) >= 7 * total
    ]
    return {
        "footprint_bin_count": n,
        "poc_distance_bps": distance(poc),
        "poc_volume_share": volume[poc] / total,
        "poc_delta": delta[poc] / E8,
        "poc_imbalance": delta[poc] / volume[poc],
        "value_area_width_bps": min(held) / close * 1e4,
        "max_bin_delta_share": delta[strongest] / total,
        "max_bin_delta_distance_bps": distance(strongest),
        "bin_delta_dispersion": sum(map(abs, delta)) / total,
        "high_bin_imbalance": delta[-1] / volume[-1],
        "low_bin_imbalance": delta[0] / volume[0],
        "footprint_entropy": -math.fsum(v / total * math.log(v / total) for v in volume),
        "stacked_buy_imbalance": _longest([buy[i] > 0 and buy[i] >= 3 * sell[i - 1] for i in range(1, n)]),
        "stacked_sell_imbalance": _longest([sell[i] > 0 and sell[i] >= 3 * buy[i + 1] for i in range(n - 1)]),
    }


@dataclass(frozen=True, slots=True)
class Candidate:
    """A price bin that stands out in a window. Volumes and delta in units, times in µs."""

    run_ts: int
    window_h: int
    price_bin_e8: int
    price: float
    volume: float
    delta: float
    range_bps: float
    reversal_bps: float
    last_seen: int
    is_absorption: bool
    is_exhaustion: bool


@dataclass(frozen=True, slots=True)
class Cluster:
    """A level. `share` of its window's volume; `sign` of its delta; `last_seen` in µs."""

    window_h: int
    price: float
    volume: float
    share: float
    sign: int
    last_seen: int
    bins: int


@dataclass(frozen=True, slots=True)
class Window:
    """A window's whole volume, how many bins have a part in it, and its candidates, ascending in price."""

    volume: float
    bin_count: int
    threshold: float
    candidates: list[Candidate]


Runs = dict[int, dict[int, Window]]


def runs(ordered: Sequence[Trade], *, tick_e8: int, watermark: int = 0) -> Runs:
    """Per run, per window: what traded, and the candidates.

    A run is each multiple of five minutes with a trade in the hour before it, once a trade at or after it, or a
    watermark behind it, says that nothing more comes.
    """
    trades: dict[int, list[Trade]] = defaultdict(list)
    for t in ordered:
        trades[t.timestamp // MINUTE_US * MINUTE_US].append(t)
    minutes = {m: _minute(own, tick_e8) for m, own in trades.items()}
    last = ordered[-1].timestamp
    wanted = {
        r
        for m in minutes
        for r in range(-(-(m + 1) // RUN_US) * RUN_US, m + HOUR_US + 1, RUN_US)
        if r <= last or r < watermark
    }
    return {r: {h: _window(minutes, r, h) for h in WINDOWS_H} for r in sorted(wanted)}


@dataclass(frozen=True, slots=True)
class _Minute:
    """Volume, delta and turnover by bin; the minute's range and last price. Integers."""

    bins: dict[int, tuple[int, int, int]]
    spread: int
    close: int


def _minute(trades: Sequence[Trade], tick_e8: int) -> _Minute:
    bins: dict[int, tuple[int, int, int]] = {}
    for t in trades:
        b = price_bin(t.price_e8, tick_e8)
        volume, delta, turnover = bins.get(b, (0, 0, 0))
        signed = t.quantity_e8 if t.side == "buy" else -t.quantity_e8
        bins[b] = (volume + t.quantity_e8, delta + signed, turnover + t.price_e8 * t.quantity_e8)
    prices = [t.price_e8 for t in trades]
    return _Minute(bins, max(prices) - min(prices), prices[-1])


def _window(minutes: dict[int, _Minute], run: int, hours: int) -> Window:
    volume, delta, turnover, spread = (defaultdict[int, int](int) for _ in range(4))
    followed, moved, seen = (defaultdict[int, int](int) for _ in range(3))
    for m in range(run - hours * HOUR_US, run, MINUTE_US):
        if m not in minutes:
            continue
        minute, before = minutes[m], minutes.get(m - MINUTE_US)
        for b, (v, d, pq) in minute.bins.items():
            volume[b] += v
            delta[b] += d
            turnover[b] += pq
            spread[b] += v * minute.spread
            seen[b] = m + MINUTE_US
        if before:
            for b, (v, _, _) in before.bins.items():
                followed[b] += v
                moved[b] += v * (minute.close - before.close)
    traded = sorted(volume)
    volumes = sorted(volume.values())
    threshold = volumes[int(0.9 * len(volumes))]
    candidates = []
    for b in traded:
        if volume[b] <= threshold:
            continue
        price = turnover[b] / volume[b] / E8
        range_bps = spread[b] / turnover[b] * 1e4
        reversal = moved[b] / followed[b] / E8 / price * 1e4 if followed[b] else NULL
        sidedness = abs(delta[b] / E8) / (volume[b] / E8)
        absorbed = range_bps < 5 and (sidedness < 0.2 or sidedness > 0.7)
        exhausted = sidedness > 0.7 and delta[b] * moved[b] < 0
        if absorbed or exhausted:
            sums = (price, volume[b] / E8, delta[b] / E8, range_bps, reversal, seen[b])
            candidates.append(Candidate(run, hours, b, *sums, absorbed, exhausted))
    return Window(sum(volumes) / E8, len(traded), threshold / E8, candidates)


def clusters(
    windows: dict[int, Window], *, eps_bps: float = 5.0, min_samples: int = 3, at_most: int = 200
) -> list[Cluster]:
    """The levels of one run, heaviest share first."""
    found: list[Cluster] = []
    for hours, window in windows.items():
        own = window.candidates
        if not own:
            continue
        prices = np.array([c.price for c in own])
        place = (prices / np.median(prices) - 1) * 1e4
        labels = DBSCAN(eps=eps_bps, min_samples=min_samples).fit(place.reshape(-1, 1)).labels_
        groups: dict[object, list[Candidate]] = defaultdict(list)
        for i, c in enumerate(own):
            groups[int(labels[i]) if labels[i] >= 0 else f"alone {i}"].append(c)
        for group in groups.values():
            volume = math.fsum(c.volume for c in group)
            found.append(
                Cluster(
                    hours,
                    math.fsum(c.price * c.volume for c in group) / volume,
                    volume,
                    volume / window.volume,
                    int(np.sign(round(math.fsum(c.delta for c in group), 9))),
                    max(c.last_seen for c in group),
                    len(group),
                )
            )
    return sorted(found, key=lambda c: (-c.share, c.window_h, c.price))[:at_most]


def levels(ends: Ints, mid_close: Floats, levels_by_run: dict[int, list[Cluster]]) -> Columns:
    """Level features at each bucket's end (µs) from the newest run by then; all shape (n,)."""
    run_times = np.array(sorted(levels_by_run), dtype=np.int64)
    rows = [_around(int(e), float(m), run_times, levels_by_run) for e, m in zip(ends, mid_close, strict=True)]
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]} if rows else {}


def _around(end: int, mid: float, run_times: Ints, by_run: dict[int, list[Cluster]]) -> dict[str, float]:
    names = (
        *(
            "resistance_above",
            "support_below",
            "nearest_resistance_distance_bps",
            "nearest_support_distance_bps",
        ),
        *("resistance_support_log_ratio", "level_delta_balance", "level_count", "level_run_age_s"),
    )
    row = dict.fromkeys(names, NULL)
    place = int(np.searchsorted(run_times, end, side="right")) - 1
    if place < 0 or end - run_times[place] > MAX_LAG_US:
        return row
    around = by_run[int(run_times[place])]
    row |= {"level_count": len(around), "level_run_age_s": (end - int(run_times[place])) / SECOND_US}
    if math.isnan(mid):
        return row

    def distance(c: Cluster) -> float:
        return (c.price / mid - 1) * 1e4

    def weight(c: Cluster) -> float:
        age_s = (end - c.last_seen) / SECOND_US
        return c.share / 3 * math.exp(-abs(distance(c)) / 50) * 0.5 ** (age_s / 7200)

    # a level within a millionth of a basis point is at the mid: on neither side
    above = [c for c in around if distance(c) > 1e-6]
    below = [c for c in around if distance(c) < -1e-6]
    resistance, support = (math.fsum(map(weight, side)) for side in (above, below))
    row |= {
        "resistance_above": resistance,
        "support_below": support,
        "nearest_resistance_distance_bps": min(map(distance, above), default=NULL),
        "nearest_support_distance_bps": min((-distance(c) for c in below), default=NULL),
        "resistance_support_log_ratio": math.log((resistance + 1e-6) / (support + 1e-6)),
        "level_delta_balance": _ratio(
            math.fsum(weight(c) * c.sign for c in around), math.fsum(map(weight, around))
        ),
    }
    return row


def edges(low_e8: int, high_e8: int, tick_e8: int) -> Iterator[tuple[int, int]]:
    """Each bin's lower edge and the next one's, from `low_e8` to `high_e8`, by walking every tick."""
    found = sorted({price_bin(p, tick_e8) for p in range(low_e8, high_e8, tick_e8 or 1)})
    yield from pairwise(found)
