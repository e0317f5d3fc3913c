"""Context and scores of decisions from their definitions: plain loops and scipy, one decision at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket of one instrument, with its labels by horizon: (known_at, return, class). Times: µs."""

    bucket_id: int
    end: int
    spread_bps: float | None
    labels: dict[str, tuple[int | None, float | None, int | None]]


@dataclass(frozen=True, slots=True)
class Entry:
    """A version of a decision. Times: µs. score: -1, 0 or 1."""

    decided_at: int
    entered_at: int
    score: int
    horizon: str


@dataclass(frozen=True, slots=True)
class Score:
    """What the versions of a decision are worth; entry: which of them is scored."""

    entry: Entry
    bucket_id: int | None
    hindsight: bool
    label_return: float | None
    label_class: int | None
    net: float | None


def seen(buckets: Sequence[Bucket], at: int, max_lag_us: int) -> Bucket | None:
    """The last bucket that had ended by then, and not too long before; of several in one instant the last."""
    ended = [b for b in buckets if at - max_lag_us <= b.end <= at]
    return max(ended, key=lambda b: (b.end, b.bucket_id), default=None)


def scored(buckets: Sequence[Bucket], versions: Sequence[Entry], max_lag_us: int, fee_bps: float) -> Score:
    """versions: of one decision. Its label begins at the first bucket end that the expert could not have seen before deciding."""
    last = max(versions, key=lambda v: v.entered_at)
    after = [b for b in buckets if last.decided_at <= b.end <= last.decided_at + max_lag_us]
    bucket = min(after, key=lambda b: (b.end, -b.bucket_id), default=None)
    if bucket is None:
        return Score(last, None, False, None, None, None)
    known_at, value, label_class = bucket.labels[last.horizon]
    in_time = [v for v in versions if known_at is None or v.entered_at < known_at]
    entry = max(in_time or versions, key=lambda v: v.entered_at)
    if value is None:
        return Score(entry, bucket.bucket_id, not in_time, None, label_class, None)
    cost = (max(bucket.spread_bps or 0, 0) + 2 * fee_bps) / 1e4
    net = entry.score * value - abs(entry.score) * cost
    return Score(entry, bucket.bucket_id, not in_time, value, label_class, net)


def summarised(scores: Sequence[Score], *, hindsight: bool) -> dict[str, float | None]:
    """Of one expert and horizon."""
    used = [s for s in scores if s.label_return is not None and (hindsight or not s.hindsight)]
    guesses, returns = ([f(s) for s in used] for f in (lambda s: s.entry.score, lambda s: s.label_return))
    classed = [s for s in used if s.label_class is not None]
    trades = [s for s in used if s.entry.score]
    nets = np.array([s.net for s in trades], dtype=np.float64)
    varied = len(set(guesses)) > 1 and len(set(returns)) > 1
    return {
        "decisions": len(scores),
        "hindsight_decisions": sum(s.hindsight for s in scores),
        "scored": len(used),
        "trades": len(trades),
        "hit_rate": np.mean([s.entry.score == s.label_class for s in classed]) if classed else None,
        # every intent against every class: what shuffling gives on average
        "base_rate": np.mean([a.entry.score == b.label_class for a in classed for b in classed])
        if classed
        else None,
        "ic": scipy.stats.spearmanr(guesses, returns).statistic if varied else None,
        "mean_signed_return": np.mean([s.entry.score * (s.label_return or 0) for s in trades])
        if trades
        else None,
        "mean_net_return": nets.mean() if trades else None,
        "net_return_stderr": nets.std(ddof=1) / math.sqrt(len(nets)) if len(nets) > 1 else None,
    }
