"""Recorded Binance websocket captures: trades, books replayed from L2 diffs, bookTicker, funding.

A capture is text, gzip or plain: `<receive time> <JSON>` a line, the time in ms, µs or ns since the epoch
(13, 16 or 19 digits), the JSON a combined-stream message `{"stream": …, "data": …}` or a REST depth snapshot.
Blank lines are skipped. The files of one capture are read in the order given, the books go on across them.

What becomes of each stream (times of the exchange are ms, or µs where the recorder asked for them):

* `@trade` -> trades. Futures prints with `X` other than MARKET are no order-book trades: rejected.
* `@depth…` (diffs) and snapshots -> orderbooks, data source `binance_ws`: the best 20 levels a side at event
  time `E`, at every diff after which the best price or quantity of a side differs from the last row's, and
  else at the first diff in a later 100 ms interval of `E` (whole multiples of 100 ms since the epoch) than
  the last row's. Only states that `book.Replay` vouches for become rows; a note tells how many were withheld.
* `@bookTicker` -> compared with the replay at equal update ids, in whatever order the two arrive (at most
  `book.MATCH_WINDOW` messages apart). Of futures also orderbooks of one level, data source
  `binance_ws_bookticker`, at `E`. Spot bookTicker has no exchange time: it is not loaded, a note counts it.
* `@markPrice…` -> funding_rates: at `E`, the rate predicted for the settlement at `T`.

A snapshot of spot or USD-M names no symbol: it is taken for the one symbol of its file, and rejected where
there are several. A line of which nothing is known counts to `trades` in quarantine (a reject names a kind).
A watermark is the largest `E` among all messages of a symbol, as its streams share one connection.

The logs of cryptofeed (`<seconds>: <JSON>`, with connections and subscriptions in between) are another format
and are not read.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from python_udfs.errors import BadFileError, UserError
from python_udfs.ingest.book import Best, PriceKeys, Replay, plain
from python_udfs.ingest.decimals import one_to_e8, to_e8
from python_udfs.ingest.records import (
    MARKET_TYPES,
    Batch,
    Item,
    Kind,
    Note,
    Progress,
    Reject,
    Watermark,
)

DEPTH: Final = 20
GRID: Final = 100_000  # µs
CHUNK_ROWS: Final = 20_000  # rows of one kind in a batch: a book row is about 1 KB of text
CHECK_LINES: Final = 1_024  # after so many lines: progress, and a batch if there is enough for one
RAW_CHARS: Final = 500

EXCHANGE: Final = "binance"
_KIND_OF: Final[dict[str, Kind]] = {
    "trade": "trades",
    "depth": "orderbooks",
    "bookTicker": "orderbooks",
    "markPrice": "funding_rates",
}
# Digits of a receive time -> (multiply by, divide by) to µs.
_UNITS: Final = {13: (1000, 1), 16: (1, 1), 19: (1, 1000)}

# A quantity that fits Decimal(18, 8) exactly.
_QUANTITY: Final = re.compile(r"[0-9]{1,10}(\.[0-9]{1,8}0{0,10})?")

Json = dict[str, Any]
Row = tuple[Any, ...]


class _LineError(Exception):
    """This line is rejected: field, reason. `alien`: it has not even the form of a capture's line."""

    def __init__(self, field: str, reason: str, *, alien: bool = False) -> None:
        super().__init__(reason)
        self.field, self.reason, self.alien = field, reason, alien


def _time(data: Json, field: str) -> int:
    """A time of the exchange, in ms or µs, as µs."""
    value = data[field]
    if type(value) is not int or not 10**11 <= value < 10**17:
        raise _LineError(field, f"bad_number: {value!r} is not a time in ms or µs")
    return value * 1000 if value < 10**14 else value


def _id(data: Json, field: str) -> int:
    value = data[field]
    if type(value) is not int or value < 0:
        raise _LineError(field, f"bad_number: {value!r} is not an id")
    return value


def _text(data: Json, field: str) -> str:
    value = data[field]
    if type(value) is not str:
        raise _LineError(field, f"bad_number: {value!r} is not a decimal in quotes")
    return value


def _e8(data: Json, field: str) -> int:
    """A decimal times 10**8."""
    try:
        return one_to_e8(_text(data, field))
    except ValueError as e:
        raise _LineError(field, str(e)) from e


def _positive(data: Json, field: str, name: str) -> int:
    """A decimal above zero, times 10**8."""
    value = _e8(data, field)
    if value > 0:
        return value
    reason = f"zero_{name}: 0" if value == 0 else f"bad_number: {name} {data[field]} is below zero"
    raise _LineError(field, reason)


