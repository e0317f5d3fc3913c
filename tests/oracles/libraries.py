"""The same quantities from third-party packages: a second opinion on `features` and `clock`.

Each adapter only brings our inputs into the package's shape; the formula that runs is the package's. Where
the package defines something else, the adapter's docstring says what, and which part is common.

* orderflow_metrics 0.40 (pure Python): OFI, book measures, Amihud, Kyle, VPIN's last step, RV, BV, bars
* ob_analytics 0.1.0 (pandas): VPIN on equal volumes, Kyle's regression
* scipy: linregress
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import orderflow_metrics as ofm
import pandas as pd
from ob_analytics import compute_kyle_lambda, compute_vpin
from scipy.special import ndtri
from scipy.stats import linregress

from .clock import SECOND_US, Trade
from .features import BookStates, Columns, Floats

Series = Sequence[float] | Floats


def _quotes(states: BookStates) -> list[ofm.L1Quote]:
    rows = states.rows
    return [
        ofm.L1Quote(float(b), float(bq), float(a), float(aq))
        for b, bq, a, aq in zip(
            rows.bid_price, rows.bid_quantity, rows.ask_price, rows.ask_quantity, strict=True
        )
    ]


def ofi_increments(states: BookStates) -> Floats:
    """orderflow_metrics.ofi_series, shape (s,), NaN first: Cont-Kukanov-Stoikov, exactly ours.

    The package knows neither invalid states nor silences: compare where ours is not NULL.
    """
    return np.array([np.nan, *ofm.ofi_series(_quotes(states))][: len(states.mid)], dtype=np.float64)


def book_measures(states: BookStates) -> Columns:
    """mid, spread_bps, tob_imbalance, microprice per state, shape (s,), by orderflow_metrics.

    Same formulas (weighted_mid = microprice); for an empty book the package returns 0 or the plain mid where
    ours is NULL: compare where the state is valid.
    """
    quotes = _quotes(states)
    return {
        "mid": np.array([ofm.mid(q) for q in quotes]),
        "spread_bps": np.array([ofm.relative_spread_bps(q) for q in quotes]),
        "tob_imbalance": np.array([ofm.depth_imbalance(q) for q in quotes]),
        "microprice": np.array([ofm.weighted_mid(q) for q in quotes]),
    }


def amihud(mid_return: float, notional: float) -> float:
    """orderflow_metrics.amihud_illiquidity of one period.

    The package averages |r| / V over periods and skips those of zero volume (0 if none is left); ours is
    the single period's term, and NULL where the package returns 0 for want of volume.
    """
    return ofm.amihud_illiquidity([ofm.ReturnVolume(mid_return, notional)])


def kyle_lambda_orderflow(mid_change: Series, signed_volume: Series) -> float:
    """orderflow_metrics.kyle_lambda: covariance / variance, so with an intercept (its docstring shows none).

    Returns 0 where signed volume does not vary or there are fewer than 2 points; ours is NULL then.
    """
    points = zip(mid_change, signed_volume, strict=True)
    return ofm.kyle_lambda([ofm.FlowObservation(float(y), float(x)) for y, x in points])


def kyle_lambda_ob_analytics(mid_change: Series, signed_volume: Series) -> float:
    """ob_analytics.compute_kyle_lambda: least squares of dP on [1, signed volume] over time windows.

    Its dP is last minus first trade price inside a window of time, ours the change of the mid from bucket to
    bucket. The regression is common: each of our points becomes one window of two trades, one at price 0
    without volume and one at price dP that carries the signed volume. NaN where signed volume does not vary.
    """
    start = pd.Timestamp("2024-01-01", tz="UTC")
    rows = []
    for i, (dp, signed) in enumerate(zip(mid_change, signed_volume, strict=True)):
        opened = start + pd.Timedelta(seconds=i)
        side = "buy" if signed >= 0 else "sell"
        rows.append((opened, 0.0, 0.0, "buy"))
        rows.append((opened + pd.Timedelta(milliseconds=500), float(dp), abs(float(signed)), side))
    trades = pd.DataFrame(rows, columns=["timestamp", "price", "volume", "direction"])
    return float(compute_kyle_lambda(trades, window="1s").lambda_)


def kyle_lambda_scipy(mid_change: Series, signed_volume: Series) -> float:
    """scipy.stats.linregress slope; raises ValueError where signed volume does not vary."""
    return float(linregress(signed_volume, mid_change).slope)


def vpin_ob_analytics(buy_volume: Floats, sell_volume: Floats, window: int) -> Floats:
    """ob_analytics.compute_vpin over given buckets of EQUAL volume, shape (n,).

    The package cuts its own buckets (it splits trades; ours never does), takes |buy - sell| / bucket size in
    each and averages plainly. With buckets of one size that average is our sum / sum; with unequal ones (time
    and anchor cuts) the package has no counterpart. It starts with 1 bucket, ours with 10.

    Raises:
        ValueError: the buckets differ in volume.
    """
    volume = float(buy_volume[0] + sell_volume[0])
    if not np.all(buy_volume + sell_volume == volume):
        raise ValueError("ob_analytics' VPIN is only ours on buckets of equal volume")
    sides = np.column_stack([buy_volume, sell_volume]).ravel()
    trades = pd.DataFrame(
        {
            "timestamp": pd.date_range("2024-01-01", periods=len(sides), freq="s", tz="UTC"),
            "price": 1.0,
            "volume": sides,
            "direction": ["buy", "sell"] * len(buy_volume),
        }
    )
    return compute_vpin(trades, volume, window)["vpin_avg"].to_numpy(dtype=np.float64)


def vpin_orderflow(buy_volume: Floats, sell_volume: Floats) -> float:
    """orderflow_metrics.vpin of one window: sum |buy - sell| / sum volume, unequal volumes allowed, as ours.

    The package guesses the buy share of a bucket from its price change (bulk volume classification,
    Phi(dP / sigma)); ours takes the trades' sides. The last step is common: each bucket gets the price change
    that the package turns back into our buy share. Its Phi is an approximation good to 1e-7.
    """
    volume = buy_volume + sell_volume
    changes = ndtri(buy_volume / volume)
    window = [ofm.VolumeBucket(float(c), float(v)) for c, v in zip(changes, volume, strict=True)]
    return ofm.vpin(window, sigma=1.0)


def realized_variance(returns: Series) -> float:
    """orderflow_metrics.realized_variance: sum r^2."""
    return ofm.realized_variance([float(r) for r in returns])


def bipower_variation(returns: Series) -> float:
    """orderflow_metrics.bipower_variation: pi/2 sum |r_t||r_{t-1}| within the series given.

    Ours also pairs the window's first return with the one just before it: give that one too.
    """
    return ofm.bipower_variation([float(r) for r in returns])


def flow_imbalance(trades: Sequence[Trade]) -> float:
    """orderflow_metrics.trade_imbalance: (buy - sell) / (buy + sell); 0 (ours: no bucket) without trades."""
    return ofm.trade_imbalance(_trades(trades))


def volume_bars(ordered: Sequence[Trade], q_bucket_e8: int) -> list[ofm.Bar]:
    """orderflow_metrics.volume_bars: the clock's volume cut without t_max and anchors; drops the open bar.

    Volumes are in e8 (whole numbers, exact as floats below 2**53), start and end in seconds as floats.
    """
    return ofm.volume_bars(_trades(ordered), float(q_bucket_e8))


def count_bars(ordered: Sequence[Trade], n_trades: int) -> list[ofm.Bar]:
    """orderflow_metrics.tick_bars: the clock's count cut without t_max and anchors; drops the open bar."""
    return ofm.tick_bars(_trades(ordered), n_trades)


