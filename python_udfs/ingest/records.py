"""What a reader hands to the loader: columns, rejected lines and watermarks.

A reader is a generator over `Item`s. It parses and normalises; it never talks to the database, never
computes a feature, and never guesses: a line it cannot read becomes a `Reject` with the reason, a file it
cannot read at all raises `BadFileError` (then nothing of the load is kept).

Wire types of `Batch.columns` (numpy arrays of equal length, at most about 200,000 rows a batch):

* times: int64, microseconds since the epoch, UTC; `NO_TIME` (0) where the column allows none
* decimals of scale 8 (`E8_COLUMNS`): int64, the value times 10**8, exact (see `decimals.to_e8`)
* wide decimals (`WIDE_COLUMNS`): object array of plain decimal strings
* strings: object array of str; ids: see the table; booleans and counts: uint8 / int64
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

Kind = Literal[
    "trades",
    "orderbooks",
    "funding_rates",
    "open_interests",
    "lsr_all_accounts",
    "lsr_top_positions",
    "liquidations",
    "volatility_indices",
    "tickers",
    "book_depths",
]
Column = Literal["time", "time?", "e8", "wide", "string", "uint64", "bool", "date"]

NO_TIME: Final = 0
BATCH_ROWS: Final = 200_000

INSTRUMENT: Final[dict[str, Column]] = {"exchange": "string", "market_type": "string", "symbol": "string"}

# Per kind: the columns a batch must have besides the instrument, `timestamp`, `received_at`, `data_source`.
COLUMNS: Final[dict[Kind, dict[str, Column]]] = {
    "trades": {
        "trade_id": "string",
        "price": "e8",
        "quantity": "e8",
        "side": "string",  # the taker's: 'buy' or 'sell'
        "is_maker": "bool",  # the buyer was the maker (Binance `m`)
        "trade_time": "time",
    },
    "orderbooks": {
        "last_update_id": "uint64",
        "bids_count": "uint64",
        "asks_count": "uint64",
        "best_bid_price": "e8",
        "best_ask_price": "e8",
        "best_bid_quantity": "e8",
        "best_ask_quantity": "e8",
        "bids": "string",  # JSON [["price","quantity"],...], best first
        "asks": "string",
    },
    "funding_rates": {
        "funding_rate": "e8",  # fraction per funding period, never percent
        "funding_time": "time",  # the settlement this rate is (or was) for
        "next_funding_time": "time?",
        "mark_price": "e8",
        "index_price": "e8",
    },
    "open_interests": {"open_interest": "wide", "open_interest_value": "wide", "count": "uint64"},
    "lsr_all_accounts": {"long_account_ratio": "e8", "short_account_ratio": "e8", "period": "string"},
    "lsr_top_positions": {"long_position_ratio": "e8", "short_position_ratio": "e8", "period": "string"},
    "liquidations": {
        "side": "string",  # of the liquidation ORDER: 'sell' closes a long
        "price": "e8",
        "quantity": "e8",
        "liquidation_time": "time",
    },
    "volatility_indices": {"index_value": "e8", "underlying_asset": "string", "maturity_date": "date"},
    "tickers": {
        "last_price": "e8",
        "volume_24h": "wide",
        "price_change_24h": "e8",
        "high_24h": "e8",
        "low_24h": "e8",
    },
    "book_depths": {"percentage": "e8", "depth": "wide", "notional": "wide"},
}

# What makes two rows the same event. Loading anti-joins on it; `data_source` is in it only where two
# sources legitimately report different things at one instant.
NATURAL_KEY: Final[dict[Kind, tuple[str, ...]]] = {
    "trades": ("trade_id",),
    "orderbooks": ("timestamp", "last_update_id", "data_source"),
    "funding_rates": ("timestamp", "funding_time"),
    "open_interests": ("timestamp",),
    "lsr_all_accounts": ("timestamp", "period"),
    "lsr_top_positions": ("timestamp", "period"),
    "liquidations": ("timestamp", "side", "price", "quantity"),
    "volatility_indices": ("timestamp", "maturity_date"),
    "tickers": ("timestamp",),
    "book_depths": ("timestamp", "percentage"),
}

MARKET_TYPES: Final = ("spot", "linear", "inverse", "option")


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one kind, by column (wire types above). Rows need not be sorted.

    `file` and `first_line`/`lines` let a row that the loader refuses (unknown symbol, value out of range)
    be named: `lines[i]` is the 1-based line of row i in `file`.
    """

    kind: Kind
    columns: dict[str, npt.NDArray[np.generic]]
    file: str
    lines: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lines)


@dataclass(frozen=True, slots=True)
class Reject:
    """One input line (or event) that is not loaded, and why. Goes to the quarantine table.

    `reason` starts with a stable code: `bad_json: …`, `missing_field: …`, `bad_number: …`, `not_a_trade: …`,
    `sequence_gap: …`, `crossed_book: …`, `zero_quantity: …`, `unknown_symbol: …`, `out_of_range: …`.
    """

    kind: Kind
    file: str
    line: int
    field: str
    reason: str
    raw: str = ""


@dataclass(frozen=True, slots=True)
class Watermark:
    """The feed of this instrument's `kind` is complete up to `timestamp` (µs), exclusive."""

    kind: Kind
    exchange: str
    market_type: str
    symbol: str
    timestamp: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes of input consumed so far, for the progress bar (of `total`, over all files of the load)."""

    done: int


@dataclass(frozen=True, slots=True)
class Note:
    """A finding worth telling at the end, e.g. 'replayed best equals bookTicker at 1,072 of 1,072 ids'."""

    name: str
    value: str


Item = Batch | Reject | Watermark | Progress | Note


class Reader(Protocol):
    """Reads the files of one load, in the order given, into items.

    Attributes:
        data_source: names the row of `seeds/source_availability.csv` that gives `known_at`.
        options: what besides the files' bytes decides the result (part of the load's identity).
    """

    data_source: str
    paths: list[Path]
    options: dict[str, str]

    def read(self) -> Iterator[Item]: ...


@dataclass(slots=True)
class LoadResult:
    """What a load did. `rejected` counts quarantined lines; `duplicates` rows that were there already."""

    load_id: str
    files: list[str]
    data_source: str
    rows: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    skipped: bool = False
    seconds: float = 0.0
