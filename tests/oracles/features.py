"""Features and labels from their formulas. NaN stands for NULL; every output is a float64 array.

Functions return `Columns`: column name -> array, one value per bucket, in bucket_id order. Times are int64
microseconds since the epoch; prices and quantities are floats in units of the venue (contracts if inverse).
A sum over many values is taken with `math.fsum` (exact before the last rounding), so that a difference to
another implementation is that implementation's.

Sources: Cont, Kukanov & Stoikov (2014), The price impact of order book events (ofi); Kyle (1985), Continuous
auctions and insider trading (kyle_lambda); Amihud (2002), Illiquidity and stock returns (amihud); Easley,
Lopez de Prado & O'Hara (2012), Flow toxicity and liquidity in a high-frequency world (vpin);
Barndorff-Nielsen & Shephard (2004), Power and bipower variation with stochastic volatility and jumps
(rv, bv, jump); Stoikov (2018), The micro-price (microprice: the weighted mid is its first step).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from .clock import SECOND_US, Bucket, Trade, members

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Columns = dict[str, Floats]

BOOK_MAX_LAG_US: Final = 10 * SECOND_US
WINDOW: Final = 50
MIN_POINTS: Final = 10
LABEL_FLOOR_S: Final = 1.0
TAKER_FEE_BPS: Final = 1.0
BUCKET_HORIZONS: Final = (1, 3, 5, 10)
SECOND_HORIZONS: Final = (5, 10, 30, 60, 300)
NULL: Final = math.nan
_TRADE_FLOW: Final = (
    *("trade_count", "buy_count", "sell_count", "volume", "buy_volume", "sell_volume", "flow_imbalance"),
    *("vwap", "notional", "open_price", "high_price", "low_price", "close_price"),
    *("mean_trade_size", "max_trade_size", "duration_s", "trades_per_second"),
)


def bounds(buckets: Sequence[Bucket]) -> tuple[Ints, Ints]:
    """Starts and ends (µs) of the buckets, each of shape (n,)."""
    return (
        np.array([b.bucket_ts_start for b in buckets], dtype=np.int64),
        np.array([b.bucket_ts_end for b in buckets], dtype=np.int64),
    )


def trade_flow(
    buckets: Sequence[Bucket], ordered: Sequence[Trade], *, market_type: str, contract_value: float = 1.0
) -> Columns:
    """What traded in each bucket, shape (n,) a column.

    Args:
        buckets: of `clock.buckets`.
        ordered: `clock.on_time` of the same trades, with price_e8 and side.
        market_type: 'spot', 'linear' or 'inverse'.
        contract_value: base units per contract (spot, linear) or quote units per contract (inverse).

    Sums are exact in integers and rounded once: volume sum q; buy_volume, sell_volume by the taker's side;
    flow_imbalance (buy - sell) / (buy + sell); vwap sum p q / sum q; notional in quote units: sum p q *
    contract_value, inverse: sum q * contract_value; open/high/low/close_price in trade order;
    mean_trade_size, max_trade_size; duration_s; trades_per_second, NULL for a bucket of no length.

    Raises:
        ValueError: another market type (it has no notional), or a trade without a side.
    """
    if market_type not in ("spot", "linear", "inverse"):
        raise ValueError(f"no notional is defined for market_type {market_type!r}")
    rows = []
    for bucket in buckets:
        trades = members(bucket, ordered)
        if any(t.side not in ("buy", "sell") for t in trades):
            raise ValueError(f"bucket {bucket.bucket_id}: a trade's side is neither buy nor sell")
        buys = [t.quantity_e8 for t in trades if t.side == "buy"]
        sells = [t.quantity_e8 for t in trades if t.side == "sell"]
        prices = [t.price_e8 for t in trades]
        buy, sell = sum(buys), sum(sells)
        value_e16 = sum(t.price_e8 * t.quantity_e8 for t in trades)
        duration_us = bucket.bucket_ts_end - bucket.bucket_ts_start
        rows.append(
            {
                "trade_count": len(trades),
                "buy_count": len(buys),
                "sell_count": len(sells),
                "volume": (buy + sell) / 10**8,
                "buy_volume": buy / 10**8,
                "sell_volume": sell / 10**8,
                "flow_imbalance": (buy - sell) / (buy + sell),
                "vwap": value_e16 / ((buy + sell) * 10**8),
                "notional": contract_value
                * ((buy + sell) / 10**8 if market_type == "inverse" else value_e16 / 10**16),
                "open_price": prices[0] / 10**8,
                "high_price": max(prices) / 10**8,
                "low_price": min(prices) / 10**8,
                "close_price": prices[-1] / 10**8,
                "mean_trade_size": (buy + sell) / (len(trades) * 10**8),
                "max_trade_size": max(buys + sells) / 10**8,
                "duration_s": duration_us / SECOND_US,
                "trades_per_second": len(trades) * SECOND_US / duration_us if duration_us else NULL,
            }
        )
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in _TRADE_FLOW}


@dataclass(frozen=True, slots=True)
class BookRows:
    """Best levels of the book, any order, each array of shape (m,): int64 times and ids, float64 levels.

    Only sources that feed the clock. A price or quantity of 0: that side is empty.
    """

    known_at: Ints
    timestamp: Ints
    last_update_id: Ints
    bid_price: Floats
    bid_quantity: Floats
    ask_price: Floats
    ask_quantity: Floats


@dataclass(frozen=True, slots=True)
class BookStates:
    """The rows that changed what was known, in the order in which they became known; arrays of shape (s,).

    mid, spread_bps, tob_imbalance, microprice are NaN where not `valid`; `ofi` is the increment against the
    previous state in units of quantity, NaN where it is not defined.
    """

    rows: BookRows
    valid: npt.NDArray[np.bool_]
    mid: Floats
    spread_bps: Floats
    tob_imbalance: Floats
    microprice: Floats
    ofi: Floats


def book_states(rows: BookRows, *, book_max_lag_us: int = BOOK_MAX_LAG_US) -> BookStates:
    """Rows in knowledge order, without those too late to be used and those stale on arrival.

    Order (known_at, timestamp, last_update_id); rows equal in all three (from two sources) keep the order in
    which they were given. mid = (bid + ask) / 2; spread_bps = (ask - bid) / mid * 1e4; tob_imbalance =
    (bq - aq) / (bq + aq); microprice = (ask bq + bid aq) / (bq + aq). Increment (Cont-Kukanov-Stoikov):
    [b >= b'] bq - [b <= b'] bq' - [a <= a'] aq + [a >= a'] aq', with ' the previous kept state; NULL for the
    first, beside an invalid state, and after a silence longer than `book_max_lag_us`.
    """
    kept: list[int] = []
    newest = (-1, -1)
    for i in np.lexsort((rows.last_update_id, rows.timestamp, rows.known_at)):
        if rows.known_at[i] - rows.timestamp[i] > book_max_lag_us:
            continue
        version = (int(rows.timestamp[i]), int(rows.last_update_id[i]))
        if version >= newest:
            newest = version
            kept.append(int(i))

    at = np.array(kept, dtype=np.int64)
    bid, ask = rows.bid_price[at], rows.ask_price[at]
    bid_quantity, ask_quantity = rows.bid_quantity[at], rows.ask_quantity[at]
    known_at = rows.known_at[at]
    valid = (bid > 0) & (ask > 0) & (bid_quantity > 0) & (ask_quantity > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mid = np.where(valid, (bid + ask) / 2, NULL)
        spread_bps = (ask - bid) / mid * 1e4
        depth = np.where(valid, bid_quantity + ask_quantity, NULL)
        tob_imbalance = (bid_quantity - ask_quantity) / depth
        microprice = (ask * bid_quantity + bid * ask_quantity) / depth

    ofi = np.full(len(at), NULL)
    for i in range(1, len(at)):
        if valid[i] and valid[i - 1] and known_at[i] - known_at[i - 1] <= book_max_lag_us:
            bid_flow = (bid_quantity[i] if bid[i] >= bid[i - 1] else 0.0) - (
                bid_quantity[i - 1] if bid[i] <= bid[i - 1] else 0.0
            )
            ask_flow = (ask_quantity[i] if ask[i] <= ask[i - 1] else 0.0) - (
                ask_quantity[i - 1] if ask[i] >= ask[i - 1] else 0.0
            )
            ofi[i] = bid_flow - ask_flow

    kept_rows = BookRows(
        known_at, rows.timestamp[at], rows.last_update_id[at], bid, bid_quantity, ask, ask_quantity
    )
    return BookStates(kept_rows, valid, mid, spread_bps, tob_imbalance, microprice, ofi)


def _last_usable(states: BookStates, when: Ints, book_max_lag_us: int) -> Ints:
    """Per instant (µs): index of the last state known by then, -1 if it is invalid, too old or not there."""
    last = np.searchsorted(states.rows.known_at, when, side="right") - 1
    for i, state in enumerate(last):
        if state >= 0 and (
            not states.valid[state] or when[i] - states.rows.timestamp[state] > book_max_lag_us
        ):
            last[i] = -1
    return last.astype(np.int64)


def _take(values: Floats, index: Ints) -> Floats:
    """values[index], NaN where index is -1."""
    return np.array([values[i] if i >= 0 else NULL for i in index], dtype=np.float64)


def top_of_book(
    starts: Ints, ends: Ints, states: BookStates, *, book_max_lag_us: int = BOOK_MAX_LAG_US
) -> Columns:
    """The book at each bucket's end, and over its updates. starts, ends: µs, shape (n,), bucket order.

    Close values: of the last state with known_at <= end, NULL if invalid or older than `book_max_lag_us`
    (end - its event time); book_age_ms likewise. A state belongs to the first bucket with end >= known_at if
    known_at >= its start: book_update_count (valid or not), plain means over the valid ones, ofi = sum of the
    increments (none: 0 if mid_close is there, else NULL).
    """
    close = _last_usable(states, ends, book_max_lag_us)
    age_ms = np.array(
        [(ends[b] - states.rows.timestamp[i]) / 1000 if i >= 0 else NULL for b, i in enumerate(close)],
        dtype=np.float64,
    )
    updates: list[list[int]] = [[] for _ in ends]
    for i, known_at in enumerate(states.rows.known_at):
        bucket = int(np.searchsorted(ends, known_at, side="left"))
        if bucket < len(ends) and known_at >= starts[bucket]:
            updates[bucket].append(i)

    mid_close = _take(states.mid, close)
    ofi = []
    for b, own in enumerate(updates):
        increments = _not_null(states.ofi[own])
        nothing = NULL if math.isnan(mid_close[b]) else 0.0
        ofi.append(math.fsum(increments) if increments else nothing)

    def means(values: Floats) -> Floats:
        return np.array([_mean(_not_null(values[own])) for own in updates], dtype=np.float64)

    return {
        "mid_close": mid_close,
        "spread_bps_close": _take(states.spread_bps, close),
        "tob_imbalance_close": _take(states.tob_imbalance, close),
        "microprice_close": _take(states.microprice, close),
        "book_age_ms": age_ms,
        "book_update_count": np.array([len(own) for own in updates], dtype=np.float64),
        "mid_mean": means(states.mid),
        "spread_bps_mean": means(states.spread_bps),
        "tob_imbalance_mean": means(states.tob_imbalance),
        "ofi": np.array(ofi, dtype=np.float64),
    }


def rolling(
    mid_close: Floats,
    buy_volume: Floats,
    sell_volume: Floats,
    notional: Floats,
    *,
    window: int = WINDOW,
    min_points: int = MIN_POINTS,
) -> Columns:
    """Price impact, toxicity and variance over this bucket and the `window - 1` before it; all shape (n,).

    mid_change, mid_return: mid_close against the bucket before (difference, log ratio). kyle_lambda: OLS
    slope with intercept of mid_change on buy - sell (price per unit), NULL if buy - sell does not vary.
    amihud = |mid_return| / notional, this bucket alone. vpin = sum |buy - sell| / sum (buy + sell).
    rv = sum r^2; bv = pi/2 sum |r_t||r_{t-1}|, t in the window (r_{t-1} may be just before it);
    jump = max(rv - bv, 0).
    NULL with fewer than `min_points` buckets (vpin), changes (kyle_lambda), returns (rv), pairs (bv), and
    jump where rv or bv is.
    """
    n = len(mid_close)
    signed = buy_volume - sell_volume
    change, returns = np.full(n, NULL), np.full(n, NULL)
    for b in range(1, n):
        if not math.isnan(mid_close[b]) and not math.isnan(mid_close[b - 1]):
            change[b] = mid_close[b] - mid_close[b - 1]
            returns[b] = math.log(mid_close[b] / mid_close[b - 1])

    out = {name: np.full(n, NULL) for name in ("kyle_lambda", "amihud", "vpin", "rv", "bv", "jump")}
    for b in range(n):
        span = slice(max(0, b - window + 1), b + 1)
        usable = ~np.isnan(change[span])
        if usable.sum() >= min_points:
            out["kyle_lambda"][b] = _slope(signed[span][usable], change[span][usable])
        if notional[b] != 0:
            out["amihud"][b] = abs(returns[b]) / notional[b]
        if span.stop - span.start >= min_points:
            traded = math.fsum(buy_volume[span]) + math.fsum(sell_volume[span])
            out["vpin"][b] = math.fsum(np.abs(signed[span])) / traded
        squares = _not_null(returns[span] ** 2)
        if len(squares) >= min_points:
            out["rv"][b] = math.fsum(squares)
        neighbours = [abs(returns[t] * returns[t - 1]) for t in range(max(1, span.start), b + 1)]
        pairs = _not_null(neighbours)
        if len(pairs) >= min_points:
            out["bv"][b] = math.pi / 2 * math.fsum(pairs)
        # max() would hide a NULL
        excess = out["rv"][b] - out["bv"][b]
        out["jump"][b] = 0.0 if excess < 0 else excess
    return {"mid_change": change, "mid_return": returns, **out}


def labels(
    ends: Ints,
    mid_close: Floats,
    rv: Floats,
    states: BookStates,
    *,
    orderbooks_watermark: int | None = None,
    book_max_lag_us: int = BOOK_MAX_LAG_US,
    window: int = WINDOW,
    min_points: int = MIN_POINTS,
    floor_s: float = LABEL_FLOOR_S,
    cost: Floats | float = 0.0,
) -> Columns:
    """What came after each bucket. ends: µs; mid_close, rv: of `top_of_book`, `rolling`; all shape (n,).

    cost: of a round trip, a fraction; a move within it has class 0, whatever the threshold.
    variance_per_second: rv / seconds that the window's returns span.
    For k in 1, 3, 5, 10 buckets: label_ret_ps_k = (mid[b+k] / mid[b] - 1) / max(seconds between the ends, floor),
    1/s; label_known_at_k = end[b+k] (µs); past_ret_ps_k looks back alike; threshold_k = half the population
    standard deviation of past_ret_ps_k over the window; label_cls_k = 1 above it, -1 below minus it, else 0.
    For h in 5 ... 300 s: label_ret_hs = mid at end + h / mid_close - 1, NULL unless the book feed is complete
    past end + h (a state or the watermark at or after it); label_known_at_hs = end + h, label or none;
    threshold_hs = half of sqrt(rv / seconds that the window's returns span * h); label_cls_hs alike.
    """
    n = len(ends)
    out: Columns = {}
    for k in BUCKET_HORIZONS:
        ahead, past, known_at, threshold, raw = (np.full(n, NULL) for _ in range(5))
        for b in range(n - k):
            seconds = max((ends[b + k] - ends[b]) / SECOND_US, floor_s)
            ahead[b] = past[b + k] = (mid_close[b + k] / mid_close[b] - 1) / seconds
            raw[b] = mid_close[b + k] / mid_close[b] - 1
            known_at[b] = ends[b + k]
        for b in range(n):
            seen = _not_null(past[max(0, b - window + 1) : b + 1])
            if len(seen) >= min_points:
                mean = _mean(seen)
                threshold[b] = 0.5 * math.sqrt(_mean([(x - mean) ** 2 for x in seen]))
        out |= {
            f"label_ret_ps_{k}": ahead,
            f"label_known_at_{k}": known_at,
            f"past_ret_ps_{k}": past,
            f"threshold_{k}": threshold,
            f"label_cls_{k}": _sign_beyond(ahead, threshold) * _pays(raw, cost),
        }

    complete = max([*states.rows.known_at.tolist(), orderbooks_watermark or 0])
    for h in SECOND_HORIZONS:
        when = ends + h * SECOND_US
        later = _last_usable(states, when, book_max_lag_us)
        later[when > complete] = -1
        ret = _take(states.mid, later) / mid_close - 1
        threshold, variance = np.full(n, NULL), np.full(n, NULL)
        for b in range(n):
            first = max(1, b - window + 1)
            steps = [t for t in range(first, b + 1) if not math.isnan(mid_close[t] * mid_close[t - 1])]
            seconds = sum(int(ends[t] - ends[t - 1]) for t in steps) / SECOND_US
            if seconds > 0:
                variance[b] = rv[b] / seconds
                threshold[b] = 0.5 * math.sqrt(variance[b] * h)
        out |= {
            f"label_ret_{h}s": ret,
            f"label_known_at_{h}s": when.astype(np.float64),
            f"threshold_{h}s": threshold,
            f"label_cls_{h}s": _sign_beyond(ret, threshold) * _pays(ret, cost),
            "variance_per_second": variance,
        }
    return out


def everything(
    buckets: Sequence[Bucket],
    ordered: Sequence[Trade],
    rows: BookRows,
    *,
    market_type: str,
    contract_value: float = 1.0,
    orderbooks_watermark: int | None = None,
) -> Columns:
    """All columns of one instrument: trade_flow, top_of_book, rolling and labels, with the defaults."""
    starts, ends = bounds(buckets)
    states = book_states(rows)
    flow = trade_flow(buckets, ordered, market_type=market_type, contract_value=contract_value)
    book = top_of_book(starts, ends, states)
    roll = rolling(book["mid_close"], flow["buy_volume"], flow["sell_volume"], flow["notional"])
    cost = (book["spread_bps_close"] + 2 * TAKER_FEE_BPS) / 1e4
    ahead = labels(
        ends, book["mid_close"], roll["rv"], states, orderbooks_watermark=orderbooks_watermark, cost=cost
    )
    return flow | book | roll | ahead


def _not_null(values: Iterable[float]) -> list[float]:
    return [float(v) for v in values if not math.isnan(v)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else NULL


def _slope(x: Iterable[float], y: Iterable[float]) -> float:
    """OLS slope of y on x with an intercept; NaN if x does not vary."""
    xs, ys = [float(v) for v in x], [float(v) for v in y]
    if len(set(xs)) == 1:
        return NULL
    mean_x, mean_y = _mean(xs), _mean(ys)
    covariance = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(xs, ys, strict=True))
    return covariance / math.fsum((a - mean_x) ** 2 for a in xs)


def _pays(moves: Floats, cost: Floats | float) -> npt.NDArray[np.bool_]:
    """More than the cost; to 12 decimals, for both are made of ticks and may be equal."""
    return np.round(np.abs(moves), 12) > np.round(cost, 12)


def _sign_beyond(values: Floats, threshold: Floats) -> Floats:
    """1 above the threshold, -1 below minus it, 0 between, NaN where either is."""
    signs = [
        NULL if math.isnan(v) or math.isnan(t) else float(v > t) - float(v < -t)
        for v, t in zip(values, threshold, strict=True)
    ]
    return np.array(signs, dtype=np.float64)
