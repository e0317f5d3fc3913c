"""An order book kept from Binance snapshots and diffs, and the proof that its best level is right.

Prices are integers times 10**8 (exact); quantities keep the exchange's own decimal text, trailing zeros
stripped. A level is kept as its JSON text `["61804.7","35"]`, ready to be joined into a row.

When is the best known to be right? Diffs give absolute quantities, so every level of the book is true, but a
level that neither the snapshot nor a diff has named is missing. `Replay` therefore keeps one interval of
prices inside which every level is known, and vouches for a state only while its best bid and ask lie in it:

* a snapshot makes known the prices from its lowest bid to its highest ask (unbounded on a side whose number
  of levels is none that can be asked for: then it is the whole side);
* a spread of one tick leaves no room for an unknown level between the two (the tick is the greatest common
  divisor of all prices seen, taken seriously after `MIN_PRICES` of them);
* a bookTicker of the same update id that agrees says the same.

So a capture without a snapshot, or after a gap, is replayed from diffs alone and vouched for only where
it can be proven. On the recorded sets such a book is otherwise wrong at up to 6 states in 1,000, the last
of them almost two minutes after its start; of the proven states none is wrong. It is also given `SETTLE`
of event time to fill up, for a snapshot mostly follows and rows of two or three levels are of little use;
deeper levels may be incomplete for longer.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from math import gcd
from typing import Any, Final, NamedTuple

from python_udfs.ingest.decimals import ONE, one_to_e8

NO_BID: Final = 0
NO_ASK: Final = 1 << 62  # above every price, so that an empty ask side compares as infinitely far
QUANTITY_LIMIT: Final = 1e10  # Decimal(18, 8)
SETTLE: Final = 10_000_000  # µs of event time that a book built from diffs alone is given to fill up
MIN_PRICES: Final = 64  # distinct prices after which their common divisor is taken for the tick
RECENT: Final = 256  # diffs kept, for a snapshot that arrives after the diffs that go on top of it
MATCH_WINDOW: Final = 32_768  # bookTickers and states kept, for the partner of the same update id
SNAPSHOT_LIMITS: Final = frozenset({5, 10, 20, 50, 100, 500, 1000, 5000})  # that the depth endpoint accepts

Levels = Iterable[Sequence[str]]


def plain(text: str) -> str:
    """A plain decimal text without trailing zeros: '0.0100' -> '0.01', '5.000' -> '5'."""
    return text.rstrip("0").rstrip(".") if "." in text else text


class PriceKeys(dict[str, tuple[int, str]]):
    """Price text -> (price times 10**8, the head of its level's JSON), remembered; `tick` divides them all.

    Raises (on look-up): ValueError when the text is no positive price that fits Decimal(18, 8).
    """

    tick: int = 0

    def __missing__(self, text: str) -> tuple[int, str]:
        key = one_to_e8(text)
        if key <= 0:
            raise ValueError(f"bad_number: price {text} is not above zero")
        self.tick = gcd(self.tick, key)
        price = plain(f"{key // ONE}.{key % ONE:08d}")
        entry = self[text] = key, f'["{price}","'
        return entry


class Best(NamedTuple):
    """Prices times 10**8 (`NO_BID`, `NO_ASK` where the side is empty) and levels as JSON texts ('' there)."""

    bid: int
    ask: int
    bid_level: str
    ask_level: str


class _Side:
    """One side. Keys are prices times `sign`, ascending, so that the best level is the last of `order`."""

    __slots__ = ("levels", "order", "prices", "sign")

    def __init__(self, prices: PriceKeys, sign: int) -> None:
        self.prices, self.sign = prices, sign
        self.order: list[int] = []
        self.levels: dict[int, str] = {}

    def apply(self, changes: Levels) -> None:
        levels, order, prices, sign = self.levels, self.order, self.prices, self.sign
        for price, quantity in changes:
            key, head = prices[price]
            key *= sign
            amount = float(quantity)
            if 0.0 < amount < QUANTITY_LIMIT:
                if key not in levels:
                    insort(order, key)
                # `plain`, written out: a call for each level costs too much here.
                text = quantity.rstrip("0").rstrip(".") if "." in quantity else quantity
                levels[key] = f'{head}{text}"]'
            elif amount == 0.0:
                if levels.pop(key, None) is not None:
                    del order[bisect_left(order, key)]
            else:
                raise ValueError(f"out_of_range: quantity {quantity} at price {price}")

    def top(self, n: int) -> tuple[str, int]:
        keys = self.order[-n:]
        levels = self.levels
        return "[" + ",".join([levels[key] for key in reversed(keys)]) + "]", len(keys)


class Book:
    """Price levels of both sides, by absolute quantities. Knows nothing of update ids."""

    __slots__ = ("_asks", "_bids")

    def __init__(self, prices: PriceKeys | None = None, bids: Levels = (), asks: Levels = ()) -> None:
        """An empty book, or a snapshot. `prices` may be shared by the books of one symbol."""
        prices = PriceKeys() if prices is None else prices
        self._bids, self._asks = _Side(prices, 1), _Side(prices, -1)
        self.apply(bids, asks)

    def apply(self, bids: Levels, asks: Levels) -> None:
        """Set levels of [price text, quantity text] to their quantities; 0 removes a level (known or not).

        Raises:
            ValueError: a level is malformed; those before it are applied, so the book must be thrown away.
        """
        try:
            self._bids.apply(bids)
            self._asks.apply(asks)
        except (TypeError, ValueError) as e:
            coded = str(e).startswith(("bad_number:", "out_of_range:"))
            raise ValueError(str(e) if coded else f"bad_number: not a level [price, quantity]: {e}") from e

    def best(self) -> Best:
        bids, asks = self._bids, self._asks
        bid = bids.order[-1] if bids.order else NO_BID
        ask = asks.order[-1] if asks.order else -NO_ASK
        return Best(bid, -ask, bids.levels.get(bid, ""), asks.levels.get(ask, ""))

    def top(self, n: int) -> tuple[str, int, str, int]:
        """The best n >= 1 levels a side, best first: (bids JSON, how many, asks JSON, how many)."""
        return *self._bids.top(n), *self._asks.top(n)

    def range(self) -> tuple[int, int]:
        """The lowest bid and the highest ask, times 10**8; `NO_BID`, `NO_ASK` where there is none."""
        bids, asks = self._bids.order, self._asks.order
        return (bids[0] if bids else NO_BID), (-asks[0] if asks else NO_ASK)


class _Diff(NamedTuple):
    previous: int
    update_id: int
    bids: Levels
    asks: Levels


class _State(NamedTuple):
    best: Best
    proven: bool
    vouched: bool  # proven, and settled: it may have been used
    epoch: int


class _Snapshot(NamedTuple):
    last_id: int
    book: Book
    low: int
    high: int


def _trim(window: dict[int, Any]) -> None:
    """Forget the oldest half of a window that is full."""
    if len(window) >= 2 * MATCH_WINDOW:
        for key in list(islice(window, MATCH_WINDOW)):
            del window[key]


class Replay:
    """The book of one symbol along its diff stream: sequence, snapshots, proof, agreement with bookTicker.

    A diff covers the update ids after `previous` (futures `pu`, spot `U` - 1) up to `update_id`; it must
    begin where the one before it ended. One that does not is a gap: the book is thrown away and built anew
    from that diff, unproven as at the start, until a snapshot comes or the levels prove themselves.

    A snapshot goes under the first diff that covers its id (previous <= lastUpdateId <= update_id: `pu` and
    not `U` for futures, since ids in between belong to other symbols), be it among the last `RECENT` ones, as
    a snapshot is usually received after it. The first state to show it is the next diff's: what the diffs
    before would have shown could not have been known at their time.

    Attributes:
        book: the levels after the last diff.
        prices: what is known of the symbol's price texts.
        agreed, compared: of the update ids in both diffs and bookTicker, how many agree on the best level.
        withheld: states that were not vouched for; `doubted`: those of them where bookTicker disagreed.
        restarts: times the book was begun from a diff alone, the start of the stream included.
        anchored: times a snapshot was put under the diffs.
    """

    def __init__(self) -> None:
        self.agreed = self.compared = self.withheld = self.doubted = self.restarts = self.anchored = 0
        self.prices = PriceKeys()
        self._last_id: int | None = None
        self._recent: deque[_Diff] = deque(maxlen=RECENT)
        self._pending: _Snapshot | None = None
        self._tickers: dict[int, tuple[str, str]] = {}
        self._states: dict[int, _State] = {}
        self._epoch = 0
        self._restart(0)

    def distrust(self, time: int) -> None:
        """Forget levels and a waiting snapshot; begin anew with the diffs after event time `time` (µs)."""
        self._pending = None
        self._restart(time)

    def _restart(self, time: int) -> None:
        self.book = Book(self.prices)
        self._epoch += 1
        self._settled_at = time + SETTLE
        self._low, self._high = NO_ASK, NO_BID  # the empty interval

    def snapshot(self, last_id: int, bids: Sequence[Sequence[str]], asks: Sequence[Sequence[str]]) -> None:
        """Take a snapshot, for now or for when the diffs reach its id.

        Raises:
            ValueError: `bad_number`, `out_of_range`, or `sequence_gap` when it is older than the diffs that
                are kept. The book stays as it is.
        """
        book = Book(self.prices, bids, asks)
        low, high = book.range()
        self._pending = _Snapshot(
            last_id,
            book,
            low if len(bids) in SNAPSHOT_LIMITS else NO_BID,
            high if len(asks) in SNAPSHOT_LIMITS else NO_ASK,
        )
        self._anchor()

    def _anchor(self) -> None:
        """Put the pending snapshot under the diffs once they reach it."""
        snapshot = self._pending
        if snapshot is None or not self._recent or self._recent[-1].update_id < snapshot.last_id:
            return
        self._pending = None
        first = self._recent[0]
        if first.previous > snapshot.last_id:
            raise ValueError(
                f"sequence_gap: snapshot {snapshot.last_id} is older than the diffs, from {first.previous} on"
            )
        for diff in self._recent:
            if diff.update_id >= snapshot.last_id:
                snapshot.book.apply(diff.bids, diff.asks)
        self.book, self._low, self._high = snapshot.book, snapshot.low, snapshot.high
        self._settled_at = 0
        self._epoch += 1
        self.anchored += 1

    def diff(self, previous: int, update_id: int, time: int, bids: Levels, asks: Levels) -> Best | None:
        """Apply a diff with event time `time` (µs): the best levels after it, or None while unproven.

        Raises:
            ValueError: there is no state to be used, because of `stale_update` (the ids were applied already:
                the diff is ignored), `sequence_gap`, `crossed_book` (the two sides meet), `replay_mismatch`
                (bookTicker says otherwise: the book is thrown away), `bad_number` or `out_of_range` (the diff
                is unusable, so the next one is a gap).
        """
        last, diff = self._last_id, _Diff(previous, update_id, bids, asks)
        if last is not None and update_id <= last:
            raise ValueError(f"stale_update: update {update_id} is not after {last}")
        gap = last is not None and previous != last
        if gap or last is None:
            self._recent.clear()
            self._restart(time)
            self.restarts += 1
        self.book.apply(bids, asks)
        self._last_id = update_id
        self._recent.append(diff)
        self._anchor()
        if gap:
            raise ValueError(f"sequence_gap: the diff follows {previous}, the one before ended at {last}")
        best = self.book.best()
        if best.bid >= best.ask:
            raise ValueError(f"crossed_book: bid {best.bid_level} is not below ask {best.ask_level}")
        if best.ask - best.bid == self.prices.tick and len(self.prices) >= MIN_PRICES:
            self._know(best)
        self._compare(update_id, time, best)
        if self._proven(best) and time >= self._settled_at:
            return best
        self.withheld += 1
        return None

    def ticker(self, update_id: int, time: int, bid_level: str, ask_level: str) -> None:
        """Check against a bookTicker (levels as JSON texts or ''), before or after the diff of that id.

        Raises:
            ValueError: `replay_mismatch`: a state that was vouched for is wrong. The book is thrown away.
        """
        if update_id in self._tickers:
            return
        ticker = self._tickers[update_id] = bid_level, ask_level
        _trim(self._tickers)
        state = self._states.get(update_id)
        if state is not None:
            self._judge(update_id, time, state, ticker)

    def _compare(self, update_id: int, time: int, best: Best) -> None:
        proven = self._proven(best)
        state = _State(best, proven, proven and time >= self._settled_at, self._epoch)
        self._states[update_id] = state
        _trim(self._states)
        ticker = self._tickers.get(update_id)
        if ticker is not None:
            self._judge(update_id, time, state, ticker)

    def _judge(self, update_id: int, time: int, state: _State, ticker: tuple[str, str]) -> None:
        best = state.best
        self.compared += 1
        if ticker == (best.bid_level, best.ask_level):
            self.agreed += 1
            if state.epoch == self._epoch:
                self._know(best)
            return
        if state.proven and state.epoch == self._epoch:
            self._restart(time)
        if state.vouched:
            raise ValueError(
                f"replay_mismatch: at update {update_id} the replay has {best.bid_level} {best.ask_level}, "
                f"bookTicker {ticker[0]} {ticker[1]}"
            )
        self.doubted += 1

    def _know(self, best: Best) -> None:
        """Every level between these two is known, and stays so as long as the diffs are complete."""
        if best.bid <= self._high and best.ask >= self._low:
            self._low, self._high = min(self._low, best.bid), max(self._high, best.ask)
        else:
            self._low, self._high = best.bid, best.ask

    def _proven(self, best: Best) -> bool:
        return best.bid >= self._low and best.ask <= self._high