def _quantity(text: str, field: str) -> str:
    if _QUANTITY.fullmatch(text):
        return text
    try:
        one_to_e8(text)
    except ValueError as e:
        raise _LineError(field, str(e)) from e
    raise _LineError(field, f"bad_number: {text!r} is not a plain decimal of at least 0")


def _ticker_side(data: Json, prices: PriceKeys, price: str, quantity: str) -> tuple[int, str, str]:
    """One side of a bookTicker: price times 10**8, level as JSON text, quantity; 0, '', '0' if empty."""
    amount = plain(_quantity(_text(data, quantity), quantity))
    if amount == "0":
        return 0, "", amount
    try:
        key, head = prices[_text(data, price)]
    except ValueError as e:
        raise _LineError(price, str(e)) from e
    return key, f'{head}{amount}"]', amount


def _received(stamp: bytes) -> int:
    """A receive time as µs."""
    unit = _UNITS.get(len(stamp))
    if unit is None or not stamp.isdigit():
        reason = f"bad_time: {stamp[:40].decode(errors='replace')!r} is not a time of 13, 16 or 19 digits"
        raise _LineError("received_at", reason, alien=True)
    return int(stamp) * unit[0] // unit[1]


def _market_type(channel: str, symbol: str, data: Json) -> str:
    """The market of a message by what it carries (the reader's option overrides this)."""
    if "USD_" in symbol:  # BTCUSD_PERP; but BTCUSDT_240927 is a linear delivery contract
        return "inverse"
    timed = channel in ("bookTicker", "snapshot") and "E" in data
    return "linear" if timed or channel == "markPrice" or "pu" in data or "X" in data else "spot"


class _Feed:
    """What is known of one symbol so far."""

    __slots__ = ("event_time", "kinds", "last_best", "last_time", "name", "replay")

    def __init__(self, market_type: str, symbol: str) -> None:
        self.name = market_type, symbol
        self.replay = Replay()
        self.event_time = 0  # largest E
        self.kinds: set[Kind] = set()  # with at least one message
        self.last_best: Best | None = None  # of the last book row, with its time
        self.last_time = 0


Handler = Callable[[_Feed, Json, int, int, bytes], None]


class _File:
    """The lines of a file, gzip or plain, and how many of its bytes were read."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        try:
            self._raw = path.open("rb")
        except OSError as e:
            raise BadFileError(self.path, f"cannot be read: {e.strerror}") from e
        self.size = path.stat().st_size
        packed = self._raw.peek(2)[:2] == b"\x1f\x8b"
        self._text = gzip.GzipFile(fileobj=self._raw) if packed else self._raw

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(1-based number, line without its end) of the lines that are not blank."""
        number = 0
        try:
            for number, line in enumerate(self._text, 1):
                if text := line.strip():
                    yield number, text
        except EOFError as e:
            reason = f"truncated gzip: the last good line is {number}; fetch the file again"
            raise BadFileError(self.path, reason, line=number) from e
        except (OSError, zlib.error) as e:
            reason = f"damaged after line {number} ({e}); fetch the file again"
            raise BadFileError(self.path, reason, line=number) from e

    def done(self) -> int:
        return min(self._raw.tell(), self.size)

    def close(self) -> None:
        self._raw.close()


