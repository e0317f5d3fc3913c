"""Macro and derivative features from their formulas. NaN stands for NULL; every output is a float64 array.

Times are int64 microseconds since the epoch. A slow series (funding, open interest, ratios, volatility index)
is walked through row by row, as it became known; features are read off what was known at a bucket's end.

z-scores use the population standard deviation; values that are all equal have none. Sums are `math.fsum`.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple

import numpy as np

from .clock import SECOND_US
from .features import NULL, Columns, Floats, Ints

AT_LEAST: Final = 10
YEAR_S: Final = 365 * 86_400


class SlowRow(NamedTuple):
    """A published row. value NaN: the feed says nothing. Of one moment the smallest `preference` counts.

    settlements: the settlement that a funding rate is for and the one after it (µs; 0: not said).
    """

    timestamp: int
    known_at: int
    value: float
    preference: int = 0
    settlements: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class State:
    """What is known of a series from `known_at` on. See the model `slow_series`."""

    timestamp: int
    known_at: int
    value: float
    settlements: tuple[int, int]
    unchanged_since: int
    step: float
    z: float
    rank: float
    step_z: float


def z_score(value: float, values: Sequence[float]) -> float:
    """(value - mean) / population standard deviation; NaN with fewer than 10 values or all equal."""
    if math.isnan(value) or len(values) < AT_LEAST or len(set(values)) == 1:
        return NULL
    mean = math.fsum(values) / len(values)
    return (value - mean) / math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))


def states(rows: Iterable[SlowRow], *, history: int, is_log: bool = False) -> list[State]:
    """The series in the order of knowledge, without what is older than something known before.

    Its past are the last `history` values, each counted once until it changes; a step is the difference of
    neighbours among them (is_log: the log ratio).
    """
    moments: dict[int, list[SlowRow]] = {}
    for row in rows:
        moments.setdefault(row.known_at, []).append(row)
    out: list[State] = []
    newest = -1
    past: list[float] = []
    steps: list[float] = []
    of_value: tuple[int, float, float, float, float] = (0, NULL, NULL, NULL, NULL)
    for known_at in sorted(moments):
        row = min(
            moments[known_at],
            key=lambda r: (-r.timestamp, r.preference, math.isnan(r.value), r.value),
        )
        if row.timestamp < newest:
            continue
        newest = row.timestamp
        if math.isnan(row.value):
            out.append(State(newest, known_at, NULL, row.settlements, 0, NULL, NULL, NULL, NULL))
            continue
        if not past or row.value != past[-1]:
            seen, seen_steps = past[-history:], steps[-history:]
            step = NULL
            if past:
                step = math.log(row.value / past[-1]) if is_log else row.value - past[-1]
            rank = sum(v < row.value for v in seen) / len(seen) if len(seen) >= AT_LEAST else NULL
            of_value = (newest, step, z_score(row.value, seen), rank, z_score(step, seen_steps))
            past.append(row.value)
            if not math.isnan(step):
                steps.append(step)
        out.append(State(newest, known_at, row.value, row.settlements, *of_value))
    return out


def known(series: Sequence[State], at: int, max_lag_s: float) -> State | None:
    """The last state known at `at`, None where there is none or its event is older than `max_lag_s`."""
    i = bisect.bisect_right([s.known_at for s in series], at) - 1
    if i < 0 or series[i].timestamp < at - max_lag_s * SECOND_US:
        return None
    return series[i]


def alive(series: Sequence[State], at: int, max_lag_s: float, max_unchanged_s: float) -> State | None:
    """As `known`; None, too, where the feed says nothing or has said the same for longer than allowed."""
    state = known(series, at, max_lag_s)
    if state is None or math.isnan(state.value):
        return None
    return state if state.unchanged_since >= at - max_unchanged_s * SECOND_US else None


def funding(
    ends: Ints,
    series: Sequence[State],
    tob_imbalance: Floats,
    *,
    max_lag_s: float,
    shock_window_s: float,
    shock_threshold: float,
) -> Columns:
    """Rate, age, change, z and shock at each end; a shock is against the rate known some seconds before."""
    out = _empty(
        ends,
        *("funding_rate", "funding_age_s", "funding_rate_change", "funding_rate_z"),
        *("funding_shock_magnitude", "funding_shock_sign", "funding_shock_imbalance", "minutes_to_funding"),
    )
    for b, end in enumerate(ends.tolist()):
        now = known(series, end, max_lag_s)
        if now is None:
            continue
        out["funding_rate"][b] = now.value
        out["funding_age_s"][b] = (end - now.timestamp) / SECOND_US
        out["funding_rate_change"][b] = now.step
        out["funding_rate_z"][b] = now.z
        coming = [t for t in now.settlements if t > end]
        if coming:
            out["minutes_to_funding"][b] = (coming[0] - end) / SECOND_US / 60
        then = known(series, int(end - shock_window_s * SECOND_US), max_lag_s)
        if then is not None:
            # rates are multiples of 1e-8: compared as such
            change = round((now.value - then.value) * 1e8)
            is_shock = abs(change) >= round(shock_threshold * 1e8)
            out["funding_shock_magnitude"][b] = abs(now.value - then.value)
            out["funding_shock_sign"][b] = np.sign(change) if is_shock else 0
            out["funding_shock_imbalance"][b] = out["funding_shock_sign"][b] * tob_imbalance[b]
    return out


def open_interest(
    ends: Ints, series: Sequence[State], *, max_lag_s: float, max_unchanged_s: float
) -> Columns:
    """Level, age, log change, its z and the level's rank. `series` with is_log."""
    out = _empty(
        ends,
        *("open_interest", "open_interest_age_s", "open_interest_log_change"),
        *("open_interest_change_z", "open_interest_rank"),
    )
    for b, end in enumerate(ends.tolist()):
        now = alive(series, end, max_lag_s, max_unchanged_s)
        if now is not None:
            age_s = (end - now.timestamp) / SECOND_US
            for column, value in zip(out, (now.value, age_s, now.step, now.step_z, now.rank), strict=True):
                out[column][b] = value
    return out


