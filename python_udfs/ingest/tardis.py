"""Tardis CSV files (tardis.dev, `.csv.gz`): trades, book_snapshot_25, derivative_ticker, liquidations.

Times are µs; `timestamp` is the exchange's, `local_timestamp` the recorder's (our `received_at`). Amounts
are as the exchange gives them, so contracts on some. What a file holds says its name, as Tardis' own client
writes it (`binance-futures_trades_2020-02-01_BTCUSDT.csv.gz`): trades and liquidations have equal columns.

The side of a liquidation is that of the liquidation order, as in our table: sell closes a long. (Tardis
turns Bybit's `side`, which is that of the position, around; see tardis-node, `BybitLiquidationsMapper`.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from python_udfs.errors import BadFileError
from python_udfs.ingest.csvtable import Bools, Chunk, Ints, Objects, Rows, chunks, one_decimal
from python_udfs.ingest.records import NO_TIME, Item, Progress

LEVELS: Final = 20

_TRADES: Final = ("exchange", "symbol", "timestamp", "local_timestamp", "id", "side", "price", "amount")
_TICKER: Final = (
    *_TRADES[:4],
    "funding_timestamp",
    "funding_rate",
    "open_interest",
    "index_price",
    "mark_price",
)
_BOOK: Final = (
    *_TRADES[:4],
    *(
        f"{side}[{i}].{what}"
        for i in range(LEVELS)
        for side in ("asks", "bids")
        for what in ("price", "amount")
    ),
)

# (Tardis exchange, pattern of the symbol, our exchange, our market type); the first that fits.
_MARKETS: Final = tuple(
    (exchange, re.compile(symbol), ours, market)
    for exchange, symbol, ours, market in (
        ("binance", r".+", "binance", "spot"),
        ("binance-futures", r".+", "binance", "linear"),
        ("binance-delivery", r".+", "binance", "inverse"),
        ("bybit-spot", r".+", "bybit", "spot"),
        ("bybit", r".+(USDT|USDC|PERP)", "bybit", "linear"),
        ("bybit", r".+USD([FGHJKMNQUVXZ]\d\d)?", "bybit", "inverse"),
        ("okex", r".+", "okx", "spot"),
        ("okex-swap", r".+-USD-SWAP", "okx", "inverse"),
        ("okex-swap", r".+-USD[TC]-SWAP", "okx", "linear"),
        ("deribit", r".+-[CP]", "deribit", "option"),
        ("deribit", r".+_USD[TC]-.+", "deribit", "linear"),
        ("deribit", r"[A-Z]+-(PERPETUAL|\d{1,2}[A-Z]{3}\d\d)", "deribit", "inverse"),
        ("bitmex", r"XBTUSD", "bitmex", "inverse"),
        ("bitmex", r".+USDT", "bitmex", "linear"),
    )
)


def instrument(exchange: str, symbol: str) -> tuple[str, str]:
    """Tardis' exchange id and symbol to our (exchange, market type).

    Raises:
        ValueError: `unknown_symbol: …` for what this table does not list.
    """
    for theirs, pattern, ours, market in _MARKETS:
        if theirs == exchange and pattern.fullmatch(symbol):
            return ours, market
    raise ValueError(f"unknown_symbol: no market type is known for {symbol!r} on {exchange!r}")


def _common(rows: Rows, timestamp: Ints) -> dict[str, npt.NDArray[Any] | str]:
    """The columns that all kinds have, shape (n,) each."""
    exchange, symbol = rows.chunk.columns["exchange"], rows.chunk.columns["symbol"]
    pairs = rows.lookup(
        "symbol",
        lambda text: instrument(*text.split("\n")),
        ("", ""),
        texts=pc.binary_join_element_wise(exchange, symbol, "\n"),
    )
    return {
        "exchange": np.array([ours for ours, _ in pairs], dtype=np.object_),
        "market_type": np.array([market for _, market in pairs], dtype=np.object_),
        "symbol": rows.text("symbol"),
        "timestamp": timestamp,
        "received_at": rows.time("local_timestamp", blank=NO_TIME),
        "data_source": TardisReader.data_source,
    }


def _trades(chunk: Chunk) -> Iterator[Item]:
    rows = Rows(chunk, "trades")
    stamp = rows.time("timestamp")
    side = rows.sides("side")
    return rows.items(
        {
            **_common(rows, stamp),
            "trade_id": rows.text("id"),
            "price": rows.positive("price"),
            "quantity": rows.positive("amount", "zero_quantity"),
            "side": side,
            "is_maker": (side == "sell").astype(np.uint8),
            "trade_time": stamp,
        }
    )


def _liquidations(chunk: Chunk) -> Iterator[Item]:
    rows = Rows(chunk, "liquidations")
    stamp = rows.time("timestamp")
    return rows.items(
        {
            **_common(rows, stamp),
            "side": rows.sides("side"),
            "price": rows.positive("price"),
            "quantity": rows.positive("amount", "zero_quantity"),
            "liquidation_time": stamp,
        }
    )


def _derivative_ticker(chunk: Chunk) -> Iterator[Item]:
    rows = Rows(chunk.where(chunk.filled("funding_rate")), "funding_rates")
    if len(rows):
        yield from rows.items(
            {
                **_common(rows, rows.time("timestamp")),
                "funding_rate": rows.e8("funding_rate"),
                "funding_time": rows.time("funding_timestamp"),
                "next_funding_time": np.full(len(rows), NO_TIME, dtype=np.int64),
                "mark_price": rows.e8("mark_price", blank="0"),
                "index_price": rows.e8("index_price", blank="0"),
            }
        )
    rows = Rows(chunk.where(chunk.filled("open_interest")), "open_interests")
    if len(rows):
        yield from rows.items(
            {
                **_common(rows, rows.time("timestamp")),
                "open_interest": rows.wide("open_interest"),
                "open_interest_value": "0",
                "count": np.zeros(len(rows), dtype=np.uint64),
            }
        )


def _book_snapshot(chunk: Chunk) -> Iterator[Item]:
    rows = Rows(chunk, "orderbooks")
    stamp = rows.time("timestamp")
    bids, asks = _Side(rows, "bids"), _Side(rows, "asks")
    crossed = (bids.price >= asks.price) & (bids.count > 0) & (asks.count > 0)
    rows.refuse(crossed, "bids[0].price", "crossed_book: bid is not below ask")
    return rows.items(
        {
            **_common(rows, stamp),
            # Tardis gives no update id: the stamp tells the snapshots of an instrument apart.
            "last_update_id": stamp.astype(np.uint64),
            "bids_count": bids.count,
            "asks_count": asks.count,
            "best_bid_price": bids.price,
            "best_ask_price": asks.price,
            "best_bid_quantity": bids.quantity,
            "best_ask_quantity": asks.quantity,
            "bids": bids.levels,
            "asks": asks.levels,
        }
    )


class _Side:
    """One side of the book, at most `LEVELS` levels; the first blank level ends it. Arrays of shape (n,).

    Attributes:
        price, quantity: of the best level, times 10**8; 0 where there is none.
        count: levels.
        levels: them as JSON, `[["price","quantity"],...]`, best first.
    """

    def __init__(self, rows: Rows, side: str) -> None:
        self.price = rows.e8(f"{side}[0].price", blank="0")
        self.quantity = rows.e8(f"{side}[0].amount", blank="0")
        self.count = np.zeros(len(rows), dtype=np.uint64)
        rows.refuse((self.price > 0) & (self.quantity <= 0), f"{side}[0].amount", "zero_quantity: best level")
        present: Bools = np.ones(len(rows), dtype=np.bool_)
        levels = []
        for i in range(LEVELS):
            price, amount = f"{side}[{i}].price", f"{side}[{i}].amount"
            present = present & rows.chunk.filled(price)
            self.count += present
            level = pc.binary_join_element_wise(
                ',["' if i else '["',
                _number(rows, price, present),
                '","',
                _number(rows, amount, present),
                '"]',
                "",
            )
            levels.append(pc.if_else(pa.array(present), level, ""))
        texts = pc.binary_join_element_wise("[", *levels, "]", "")
        self.levels: Objects = np.asarray(texts.to_numpy(zero_copy_only=False), dtype=np.object_)


def _number(rows: Rows, name: str, present: Bools) -> pa.Array:
    """A column of positive numbers as texts without an exponent; where `present` does not hold, anything.

    The text goes into the table as it is, so it is checked, but not converted.
    """
    texts = rows.chunk.columns[name]
    plain = pc.match_substring_regex(texts, r"^[0-9]+(\.[0-9]+)?$").to_numpy(zero_copy_only=False)
    odd = np.flatnonzero(present & ~plain)
    if not len(odd):
        return texts
    values = texts.to_pylist()
    for row in odd:
        try:
            values[row] = _plain(values[row])
        except ValueError as e:
            rows.refuse([int(row)], name, str(e))
    return pa.array(values, type=pa.string())


def _plain(text: str) -> str:
    """A number without an exponent (Tardis writes 1e-7).

    Raises:
        ValueError: the reason for a quarantine row.
    """
    if not text:
        raise ValueError("missing_field: blank beside a price")
    number = one_decimal(text)
    if number < 0:
        raise ValueError(f"out_of_range: {text} is below 0")
    return f"{number:f}"


_TYPES: Final[dict[str, tuple[tuple[str, ...], Callable[[Chunk], Iterator[Item]]]]] = {
    "trades": (_TRADES, _trades),
    "book_snapshot_25": (_BOOK, _book_snapshot),
    "derivative_ticker": (_TICKER, _derivative_ticker),
    "liquidations": (_TRADES, _liquidations),
}


class TardisReader:
    """Reads Tardis CSV files; exchange and symbol are in the rows, so a file may hold several instruments."""

    data_source = "tardis"

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.options: dict[str, str] = {}

    def read(self) -> Iterator[Item]:
        """All items of all files, in order.

        Raises:
            BadFileError: neither name nor folders tell the data type, wrong columns, or damage.
        """
        before = 0
        for path in self.paths:
            columns, parse = _TYPES[_data_type(path)]
            for chunk in chunks(path, columns, header=True):
                yield from parse(chunk)
                yield Progress(before + chunk.bytes_done)
            before += path.stat().st_size


def _data_type(path: Path) -> str:
    """From `<exchange>_<type>_<date>_<symbol>.csv.gz`, or from a folder of the datasets API's layout."""
    found = [name for name in _TYPES if f"_{name}_" in path.name]
    found = found or [part for part in reversed(path.parts[:-1]) if part in _TYPES]
    if not found:
        raise BadFileError(
            str(path),
            f"the name must be <exchange>_<type>_<date>_<symbol>.csv.gz, type one of {', '.join(_TYPES)}",
        )
    return found[0]
