"""Trade flow and toxicity from their formulas. As in `features`: NaN stands for NULL, times are int64 µs.

Sources: Roll (1984), A simple implicit measure of the effective bid-ask spread; Hasbrouck (2009), Trading costs
and returns for U.S. equities; Easley, Lopez de Prado & O'Hara (2012), Flow toxicity and liquidity in a
high-frequency world; Easley, Kiefer, O'Hara & Paperman (1996), Liquidity, information, and infrequently traded
stocks; Hawkes (1971), Spectra of some self-exciting and mutually exciting point processes.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from statistics import linear_regression
from typing import Final

import numpy as np

from .clock import DAY_US, SECOND_US, Bucket, Trade, members
from .features import BOOK_MAX_LAG_US, MIN_POINTS, NULL, WINDOW, BookStates, Columns, Floats

HORIZONS_S: Final = (1, 5, 30)
MINUTE_US: Final = 60 * SECOND_US
PIN_INTERVAL_US: Final = 5 * MINUTE_US
PIN_MAX_LAG_US: Final = 2 * DAY_US
MIN_BINS: Final = 50
VPIN_BUCKETS: Final = 4 * WINDOW
HAWKES_TRADES: Final = 500

Quote = tuple[float, float]  # bid, ask
Fit = Callable[[Floats], Mapping[str, float]]
Fit2 = Callable[[Floats, Floats], Mapping[str, float]]


def _known(states: BookStates, when: int) -> Quote | None:
    """Bid and ask of the last state known at `when` (µs); None if there is none, it is one-sided or too old."""
    i = bisect_right(states.rows.known_at, when) - 1
    if i < 0 or not states.valid[i] or when - states.rows.timestamp[i] > BOOK_MAX_LAG_US:
        return None
    return float(states.rows.bid_price[i]), float(states.rows.ask_price[i])


def _mid(quote: Quote | None) -> float:
    return NULL if quote is None else (quote[0] + quote[1]) / 2


def _side(trade: Trade) -> int:
    return 1 if trade.side == "buy" else -1


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else NULL


def _weighted(pairs: Sequence[tuple[float, float]]) -> float:
    """Mean of (weight, value) pairs, NaN without any."""
    return _ratio(math.fsum(w * v for w, v in pairs), math.fsum(w for w, _ in pairs))


def spreads(buckets: Sequence[Bucket], ordered: Sequence[Trade], states: BookStates) -> Columns:
    """What takers paid, by bucket; shape (n,). m: mid of the last book known at least 1 µs before the trade.

    effective = 2 side (price - m) / m; quoted = (ask - bid) / m of the same book; both averaged over the bucket's
    trades by quantity, in bps. Ratio: of the two means. price_improvement_share: of quantity, bought below the ask
    or sold above the bid.
    realized = 2 side (price - mid h s later) / m, impact = 2 side (mid h s later - m) / m, averaged by quantity over
    the trades that settle (first bucket whose end is no earlier than h s after the trade) in the last `WINDOW` buckets.
    roll = 2 sqrt(-cov(dp_t, dp_t-1)) / last price, pairs of changes within one bucket, last `WINDOW` buckets.
    """
    n = len(buckets)
    ends = [b.bucket_ts_end for b in buckets]
    names = ["effective_spread_bps", "quoted_spread_traded_bps", "effective_to_quoted_ratio"]
    names += ["price_improvement_share", "roll_spread_bps"]
    names += [f"{kind}_{h}s_bps" for h in HORIZONS_S for kind in ("realized_spread", "price_impact")]
    out = {name: np.full(n, NULL) for name in names}
    settled: dict[int, list[list[tuple[float, float, float]]]] = {
        h: [[] for _ in buckets] for h in HORIZONS_S
    }
    changes: list[list[tuple[int, int]]] = []
    for b, bucket in enumerate(buckets):
        trades = members(bucket, ordered)
        effective, quoted, improved = [], [], []
        for t in trades:
            quote = _known(states, t.timestamp - 1)
            if quote is None:
                continue
            quantity, price, side, before = t.quantity_e8 / 1e8, t.price_e8 / 1e8, _side(t), _mid(quote)
            effective.append((quantity, 2 * side * (price - before) / before))
            quoted.append((quantity, (quote[1] - quote[0]) / before))
            improved.append((quantity, float(price < quote[1] if side == 1 else price > quote[0])))
            for h in HORIZONS_S:
                later = _mid(_known(states, t.timestamp + h * SECOND_US))
                place = bisect_left(ends, t.timestamp + h * SECOND_US)
                if not math.isnan(later) and place < n:
                    realized = 2 * side * (price - later) / before
                    settled[h][place].append((quantity, realized, 2 * side * (later - before) / before))
        out["effective_spread_bps"][b] = 1e4 * _weighted(effective)
        out["quoted_spread_traded_bps"][b] = 1e4 * _weighted(quoted)
        out["effective_to_quoted_ratio"][b] = _weighted(effective) / _weighted(quoted)
        out["price_improvement_share"][b] = _weighted(improved)

        prices = [t.price_e8 for t in trades]
        steps = [q - p for p, q in pairwise(prices)]
        changes.append([(later, earlier) for earlier, later in pairwise(steps)])
        pairs = [pair for own in changes[-WINDOW:] for pair in own]
        if len(pairs) >= MIN_POINTS:
            means = [Fraction(sum(p[i] for p in pairs), len(pairs)) for i in (0, 1)]
            covariance = sum((x - means[0]) * (y - means[1]) for x, y in pairs) / len(pairs)
            if covariance < 0:
                out["roll_spread_bps"][b] = 2e4 * math.sqrt(-covariance) / prices[-1]
    for b in range(n):
        for h in HORIZONS_S:
            own = [s for bucket in settled[h][max(0, b - WINDOW + 1) : b + 1] for s in bucket]
            out[f"realized_spread_{h}s_bps"][b] = 1e4 * _weighted([(q, r) for q, r, _ in own])
            out[f"price_impact_{h}s_bps"][b] = 1e4 * _weighted([(q, i) for q, _, i in own])
    return out


def markouts(
    buckets: Sequence[Bucket],
    ordered: Sequence[Trade],
    states: BookStates,
    *,
    orderbooks_watermark: int | None = None,
) -> Columns:
    """side (mid h s after the trade / price - 1), averaged by quantity over a bucket's trades, its buys, its sells.

    NULL until the book is complete h s past the bucket's end: a state at or after it, or the watermark after it.
    """
    last_state = int(states.rows.known_at[-1]) if len(states.rows.known_at) else -1
    complete_to = max(last_state, (orderbooks_watermark or 0) - 1)
    out: Columns = {}
    for h in HORIZONS_S:
        for name, sides in (("markout", (1, -1)), ("buy_markout", (1,)), ("sell_markout", (-1,))):
            values = []
            for bucket in buckets:
                pairs = []
                for t in members(bucket, ordered):
                    later = _mid(_known(states, t.timestamp + h * SECOND_US))
                    if _side(t) in sides and not math.isnan(later):
                        pairs.append((t.quantity_e8 / 1e8, _side(t) * (later / (t.price_e8 / 1e8) - 1)))
                values.append(
                    _weighted(pairs) if bucket.bucket_ts_end + h * SECOND_US <= complete_to else NULL
                )
            out[f"label_ret_{name}_{h}s"] = np.array(values)
        out[f"label_known_at_markout_{h}s"] = np.array(
            [b.bucket_ts_end + h * SECOND_US for b in buckets], dtype=np.float64
        )
    return out


def impact(
    buckets: Sequence[Bucket],
    ordered: Sequence[Trade],
    mid_close: Floats,
    *,
    market_type: str,
    contract_value: float = 1.0,
) -> Columns:
    """OLS slopes with intercept over the last `WINDOW` buckets; shape (n,); NULL with fewer than 10 mids that moved on.

    kyle_lambda_sqrt: mid change on sign(x) sqrt|x|, x = bought - sold. hasbrouck_lambda: log return of the mid on
    the sum over trades of side sqrt(notional).
    """
    n = len(buckets)
    roots, notionals, change, returns = (np.full(n, NULL) for _ in range(4))
    for b, bucket in enumerate(buckets):
        trades = members(bucket, ordered)
        signed = sum(_side(t) * t.quantity_e8 for t in trades) / 1e8
        roots[b] = math.copysign(math.sqrt(abs(signed)), signed)
        prices = [1.0 if market_type == "inverse" else t.price_e8 / 1e8 for t in trades]
        notionals[b] = math.fsum(
            _side(t) * math.sqrt(contract_value * t.quantity_e8 / 1e8 * p)
            for t, p in zip(trades, prices, strict=True)
        )
        if b:
            change[b] = mid_close[b] - mid_close[b - 1]
            returns[b] = math.log(mid_close[b] / mid_close[b - 1])

    def slopes(x: Floats, y: Floats) -> Floats:
        out = np.full(n, NULL)
        for b in range(n):
            span = np.arange(max(0, b - WINDOW + 1), b + 1)
            span = span[~np.isnan(y[span])]
            if len(span) >= MIN_POINTS and len(set(x[span])) > 1:
                out[b] = linear_regression(x[span].tolist(), y[span].tolist()).slope
        return out

    return {"kyle_lambda_sqrt": slopes(roots, change), "hasbrouck_lambda": slopes(notionals, returns)}


def volume_bars(trades: Sequence[Trade], bar_e8: int) -> list[tuple[int, int]]:
    """Bars of exactly `bar_e8`: (index of the trade that filled it, |bought - sold|). A trade is split at a bar's end;
    the last, open bar is left out."""
    bars: list[tuple[int, int]] = []
    filled = signed = 0
    for i, trade in enumerate(trades):
        left = trade.quantity_e8
        while left:
            part = min(left, bar_e8 - filled)
            filled, signed, left = filled + part, signed + _side(trade) * part, left - part
            if filled == bar_e8:
                bars.append((i, abs(signed)))
                filled = signed = 0
    return bars


def vpin_exact(buckets: Sequence[Bucket], ordered: Sequence[Trade], bar_e8: int) -> Floats:
    """Shape (n,): sum |bought - sold| / sum volume of the last `WINDOW` bars that the last `VPIN_BUCKETS` buckets closed;
    NULL with fewer than 10. Bars start anew with every anchor."""
    closed: list[list[int]] = [[] for _ in buckets]
    for anchor in sorted({b.anchor for b in buckets}):
        own = [b for b, bucket in enumerate(buckets) if bucket.anchor == anchor]
        bucket_of = [b for b in own for _ in range(buckets[b].trade_count)]
        for i, imbalance in volume_bars([t for b in own for t in members(buckets[b], ordered)], bar_e8):
            closed[bucket_of[i]].append(imbalance)
    out = np.full(len(buckets), NULL)
    for b in range(len(buckets)):
        last = [x for own in closed[max(0, b - VPIN_BUCKETS + 1) : b + 1] for x in own][-WINDOW:]
        if len(last) >= MIN_POINTS:
            out[b] = float(Fraction(sum(last), bar_e8 * len(last)))
    return out


def pin(buckets: Sequence[Bucket], ordered: Sequence[Trade], fit: Fit2, *, watermark: int) -> Floats:
    """Shape (n,): `fit` of the last UTC day with trades that had closed, NULL if it ended more than 2 days before.

    fit: takes buys and sells, counted in 5 minutes from the epoch on, of the intervals with a trade.
    """
    days: dict[int, list[Trade]] = {}
    for bucket in buckets:
        for trade in members(bucket, ordered):
            days.setdefault(trade.timestamp // DAY_US * DAY_US, []).append(trade)
    fits = []
    for day, trades in sorted(days.items()):
        if max(buckets[-1].bucket_ts_start, watermark - 1) < day + DAY_US:
            continue
        counts = Counter((t.timestamp // PIN_INTERVAL_US, t.side) for t in trades)
        numbers = sorted({k for k, _ in counts})
        found = fit(*(np.array([counts[k, s] for k in numbers], dtype=float) for s in ("buy", "sell")))
        fits.append((day + DAY_US, found["pin"]))
    out = np.full(len(buckets), NULL)
    for b, bucket in enumerate(buckets):
        known = [(end, value) for end, value in fits if end < bucket.bucket_ts_end]
        if known and bucket.bucket_ts_end - known[-1][0] <= PIN_MAX_LAG_US:
            out[b] = known[-1][1]
    return out


def pin_log_likelihood(
    parameters: Mapping[str, float], buys: Floats, sells: Floats, log_pmf: Callable[..., Floats]
) -> float:
    """Log-likelihood of the PIN model as its authors write it: a mixture of three pairs of Poisson counts.

    log_pmf: (count, rate) -> log probability.
    """
    alpha, delta, mu = parameters["alpha"], parameters["delta"], parameters["mu"]
    eps_b, eps_s = parameters["epsilon_buy"], parameters["epsilon_sell"]
    terms = [
        math.log(weight) + log_pmf(buys, rate_b) + log_pmf(sells, rate_s)
        for weight, rate_b, rate_s in (
            (1 - alpha, eps_b, eps_s),
            (alpha * (1 - delta), eps_b + mu, eps_s),
            (alpha * delta, eps_b, eps_s + mu),
        )
    ]
    return float(np.logaddexp.reduce(terms, axis=0).sum())


def arrivals(buckets: Sequence[Bucket], ordered: Sequence[Trade], fit: Fit) -> Columns:
    """Shape (n,). trade_intensity: trades of the last `WINDOW` buckets per second of their span; NULL with fewer than 10.

    fano_w: variance / mean of counts per bin of width w, over the whole bins of the last `WINDOW` buckets. Bins count from
    each bucket's start, its first trade is left out. NULL with fewer than 50 bins or an empty mean.
    hawkes_branching_ratio: `fit` of the distinct times (s) among the last 500 trades of the last `WINDOW` buckets, as of
    the first bucket that ended in this bucket's minute.
    """
    n = len(buckets)
    names = ("trade_intensity", "fano_100ms", "fano_1s", "hawkes_branching_ratio")
    out = {name: np.full(n, NULL) for name in names}
    latest: tuple[int, float] | None = None
    for b, bucket in enumerate(buckets):
        span = buckets[max(0, b - WINDOW + 1) : b + 1]
        elapsed = bucket.bucket_ts_end - span[0].bucket_ts_start
        if len(span) >= MIN_POINTS and elapsed:
            out["trade_intensity"][b] = sum(s.trade_count for s in span) * SECOND_US / elapsed
        for name, width in (("fano_100ms", SECOND_US // 10), ("fano_1s", SECOND_US)):
            counts: list[int] = []
            for s in span:
                bins = [0] * ((s.bucket_ts_end - s.bucket_ts_start) // width)
                for t in members(s, ordered)[1:]:
                    place = (t.timestamp - s.bucket_ts_start) // width
                    if place < len(bins):
                        bins[place] += 1
                counts += bins
            if len(counts) >= MIN_BINS and any(counts):
                out[name][b] = np.var(counts) / np.mean(counts)
        minute = bucket.bucket_ts_end // MINUTE_US
        if latest is None or latest[0] != minute:
            times = [t.timestamp for s in span for t in members(s, ordered)][-HAWKES_TRADES:]
            distinct = sorted(set(times))
            seconds = np.array([(t - distinct[0]) / 1e6 for t in distinct])
            latest = (minute, fit(seconds)["branching_ratio"])
        out["hawkes_branching_ratio"][b] = latest[1]
    return out


def hawkes_log_likelihood(times: Floats, branching_ratio: float, baseline: float, decay: float) -> float:
    """Log-likelihood of the events after the first, every pair written out."""
    total = 0.0
    for i in range(1, len(times)):
        excited = math.fsum(math.exp(-decay * (times[i] - t)) for t in times[:i])
        total += math.log(baseline + branching_ratio * decay * excited)
    compensator = math.fsum(1 - math.exp(-decay * (times[-1] - t)) for t in times)
    return total - baseline * (times[-1] - times[0]) - branching_ratio * compensator