def long_short_bias(
    ends: Ints,
    accounts: Sequence[State],
    positions: Sequence[State],
    *,
    max_lag_s: float,
    max_unchanged_s: float,
) -> Columns:
    """Long less short share of both, their changes, and positions less accounts."""
    out: Columns = {}
    for name, series in (("accounts", accounts), ("positions", positions)):
        found = [alive(series, end, max_lag_s, max_unchanged_s) for end in ends.tolist()]
        out[f"long_short_bias_{name}"] = np.array([s.value if s else NULL for s in found])
        out[f"long_short_bias_{name}_change"] = np.array([s.step if s else NULL for s in found])
    out["long_short_divergence"] = out["long_short_bias_positions"] - out["long_short_bias_accounts"]
    return out


def squeeze(
    tob_imbalance: Floats, spread_bps: Floats, open_interest_change_z: Floats, *, window: int
) -> Columns:
    """max(z of the change of open interest, 0) * z(imbalance) * max(z(1 / spread), 0)."""
    imbalance_z = _rolling_z(tob_imbalance, window)
    inverse_z = _rolling_z(1 / spread_bps, window)
    positive = [
        np.where(np.isnan(z), NULL, np.where(z > 0, z, 0.0)) for z in (open_interest_change_z, inverse_z)
    ]
    return {
        "tob_imbalance_z": imbalance_z,
        "inverse_spread_z": inverse_z,
        "squeeze_score": positive[0] * imbalance_z * positive[1],
    }


def implied_volatility(
    ends: Ints, mid_close: Floats, series: Sequence[State], *, window: int, max_lag_s: float
) -> Columns:
    """The index against 100 * sqrt(variance of the mid per second * seconds of a year), over `window` buckets."""
    found = [known(series, end, max_lag_s) for end in ends.tolist()]
    implied = np.array([s.value if s else NULL for s in found])
    variance = _variance_per_second(ends, mid_close, window)
    realized = 100 * np.sqrt(variance * YEAR_S)
    with np.errstate(divide="ignore"):
        ratio = np.where(realized > 0, implied / realized, NULL)
    return {
        "implied_volatility": implied,
        "realized_volatility": realized,
        "implied_minus_realized": implied - realized,
        "implied_over_realized": ratio,
        "implied_minus_realized_z": _rolling_z(implied - realized, window),
    }


class Liquidation(NamedTuple):
    """A liquidation order. value: what it was worth in the quote currency."""

    timestamp: int
    known_at: int
    value: float
    side: Literal["buy", "sell"]


def liquidation_panic(  # noqa: PLR0917
    starts: Ints,
    ends: Ints,
    notional: Floats,
    mid_close: Floats,
    own: Sequence[Liquidation],
    elsewhere: Sequence[Liquidation],
    *,
    buckets: int,
    max_lag_s: float,
) -> Columns:
    """Liquidations that became known after the end of the bucket `buckets` back (or from the first start on).

    Impact: in basis points, the furthest the mid went from the bucket before the first one in which one of
    them became known, down if longs were liquidated for more (sell orders), else up. Recovery: its share
    that is made good by the last mid.
    """
    out = _empty(
        ends,
        *("seconds_since_liquidation", "liquidation_count", "liquidation_count_elsewhere"),
        *("liquidation_notional", "liquidation_to_traded", "liquidation_sell_share"),
        *("liquidation_cluster_share", "liquidation_venue_delay_s"),
        *("liquidation_impact_bps", "liquidation_recovery"),
    )
    for b, end in enumerate(ends.tolist()):
        first = max(0, b - buckets + 1)

        def became_known(these: Sequence[Liquidation], after: int, until: int) -> list[Liquidation]:
            low = starts[0] - 1 if after < 0 else ends[after]
            return [x for x in these if low < x.known_at <= ends[until]]

        here, there = became_known(own, first - 1, b), became_known(elsewhere, first - 1, b)
        latest = max(
            (x for x in own if x.known_at <= end), key=lambda x: (x.known_at, x.timestamp), default=None
        )
        if latest is not None and latest.timestamp >= end - max_lag_s * SECOND_US:
            value = math.fsum(x.value for x in here)
            traded = math.fsum(notional[first : b + 1])
            out["seconds_since_liquidation"][b] = (end - latest.timestamp) / SECOND_US
            out["liquidation_count"][b] = len(here)
            out["liquidation_count_elsewhere"][b] = len(there)
            out["liquidation_notional"][b] = value
            out["liquidation_to_traded"][b] = value / traded if traded > 0 else NULL
        if not here:
            continue
        sold = math.fsum(x.value for x in here if x.side == "sell")
        value = math.fsum(x.value for x in here)
        out["liquidation_sell_share"][b] = sold / value if value > 0 else NULL
        near = [
            any(i != j and abs(x.timestamp - y.timestamp) <= SECOND_US for j, y in enumerate(here))
            for i, x in enumerate(here)
        ]
        out["liquidation_cluster_share"][b] = sum(near) / len(near)
        if there:
            began = min(x.timestamp for x in here), min(x.timestamp for x in there)
            out["liquidation_venue_delay_s"][b] = (began[0] - began[1]) / SECOND_US
        hit = next(j for j in range(first, b + 1) if became_known(own, j - 1, j))
        towards = np.sign(value - 2 * sold)
        if hit == 0 or towards == 0:
            continue
        pushes = towards * (mid_close[hit : b + 1] / mid_close[hit - 1] - 1) * 1e4
        seen = pushes[~np.isnan(pushes)]
        if len(seen):
            worst = seen.max()
            out["liquidation_impact_bps"][b] = worst
            if worst > 0:
                out["liquidation_recovery"][b] = (worst - pushes[-1]) / worst
    return out