def _trades(trades: Sequence[Trade]) -> list[ofm.Trade]:
    return [
        ofm.Trade(
            price=t.price_e8 / 10**8,
            size=float(t.quantity_e8),
            side="buy" if t.side == "buy" else "sell",
            ts=t.timestamp / SECOND_US,
        )
        for t in trades
    ]


def roll_spread(prices: Series) -> float:
    """orderflow_metrics.roll_spread, in units of price.

    The package centres both series of changes on the mean of all changes and divides by their number, one more than
    there are pairs; ours is the plain covariance of the pairs: equal up to terms of 1/n. It returns 0 where ours is NULL.
    """
    return ofm.roll_spread([float(p) for p in prices])


def spread_parts(
    prices: Series, mids: Series, later_mids: Series, is_buy: Sequence[bool]
) -> tuple[Floats, Floats, Floats]:
    """orderflow_metrics.effective_spread, realized_spread and price_impact of each trade, in units of price: ours
    before the division by the mid."""
    sides = ["buy" if b else "sell" for b in is_buy]
    rows = list(zip(prices, mids, later_mids, sides, strict=True))
    return (
        np.array([ofm.effective_spread(float(p), float(m), s) for p, m, _, s in rows]),
        np.array([ofm.realized_spread(float(p), float(x), s) for p, _, x, s in rows]),
        np.array([ofm.price_impact(float(m), float(x), s) for _, m, x, s in rows]),
    )


def equal_volume_imbalances(trades: Sequence[Trade], bar: int) -> Floats:
    """ob_analytics.compute_vpin: |bought - sold| of its bars of equal volume, which split trades exactly as ours do.

    It sorts by time unstably and drops what is left of a bar below 1e-12: times here are the places in the list, and
    quantities whole numbers.
    """
    frame = pd.DataFrame(
        {
            "timestamp": pd.date_range("2024-01-01", periods=len(trades), freq="s", tz="UTC"),
            "price": 1.0,
            "volume": [float(t.quantity_e8) for t in trades],
            "direction": [t.side for t in trades],
        }
    )
    found = compute_vpin(frame, float(bar), 50)
    return found["vpin"].to_numpy(dtype=np.float64) * bar if len(found) else np.array([])