class BinanceWebsocketReader:
    """Reads the files of one capture (see the module). State is kept per symbol.

    Args:
        paths: the capture's files in order of time.
        market_type: of all symbols in it; None: told from the messages themselves.
    """

    data_source = "binance_ws"

    def __init__(self, paths: list[Path], market_type: str | None = None) -> None:
        if market_type is not None and market_type not in MARKET_TYPES:
            raise UserError(f"market type {market_type!r}: give one of {', '.join(MARKET_TYPES)}")
        self.paths = paths
        self.options = {"market_type": market_type or "auto"}
        self._market_type = market_type
        self._handlers: dict[str, Handler] = {
            "trade": self._trade,
            "depth": self._depth,
            "bookTicker": self._book_ticker,
            "markPrice": self._mark_price,
        }

    def read(self) -> Iterator[Item]:
        """The items of the capture.

        Raises:
            BadFileError: a file is unreadable, empty, truncated, or begins with no line of this format.
        """
        self._feeds: dict[tuple[str, str], _Feed] = {}
        self._spot_tickers = 0
        before = 0
        for path in self.paths:
            file = _File(path)
            try:
                yield from self._read_file(file, before)
            finally:
                file.close()
            before += file.size
            yield Progress(before)
        yield from self._summary()

    def _read_file(self, file: _File, before: int) -> Iterator[Item]:
        self._path = file.path
        self._routes: dict[tuple[str, str], tuple[Handler, _Feed]] = {}
        self._file_feeds: list[_Feed] = []
        # Snapshots that name no symbol: held until there is one, then assumed to be its.
        self._held: list[tuple[Json, int, bytes]] = []
        self._assumed: list[tuple[int, bytes]] = []
        self._trades: list[Row] = []
        self._books: list[Row] = []
        self._tickers: list[Row] = []
        self._funding: list[Row] = []
        self._rejects: list[Reject] = []
        count = 0
        for count, (number, line) in enumerate(file.lines(), 1):
            try:
                self._line(number, line)
            except _LineError as e:
                if count == 1 and e.alien:
                    reason = f"not a Binance websocket capture (`<receive time> <JSON>` a line): {e.reason}"
                    raise BadFileError(file.path, reason, line=number, field=e.field or None) from e
                self._reject(_kind(line), number, e.field, e.reason, line)
            if self._rejects:
                yield from self._rejects
                self._rejects.clear()
            if count % CHECK_LINES == 0:
                rows = max(map(len, (self._trades, self._books, self._tickers, self._funding)))
                if rows >= CHUNK_ROWS:
                    yield from self._flush()
                yield Progress(before + file.done())
        if count == 0:
            raise BadFileError(file.path, "empty: there is no line in it")
        for _, number, line in self._held:
            self._reject_unnamed(number, line, "no other line does")
        yield from self._rejects
        yield from self._flush()

    def _line(self, number: int, line: bytes) -> None:
        stamp, _, body = line.partition(b" ")
        received = _received(stamp)
        try:
            message = orjson.loads(body)
        except orjson.JSONDecodeError as e:
            raise _LineError("", f"bad_json: {e}", alien=True) from e
        if type(message) is not dict:
            raise _LineError("", "bad_json: not an object", alien=True)
        try:
            if "stream" not in message:
                self._snapshot(message, number, line)
                return
            stream, data = message["stream"], message["data"]
            route = self._routes.get((stream, data.get("s"))) or self._route(stream, data)
            route[0](route[1], data, number, received, line)
        except KeyError as e:
            raise _LineError(str(e.args[0]), f"missing_field: {e.args[0]}") from e
        except (TypeError, AttributeError) as e:
            raise _LineError("", f"bad_json: not a message of a known form: {e}") from e

    def _route(self, stream: str, data: Json) -> tuple[Handler, _Feed]:
        """Handler and feed of a stream and symbol, from their first message in the file."""
        channel = stream.partition("@")[2].partition("@")[0] or stream.removeprefix("!")
        handler = self._handlers.get(channel)
        if handler is None:
            raise _LineError("stream", f"unknown_stream: {stream}")
        symbol = _text(data, "s")
        feed = self._feed(self._market_type or _market_type(channel, symbol, data), symbol)
        route = self._routes[stream, symbol] = handler, feed
        return route

    def _feed(self, market_type: str, symbol: str) -> _Feed:
        feed = self._feeds.get((market_type, symbol))
        if feed is None:
            feed = self._feeds[market_type, symbol] = _Feed(market_type, symbol)
        if feed not in self._file_feeds:
            self._file_feeds.append(feed)
            self._attribute(self._file_feeds[0])
        return feed

    def _attribute(self, first: _Feed) -> None:
        """The file has one symbol more: give the first what was held, or take back what was assumed."""
        if len(self._file_feeds) == 1:
            for data, number, line in self._held:
                self._assume(first, data, number, line)
            self._held.clear()
        elif self._assumed:
            first.replay.distrust(first.event_time)
            for number, line in self._assumed:
                self._reject_unnamed(number, line, "the file has several")
            self._assumed.clear()

    def _assume(self, feed: _Feed, data: Json, number: int, line: bytes) -> None:
        self._assumed.append((number, line[:RAW_CHARS]))
        self._apply_snapshot(feed, data, number, line)

    def _reject_unnamed(self, number: int, line: bytes, but: str) -> None:
        reason = f"unknown_symbol: the snapshot names no symbol, and {but}"
        self._reject("orderbooks", number, "symbol", reason, line)

    def _snapshot(self, data: Json, number: int, line: bytes) -> None:
        if "lastUpdateId" not in data:
            raise _LineError("stream", "unknown_stream: no stream's message, no depth snapshot", alien=True)
        _id(data, "lastUpdateId")
        if not isinstance(data["bids"], list) or not isinstance(data["asks"], list):
            raise _LineError("bids,asks", "bad_json: bids and asks must be lists")
        if "symbol" in data:
            symbol = _text(data, "symbol")
            market_type = self._market_type or _market_type("snapshot", symbol, data)
            self._apply_snapshot(self._feed(market_type, symbol), data, number, line)
        elif not self._file_feeds:
            self._held.append((data, number, line))
        elif len(self._file_feeds) == 1:
            self._assume(self._file_feeds[0], data, number, line)
        else:
            self._reject_unnamed(number, line, "the file has several")

    def _apply_snapshot(self, feed: _Feed, data: Json, number: int, line: bytes) -> None:
        try:
            feed.replay.snapshot(data["lastUpdateId"], data["bids"], data["asks"])
        except ValueError as e:
            self._reject("orderbooks", number, "lastUpdateId", str(e), line)

    def _trade(self, feed: _Feed, data: Json, number: int, received: int, line: bytes) -> None:
        feed.event_time = max(feed.event_time, _time(data, "E"))
        feed.kinds.add("trades")
        kind = data.get("X", "MARKET")
        if kind != "MARKET":
            raise _LineError("X", f"not_a_trade: X={kind}")
        maker = data["m"]
        if type(maker) is not bool:
            raise _LineError("m", f"bad_json: m is {maker!r}, not true or false")
        trade_id, time = str(_id(data, "t")), _time(data, "T")
        price, quantity = _positive(data, "p", "price"), _positive(data, "q", "quantity")
        self._trades.append((*feed.name, time, received, number, trade_id, price, quantity, maker))

    def _depth(self, feed: _Feed, data: Json, number: int, received: int, line: bytes) -> None:
        time, update_id = _time(data, "E"), _id(data, "u")
        feed.event_time = max(feed.event_time, time)
        feed.kinds.add("orderbooks")
        follows = "pu" if "pu" in data else "U"
        previous = _id(data, follows) - (follows == "U")
        replay = feed.replay
        try:
            best = replay.diff(previous, update_id, time, data["b"], data["a"])
        except ValueError as e:
            in_sequence = not str(e).startswith(("sequence_gap", "stale_update"))
            raise _LineError("b,a" if in_sequence else follows, str(e)) from e
        if best is None or (best == feed.last_best and time // GRID <= feed.last_time // GRID):
            return
        feed.last_best, feed.last_time = best, time
        ask = best.ask if best.ask_level else 0
        quantities = [_quantity(level.split('"')[3], "b,a") if level else "0" for level in best[2:]]
        row = (*feed.name, time, received, number, update_id, best.bid, ask, *quantities)
        self._books.append(row + replay.book.top(DEPTH))

    def _book_ticker(self, feed: _Feed, data: Json, number: int, received: int, line: bytes) -> None:
        update_id, prices = _id(data, "u"), feed.replay.prices
        bid, bid_level, bid_quantity = _ticker_side(data, prices, "b", "B")
        ask, ask_level, ask_quantity = _ticker_side(data, prices, "a", "A")
        if bid >= ask > 0:
            raise _LineError("b,a", f"crossed_book: bid {bid_level} is not below ask {ask_level}")
        time = _time(data, "E") if "E" in data else 0
        feed.event_time = max(feed.event_time, time)
        try:
            feed.replay.ticker(update_id, feed.event_time, bid_level, ask_level)
        except ValueError as e:
            self._reject("orderbooks", number, "u", str(e), line)
        if time:
            row = (*feed.name, time, received, number, update_id, bid, ask, bid_quantity, ask_quantity)
            self._tickers.append((*row, f"[{bid_level}]", int(bid > 0), f"[{ask_level}]", int(ask > 0)))
        else:
            self._spot_tickers += 1

    def _mark_price(self, feed: _Feed, data: Json, number: int, received: int, line: bytes) -> None:
        time = _time(data, "E")
        feed.event_time = max(feed.event_time, time)
        index = _e8(data, "i") if "i" in data else 0  # COIN-M sends the index price in another stream
        rates = _e8(data, "r"), _e8(data, "p"), index, _time(data, "T")
        self._funding.append((*feed.name, time, received, number, *rates))

    def _reject(self, kind: Kind, number: int, field: str, reason: str, line: bytes) -> None:
        raw = line[:RAW_CHARS].decode(errors="replace")
        self._rejects.append(Reject(kind, self._path, number, field, reason, raw))

    def _flush(self) -> Iterator[Item]:
        """All rows collected so far, as batches."""
        if self._trades:
            *head, ids, prices, quantities, maker = zip(*self._trades, strict=True)
            is_maker = np.array(maker, dtype=np.uint8)
            columns: dict[str, npt.NDArray[np.generic]] = {
                "trade_id": _objects(ids),
                "price": np.array(prices, dtype=np.int64),
                "quantity": np.array(quantities, dtype=np.int64),
                "side": np.where(is_maker == 1, "sell", "buy").astype(object),
                "is_maker": is_maker,
                "trade_time": np.array(head[2], dtype=np.int64),
            }
            yield self._batch("trades", self.data_source, head, columns)
        if self._books:
            yield self._book_batch(self._books, self.data_source)
        if self._tickers:
            yield self._book_batch(self._tickers, f"{self.data_source}_bookticker")
        if self._funding:
            *head, rates, marks, indices, settlements = zip(*self._funding, strict=True)
            columns = {
                "funding_rate": np.array(rates, dtype=np.int64),
                "funding_time": np.array(settlements, dtype=np.int64),
                "next_funding_time": np.array(settlements, dtype=np.int64),
                "mark_price": np.array(marks, dtype=np.int64),
                "index_price": np.array(indices, dtype=np.int64),
            }
            yield self._batch("funding_rates", self.data_source, head, columns)
        for collected in (self._trades, self._books, self._tickers, self._funding):
            collected.clear()

    def _batch(
        self,
        kind: Kind,
        data_source: str,
        head: Sequence[Sequence[Any]],
        columns: dict[str, npt.NDArray[np.generic]],
    ) -> Batch:
        """`head`: the rows' market types, symbols, times, receive times and line numbers."""
        market_types, symbols, times, received, numbers = head
        common: dict[str, npt.NDArray[np.generic]] = {
            "exchange": np.full(len(times), EXCHANGE, dtype=object),
            "market_type": _objects(market_types),
            "symbol": _objects(symbols),
            "timestamp": np.array(times, dtype=np.int64),
            "received_at": np.array(received, dtype=np.int64),
            "data_source": np.full(len(times), data_source, dtype=object),
        }
        return Batch(kind, common | columns, self._path, np.array(numbers, dtype=np.int64))

    def _book_batch(self, rows: list[Row], data_source: str) -> Batch:
        *head, update_ids, bid, ask, bid_quantity, ask_quantity, bids, bids_count, asks, asks_count = zip(
            *rows, strict=True
        )
        columns: dict[str, npt.NDArray[np.generic]] = {
            "last_update_id": np.array(update_ids, dtype=np.uint64),
            "bids_count": np.array(bids_count, dtype=np.uint64),
            "asks_count": np.array(asks_count, dtype=np.uint64),
            "best_bid_price": np.array(bid, dtype=np.int64),
            "best_ask_price": np.array(ask, dtype=np.int64),
            "best_bid_quantity": to_e8(bid_quantity),
            "best_ask_quantity": to_e8(ask_quantity),
            "bids": _objects(bids),
            "asks": _objects(asks),
        }
        return self._batch("orderbooks", data_source, head, columns)

    def _summary(self) -> Iterator[Item]:
        """Watermarks and notes, after the last file."""
        for feed in self._feeds.values():
            for kind in sorted(feed.kinds):
                yield Watermark(kind, EXCHANGE, *feed.name, feed.event_time)
        replays = [(" ".join(feed.name), feed.replay) for feed in self._feeds.values()]
        compared = sum(replay.compared for _, replay in replays)
        if compared:
            agreed = sum(replay.agreed for _, replay in replays)
            doubted = sum(replay.doubted for _, replay in replays)
            withheld = f" ({doubted} disagree in states that were withheld)" if doubted else ""
            yield Note("bookticker_agreement", f"{agreed} of {compared - doubted}{withheld}")
        if self._spot_tickers:
            yield Note(
                "bookticker_not_loaded",
                f"{self._spot_tickers} messages of spot bookTicker have no exchange time: for checking only",
            )
        unanchored = [name for name, replay in replays if replay.restarts and not replay.anchored]
        if unanchored:
            yield Note(
                "books_without_snapshot",
                f"{', '.join(unanchored)}: built from diffs alone, so depth may be incomplete",
            )
        unproven = [f"{replay.withheld} of {name}" for name, replay in replays if replay.withheld]
        if unproven:
            yield Note("book_states_withheld", f"{', '.join(unproven)}: the best level could not be proven")


def _kind(line: bytes) -> Kind:
    """The kind to which a line that cannot be read is counted, from the text of its stream."""
    if b'"lastUpdateId"' in line:
        return "orderbooks"
    return next((kind for channel, kind in _KIND_OF.items() if f"@{channel}".encode() in line), "trades")


def _objects(values: Sequence[object]) -> npt.NDArray[np.generic]:
    return np.array(values, dtype=object)
