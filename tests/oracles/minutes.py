"""Minutes of one instrument from their definitions, a row at a time. NaN stands for NULL.

Times are int64 microseconds since the epoch; prices and quantities in units of the venue. A minute holds what became known
in [start, start + 60 s); its row is as of its end.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from typing import Final

from .clock import MINUTE_US, Trade
from .features import BookRows

E8: Final = 10**8
MAX_LAG_US: Final = 10_000_000
NULL: Final = math.nan
Row = dict[str, float]


def trade_rows(trades: Sequence[Trade]) -> dict[int, list[Trade]]:
    """On-time trades by minute, in order."""
    found: dict[int, list[Trade]] = defaultdict(list)
    for t in sorted(
        (t for t in trades if t.known_at <= t.timestamp), key=lambda t: (t.timestamp, t.trade_seq, t.trade_id)
    ):
        found[t.timestamp // MINUTE_US * MINUTE_US].append(t)
    return found


def book_rows(books: BookRows) -> dict[int, list[int]]:
    """Positions of the states that were not too old when they became known, by minute of knowledge."""
    found: dict[int, list[int]] = defaultdict(list)
    for i, (known, event) in enumerate(zip(books.known_at, books.timestamp, strict=True)):
        if known - event <= MAX_LAG_US:
            found[int(known) // MINUTE_US * MINUTE_US].append(i)
    return found


def minute_bars(
    trades: Sequence[Trade],
    books: BookRows,
    *,
    trades_complete_to: int,
    book_complete_to: int,
    market_type: str,
    contract_value: float,
) -> dict[int, Row]:
    """Column -> value for every published minute, by its start (µs).

    Args:
        trades_complete_to, book_complete_to: the feeds' watermarks (exclusive); 0: none.
    """
    traded, shown = trade_rows(trades), book_rows(books)
    trades_passed = max([trades_complete_to - 1, *traded])
    book_passed = max([book_complete_to - 1, *shown])
    bars = {}
    for start in sorted({*traded, *shown}):
        end = start + MINUTE_US
        bar: Row = {}
        if end <= trades_passed:
            bar |= _of_trades(traded.get(start, []), market_type, contract_value)
        if end <= book_passed:
            bar |= _of_book(books, shown.get(start, []), end)
        # a minute is there if a feed that has passed it brought something
        if (start in traded and end <= trades_passed) or (start in shown and end <= book_passed):
            bars[start] = bar
    return bars


def _of_trades(trades: list[Trade], market_type: str, contract_value: float) -> Row:
    buys = [t for t in trades if t.side == "buy"]
    volume = sum(t.quantity_e8 for t in trades)
    bought = sum(t.quantity_e8 for t in buys)
    worth = sum(Fraction(t.price_e8, E8) * Fraction(t.quantity_e8, E8) for t in trades)
    bar: Row = {
        "trade_count": len(trades),
        "buy_count": len(buys),
        "sell_count": len(trades) - len(buys),
        "volume": volume / E8,
        "buy_volume": bought / E8,
        "sell_volume": (volume - bought) / E8,
        "notional": contract_value * (volume / E8 if market_type == "inverse" else float(worth)),
        "trades_per_second": len(trades) / 60,
        "footprint_levels": len({t.price_e8 for t in trades}),
    }
    if not trades:
        return bar
    at: dict[int, list[Trade]] = defaultdict(list)
    for t in trades:
        at[t.price_e8].append(t)
    poc = min(at, key=lambda price: (-sum(t.quantity_e8 for t in at[price]), price))
    signed = sum(t.quantity_e8 if t.side == "buy" else -t.quantity_e8 for t in at[poc])
    return bar | {
        "flow_imbalance": float(Fraction(2 * bought - volume, volume)),
        "vwap": float(worth / Fraction(volume, E8)),
        "open_price": trades[0].price_e8 / E8,
        "close_price": trades[-1].price_e8 / E8,
        "high_price": max(at) / E8,
        "low_price": min(at) / E8,
        "mean_trade_size": float(Fraction(volume, E8 * len(trades))),
        "max_trade_size": max(t.quantity_e8 for t in trades) / E8,
        "poc_price": poc / E8,
        "poc_volume_share": float(Fraction(sum(t.quantity_e8 for t in at[poc]), volume)),
        "poc_delta": signed / E8,
    }


def _best(books: BookRows, i: int) -> Row:
    """Mid, spread, imbalance and microprice of a two-sided state."""
    bid, ask = float(books.bid_price[i]), float(books.ask_price[i])
    bid_size, ask_size = float(books.bid_quantity[i]), float(books.ask_quantity[i])
    if min(bid, ask, bid_size, ask_size) <= 0:
        return {}
    exact = Fraction(round(ask * E8) - round(bid * E8), E8)
    mid = float(Fraction(round(ask * E8) + round(bid * E8), 2 * E8))
    return {
        "mid": mid,
        "spread_bps": float(exact) / mid * 10_000,
        "tob_imbalance": (bid_size - ask_size) / (bid_size + ask_size),
        "microprice": (bid * ask_size + ask * bid_size) / (bid_size + ask_size),
    }


def _of_book(books: BookRows, states: list[int], end: int) -> Row:
    bar: Row = {"book_update_count": len(states)}
    valid = [best for i in states if (best := _best(books, i))]
    if valid:
        for name in ("mid", "spread_bps", "tob_imbalance"):
            bar[f"{name}_mean"] = math.fsum(best[name] for best in valid) / len(valid)
    # what is known at the end: the newest event of all that became known, if it is fresh
    known = [i for i in range(len(books.known_at)) if books.known_at[i] < end]
    newest = max(known, key=lambda i: (books.timestamp[i], books.last_update_id[i]), default=None)
    if newest is not None and end - books.timestamp[newest] <= MAX_LAG_US and (best := _best(books, newest)):
        bar |= {f"{name}_close": value for name, value in best.items()}
        bar["microprice_gap_bps"] = (best["microprice"] / best["mid"] - 1) * 10_000
        bar["book_age_ms"] = (end - float(books.timestamp[newest])) / 1000
    return bar