def volatility_regime(
    ends: Ints,
    mid_close: Floats,
    trade_count: Floats,
    *,
    window: int,
    memory: int,
    high: float,
    low: float,
) -> Columns:
    """Ranks of variance and of trades per second among the `memory` buckets before, and what they mean."""
    n = len(ends)
    intensity = np.full(n, NULL)
    for b in range(n):
        first = max(1, b - window + 1)
        seconds = (ends[b] - ends[first - 1]) / SECOND_US
        if b - first + 1 >= AT_LEAST and seconds > 0:
            intensity[b] = trade_count[first : b + 1].sum() / seconds
    variance = _variance_per_second(ends, mid_close, window)
    out: Columns = {}
    for name, values in (("realized_volatility_rank", variance), ("trade_intensity_rank", intensity)):
        out[name] = np.full(n, NULL)
        for b in range(n):
            before = [v for v in values[max(0, b - memory) : b].tolist() if not math.isnan(v)]
            if not math.isnan(values[b]) and len(before) >= 100:
                out[name][b] = sum(v < values[b] for v in before) / len(before)
    both = np.array(list(out.values()))
    regime = np.where(both.min(axis=0) > high, 1.0, np.where(both.max(axis=0) < low, -1.0, 0.0))
    out["volatility_regime"] = np.where(np.isnan(both).any(axis=0), NULL, regime)
    return out


def derivative_regime(rate: Floats, rank: Floats, *, threshold: float, high: float) -> Columns:
    """2 or -2 with the sign of a funding rate beyond its threshold while open interest ranks high; else 0."""
    regime = [
        NULL if math.isnan(f) or math.isnan(r) else 2.0 * np.sign(f) * (abs(f) > threshold and r > high)
        for f, r in zip(rate.tolist(), rank.tolist(), strict=True)
    ]
    return {"funding_interest_regime": np.array(regime)}


def session(ends: Ints) -> tuple[list[str], Floats]:
    """The session by the UTC hour, and 1.0 on weekends."""
    moments = [datetime.fromtimestamp(end // SECOND_US, UTC) for end in ends.tolist()]
    names = ["asia" if m.hour < 8 else "europe" if m.hour < 14 else "us" for m in moments]
    return names, np.array([float(m.weekday() >= 5) for m in moments])


def _empty(ends: Ints, *names: str) -> Columns:
    return {name: np.full(len(ends), NULL) for name in names}


def _rolling_z(values: Floats, window: int) -> Floats:
    """z of each value among itself and the `window - 1` buckets before it, NaNs left out."""
    scores = []
    for b, value in enumerate(values.tolist()):
        seen = [v for v in values[max(0, b - window + 1) : b + 1].tolist() if not math.isnan(v)]
        scores.append(z_score(value, seen))
    return np.array(scores, dtype=np.float64)


def _variance_per_second(ends: Ints, mid_close: Floats, window: int) -> Floats:
    """Sum of squared log returns over `window` buckets by the seconds that those returns span."""
    out = np.full(len(ends), NULL)
    for b in range(len(ends)):
        steps = [
            t
            for t in range(max(1, b - window + 1), b + 1)
            if not math.isnan(mid_close[t]) and not math.isnan(mid_close[t - 1])
        ]
        seconds = sum(int(ends[t] - ends[t - 1]) for t in steps) / SECOND_US
        if len(steps) >= AT_LEAST and seconds > 0:
            squares = math.fsum(math.log(mid_close[t] / mid_close[t - 1]) ** 2 for t in steps)
            out[b] = squares / seconds
    return out
