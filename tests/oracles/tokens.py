"""Order-flow events of one instrument and their classes, by a state machine: rows go in one by one in the order of knowledge.

Integers only: microseconds, and prices and quantities times 10**8; the worth of an event alone is a float.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from .clock import Trade

E8: Final = 10**8
MAX_LAG_US: Final = 10_000_000
WORTH: Final = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
TICKS: Final = (0, 1, 2, 3, 5, 10)
WAIT_US: Final = (1, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)


class State(NamedTuple):
    """A book state, as `support.insert_books` takes it; 0: nothing on that side."""

    timestamp: int
    last_update_id: int
    bid: int
    ask: int
    bid_quantity: int
    ask_quantity: int
    known_at: int

    @property
    def is_valid(self) -> bool:
        return min(self.bid, self.ask, self.bid_quantity, self.ask_quantity) > 0


class Event(NamedTuple):
    """The key of an event and its classes."""

    known_at: int
    is_book: int
    timestamp: int
    seq: int
    text_id: str
    is_ask: int
    type: str
    size_class: int
    distance_class: int
    interval_class: int


def kept(states: Sequence[State]) -> list[State]:
    """Those that were news when they became known, in that order."""
    out: list[State] = []
    for s in sorted(states, key=lambda s: (s.known_at, s.timestamp, s.last_update_id)):
        newer = not out or (s.timestamp, s.last_update_id) > (out[-1].timestamp, out[-1].last_update_id)
        if s.known_at - s.timestamp <= MAX_LAG_US and newer:
            out.append(s)
    return out


def events(
    trades: Sequence[Trade],
    states: Sequence[State],
    *,
    trades_complete_to: int | None,
    book_complete_to: int | None,
    tick_e8: int,
    contract_value: float,
    market_type: str,
) -> list[Event]:
    """All published events, in order.

    Args:
        trades_complete_to, book_complete_to: the feeds' watermarks (exclusive); None: none.
        tick_e8: 0: unknown.
    """
    tape = [t for t in trades if t.known_at <= t.timestamp]
    news = kept(states)
    passed = [
        max([complete_to or 0, *known])
        for complete_to, known in (
            (trades_complete_to, [t.known_at for t in tape]),
            (book_complete_to, [s.known_at for s in news]),
        )
        if complete_to is not None or known
    ]
    rows: list[tuple[int, int, int, int, str, Trade | State]] = [
        (t.known_at, 0, t.timestamp, t.trade_seq, "" if t.trade_seq else t.trade_id, t) for t in tape
    ] + [(s.known_at, 1, s.timestamp, s.last_update_id, "", s) for s in news]
    rows.sort(key=lambda row: row[:5])

    out: list[Event] = []
    last: State | None = None
    for *key, row in rows:
        at = row.known_at
        if at >= min(passed):
            break
        for type_, price, quantity, is_ask in _happened(row, last):
            mid = None
            if (
                last is not None
                and last.is_valid
                and (isinstance(row, State) or at - last.timestamp <= MAX_LAG_US)
            ):
                mid = last.bid + last.ask
            worth = contract_value * (quantity / 1e8) * (1 if market_type == "inverse" else price / 1e8)
            outwards = is_ask or type_ == "trade_buy"
            distance = 0
            if mid is not None and tick_e8 and price and type_ not in ("book_opened", "book_lost"):
                ahead = (2 * price - mid) if outwards else (mid - 2 * price)
                distance = 1 + sum(ahead >= 2 * tick_e8 * bound for bound in TICKS)
            waited = at - out[-1].known_at if out else WAIT_US[-1]
            out.append(
                Event(
                    *key,  # type: ignore[arg-type]
                    is_ask,
                    type_,
                    sum(worth >= bound for bound in WORTH),
                    distance,
                    sum(waited >= bound for bound in WAIT_US),
                )
            )
        if isinstance(row, State):
            last = row
    return out


def _happened(row: Trade | State, last: State | None) -> list[tuple[str, int, int, int]]:
    """(type, price, quantity, is it the ask's) of what a row makes happen."""
    if isinstance(row, Trade):
        return [(f"trade_{row.side}", row.price_e8, row.quantity_e8, 0)]
    follows = last is not None and last.is_valid and row.known_at - last.known_at <= MAX_LAG_US
    if last is None or not follows:
        return [("book_opened", 0, 0, 0)] if row.is_valid else []
    if not row.is_valid:
        return [("book_lost", 0, 0, 0)]
    found = []
    if row.bid > last.bid:
        found.append(("bid_up", row.bid, row.bid_quantity, 0))
    elif row.bid < last.bid:
        found.append(("bid_down", last.bid, last.bid_quantity, 0))
    elif change := row.bid_quantity - last.bid_quantity:
        found.append(("bid_add" if change > 0 else "bid_cancel", row.bid, abs(change), 0))
    if row.ask < last.ask:
        found.append(("ask_down", row.ask, row.ask_quantity, 1))
    elif row.ask > last.ask:
        found.append(("ask_up", last.ask, last.ask_quantity, 1))
    elif change := row.ask_quantity - last.ask_quantity:
        found.append(("ask_add" if change > 0 else "ask_cancel", row.ask, abs(change), 1))
    return found
