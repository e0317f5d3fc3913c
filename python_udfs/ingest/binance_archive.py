"""Files of Binance's public archive (data.binance.vision): CSV in zip, one instrument, kind and day each.

What the file is says its name, `<SYMBOL>-<kind>-<date>.zip` (or .csv, .csv.gz); which columns it has says
its header line, or, where it has none, the published column list of that kind and market. Stamps are ms or
µs (spot since 2025), told by magnitude.

Two things about `metrics` files that their column names hide:

* A row stamped 00:00 holds what the live API publishes under 00:05 (the stamp opens a five-minute
  interval, the values are of its end). Rows carry the end of the interval: the stamp plus five minutes.
* For COIN-M, `sum_open_interest_value` is in the base coin, not in the quote currency that our column
  holds, so it counts as not given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from python_udfs.errors import BadFileError
from python_udfs.ingest.csvtable import Bools, Chunk, Ints, Rows, chunks, first_row, one_decimal, one_wide
from python_udfs.ingest.decimals import ONE
from python_udfs.ingest.records import (
    MARKET_TYPES,
    NO_TIME,
    Batch,
    Item,
    Kind,
    Progress,
    Watermark,
)

SECOND: Final = 10**6
METRICS_INTERVAL: Final = 300 * SECOND
# BVOL is a 30-day constant-maturity index.
BVOL_DAYS: Final = 30

_NAME = re.compile(r"(?P<symbol>.+)-(?P<kind>[A-Za-z]+)-\d{4}-\d{2}(-\d{2})?\.(zip|csv|csv\.gz)")


@dataclass(frozen=True, slots=True)
class Source:
    """What every row of one file has in common."""

    market_type: str
    symbol: str
    data_source: str

    def rows(self, rows: Rows, timestamp: Ints, **columns: npt.NDArray[Any] | str) -> Iterator[Item]:
        """The rejects and batches of converted rows, shape (n,) each."""
        return rows.items(
            {
                "exchange": "binance",
                "market_type": self.market_type,
                "symbol": self.symbol,
                "timestamp": timestamp,
                "received_at": np.full(len(rows), NO_TIME, dtype=np.int64),
                "data_source": self.data_source,
                **columns,
            }
        )


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of archive file.

    Attributes:
        used: the columns that are read; a header must have them.
        layouts: per market type, the column lists that a file without a header can have.
        parse: one chunk into items.
        feed: the kind that, up to the file's last row, is complete; None: the file says no such thing.
    """

    used: tuple[str, ...]
    layouts: dict[str, tuple[tuple[str, ...], ...]]
    parse: Callable[[Chunk, Source], Iterator[Item]]
    feed: Kind | None = None


def _columns(names: str) -> tuple[str, ...]:
    return tuple(names.split(","))


def _trades(chunk: Chunk, source: Source) -> Iterator[Item]:
    return _taker_trades(chunk, source, trade_id="id", quantity="qty", time="time")


def _agg_trades(chunk: Chunk, source: Source) -> Iterator[Item]:
    # The prefix keeps the ids apart from those of the single trades that an aggregate stands for.
    return _taker_trades(
        chunk, source, trade_id="agg_trade_id", quantity="quantity", time="transact_time", prefix="agg:"
    )


def _taker_trades(
    chunk: Chunk, source: Source, *, trade_id: str, quantity: str, time: str, prefix: str = ""
) -> Iterator[Item]:
    rows = Rows(chunk, "trades")
    stamp = rows.time(time)
    rows.uint(trade_id)
    ids = chunk.columns[trade_id]
    buyer_is_maker = rows.bools("is_buyer_maker")
    return source.rows(
        rows,
        stamp,
        trade_id=_objects(pc.binary_join_element_wise(prefix, ids, "") if prefix else ids),
        price=rows.positive("price"),
        quantity=rows.positive(quantity, "zero_quantity"),
        side=np.array(["buy", "sell"], dtype=np.object_)[buyer_is_maker],
        is_maker=buyer_is_maker,
        trade_time=stamp,
    )


def _book_ticker(chunk: Chunk, source: Source) -> Iterator[Item]:
    rows = Rows(chunk, "orderbooks")
    update_id = rows.uint("update_id")
    # The event time is when the venue sent it, a few ms after the transaction: the later one cannot leak.
    stamp = rows.time("event_time")
    bid, bid_quantity = rows.e8("best_bid_price"), rows.e8("best_bid_qty")
    ask, ask_quantity = rows.e8("best_ask_price"), rows.e8("best_ask_qty")
    for name, price, quantity in (("bid", bid, bid_quantity), ("ask", ask, ask_quantity)):
        rows.refuse(price < 0, f"best_{name}_price", "out_of_range: a price below 0")
        # A price of 0 with a quantity of 0 says that the side is empty.
        rows.refuse(
            (price > 0) & (quantity <= 0), f"best_{name}_qty", "zero_quantity: a price without quantity"
        )
    rows.refuse((bid >= ask) & (ask > 0), "best_bid_price", "crossed_book: bid is not below ask")
    return source.rows(
        rows,
        stamp,
        last_update_id=update_id,
        bids_count=(bid > 0).astype(np.uint64),
        asks_count=(ask > 0).astype(np.uint64),
        best_bid_price=bid,
        best_ask_price=ask,
        best_bid_quantity=bid_quantity,
        best_ask_quantity=ask_quantity,
        bids=_one_level(chunk, "bid", bid > 0),
        asks=_one_level(chunk, "ask", ask > 0),
    )


def _one_level(chunk: Chunk, side: str, present: Bools) -> npt.NDArray[np.object_]:
    """`[["price","quantity"]]` as published, `[]` where the side is empty, shape (n,)."""
    price, quantity = chunk.columns[f"best_{side}_price"], chunk.columns[f"best_{side}_qty"]
    level = pc.binary_join_element_wise('[["', price, '","', quantity, '"]]', "")
    return _objects(pc.if_else(pa.array(present), level, "[]"))


def _book_depth(chunk: Chunk, source: Source) -> Iterator[Item]:
    rows = Rows(chunk, "book_depths")
    return source.rows(
        rows,
        rows.time("timestamp"),
        percentage=rows.e8("percentage"),
        depth=rows.wide("depth"),
        notional=rows.wide("notional"),
    )


def _metrics(chunk: Chunk, source: Source) -> Iterator[Item]:
    rows = Rows(chunk, "open_interests")
    stamp = rows.time("create_time") + METRICS_INTERVAL
    interest = rows.lookup("sum_open_interest", _open_interest, "0")
    if source.market_type == "inverse":
        value = np.full(len(rows), "0", dtype=np.object_)
    else:
        value = rows.wide("sum_open_interest_value")
    yield from source.rows(
        rows,
        stamp,
        open_interest=interest,
        open_interest_value=value,
        count=np.zeros(len(rows), dtype=np.uint64),
    )
    kinds: tuple[tuple[Kind, str, str], ...] = (
        ("lsr_top_positions", "sum_toptrader_long_short_ratio", "position_ratio"),
        ("lsr_all_accounts", "count_long_short_ratio", "account_ratio"),
    )
    for kind, column, name in kinds:
        rows = Rows(chunk, kind)
        stamp = rows.time("create_time") + METRICS_INTERVAL
        long = rows.lookup(column, long_share, 0).astype(np.int64)
        yield from source.rows(
            rows, stamp, **{f"long_{name}": long, f"short_{name}": ONE - long}, period="5m"
        )


def _open_interest(text: str) -> str:
    """Gaps in the feed have been published as 0, which must not be read as a value."""
    if one_decimal(text) <= 0:
        raise ValueError(f"out_of_range: {text} is no open interest")
    return one_wide(text)


def long_share(text: str) -> int:
    """A long/short ratio r to the long share r / (1 + r) times 10**8, rounded half to even.

    Raises:
        ValueError: `bad_number: …`, or `out_of_range: …` for a ratio that is not above 0.
    """
    ratio = one_decimal(text)
    if ratio <= 0:
        raise ValueError(f"out_of_range: {text} is no long/short ratio")
    return int((Decimal(ONE) * ratio / (1 + ratio)).to_integral_value())


def _funding_rate(chunk: Chunk, source: Source) -> Iterator[Item]:
    rows = Rows(chunk, "funding_rates")
    stamp = rows.time("calc_time")
    # Settlements carry 0 to 20 ms of jitter; the settlement itself is on the second.
    funding_time = (stamp + SECOND // 2) // SECOND * SECOND
    hours = rows.uint("funding_interval_hours").astype(np.int64)
    rows.refuse((hours < 1) | (hours > 24), "funding_interval_hours", "out_of_range: not 1 to 24 hours")
    zeros = np.zeros(len(rows), dtype=np.int64)
    return source.rows(
        rows,
        stamp,
        funding_rate=rows.e8("last_funding_rate"),
        funding_time=funding_time,
        next_funding_time=funding_time + hours * 3600 * SECOND,
        mark_price=zeros,
        index_price=zeros,
    )


def _liquidations(chunk: Chunk, source: Source) -> Iterator[Item]:
    rows = Rows(chunk, "liquidations")
    stamp = rows.time("time")
    return source.rows(
        rows,
        stamp,
        side=rows.sides("side"),
        price=rows.positive("average_price"),
        quantity=rows.positive("accumulated_fill_quantity", "zero_quantity"),
        liquidation_time=stamp,
    )


def _bvol(chunk: Chunk, source: Source) -> Iterator[Item]:
    rows = Rows(chunk, "volatility_indices")
    stamp = rows.time("calc_time")
    return source.rows(
        rows,
        stamp,
        index_value=rows.positive("index_value"),
        # Published as BTCBVOL.
        underlying_asset=rows.lookup("base_asset", lambda text: text.removesuffix("BVOL"), ""),
        maturity_date=stamp.astype("datetime64[us]").astype("datetime64[D]") + BVOL_DAYS,
    )


def _objects(texts: pa.Array) -> npt.NDArray[np.object_]:
    return np.asarray(texts.to_numpy(zero_copy_only=False), dtype=np.object_)


_AGG: Final = _columns(
    "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker"
)
_TICKER: Final = _columns(
    "update_id,best_bid_price,best_bid_qty,best_ask_price,best_ask_qty,transaction_time,event_time"
)
_METRICS: Final = _columns(
    "create_time,symbol,sum_open_interest,sum_open_interest_value,count_toptrader_long_short_ratio,"
    "sum_toptrader_long_short_ratio,count_long_short_ratio,sum_taker_long_short_vol_ratio"
)
_DEPTH: Final = _columns("timestamp,percentage,depth,notional")
_FUNDING: Final = _columns("calc_time,funding_interval_hours,last_funding_rate")
_LIQUIDATION: Final = _columns(
    "time,side,order_type,time_in_force,original_quantity,price,average_price,order_status,"
    "last_fill_quantity,accumulated_fill_quantity"
)
_BVOL: Final = _columns("calc_time,symbol,base_asset,quote_asset,index_value")


def _futures(*layouts: tuple[str, ...]) -> dict[str, tuple[tuple[str, ...], ...]]:
    return {"linear": layouts, "inverse": layouts}


FORMATS: Final[dict[str, Format]] = {
    "trades": Format(
        _columns("id,price,qty,time,is_buyer_maker"),
        {
            "spot": (_columns("id,price,qty,quote_qty,time,is_buyer_maker,is_best_match"),),
            "linear": (_columns("id,price,qty,quote_qty,time,is_buyer_maker"),),
            "inverse": (_columns("id,price,qty,base_qty,time,is_buyer_maker"),),
        },
        _trades,
        "trades",
    ),
    # No feed: a second copy of the trades says nothing about how complete those that were loaded are.
    "aggTrades": Format(
        _columns("agg_trade_id,price,quantity,transact_time,is_buyer_maker"),
        {"spot": ((*_AGG, "is_best_match"),), **_futures(_AGG)},
        _agg_trades,
    ),
    "bookTicker": Format(
        tuple(name for name in _TICKER if name != "transaction_time"),
        _futures(_TICKER),
        _book_ticker,
        "orderbooks",
    ),
    "bookDepth": Format(_DEPTH, _futures(_DEPTH), _book_depth),
    "metrics": Format(
        _columns(
            "create_time,symbol,sum_open_interest,sum_open_interest_value,"
            "sum_toptrader_long_short_ratio,count_long_short_ratio"
        ),
        _futures(_METRICS),
        _metrics,
    ),
    "fundingRate": Format(_FUNDING, _futures(_FUNDING), _funding_rate),
    "liquidationSnapshot": Format(
        _columns("time,side,average_price,accumulated_fill_quantity"),
        _futures(_LIQUIDATION, ("symbol", *_LIQUIDATION)),
        _liquidations,
    ),
    "BVOLIndex": Format(_columns("calc_time,symbol,base_asset,index_value"), {"option": (_BVOL,)}, _bvol),
}


class BinanceArchiveReader:
    """Reads archive files of one market. `market_type`: spot, linear (um), inverse (cm) or option (BVOL)."""

    data_source = "binance_archive"

    def __init__(self, paths: list[Path], *, market_type: str) -> None:
        if market_type not in MARKET_TYPES:
            raise ValueError(f"market_type is one of {', '.join(MARKET_TYPES)}, not {market_type!r}")
        self.paths = paths
        self.options = {"market_type": market_type}

    def read(self) -> Iterator[Item]:
        """All items of all files, in order; after a file with rows of trades or books, its watermark.

        Raises:
            BadFileError: a name that does not tell symbol and kind, a kind this market does not have, wrong
                columns, damage, or a `symbol` column that contradicts the name.
        """
        before = 0
        for path in self.paths:
            yield from self._read_file(path, before)
            before += path.stat().st_size

    def _read_file(self, path: Path, before: int) -> Iterator[Item]:
        form, source = self._identify(path)
        last = NO_TIME
        for chunk in _file_chunks(path, form, source):
            for item in form.parse(chunk, source):
                if isinstance(item, Batch) and len(item):
                    last = max(last, int(item.columns["timestamp"].max()))
                yield item
            yield Progress(before + chunk.bytes_done)
        # Exclusive: whether further rows share the last stamp is not known.
        if form.feed is not None and last != NO_TIME:
            yield Watermark(form.feed, "binance", source.market_type, source.symbol, last)

    def _identify(self, path: Path) -> tuple[Format, Source]:
        name = _NAME.fullmatch(path.name)
        if name is None or name["kind"] not in FORMATS:
            raise BadFileError(
                str(path),
                f"the name must be <SYMBOL>-<kind>-<date>.zip, with one of the kinds {', '.join(FORMATS)}",
            )
        form = FORMATS[name["kind"]]
        market = self.options["market_type"]
        if market not in form.layouts:
            raise BadFileError(
                str(path),
                f"{name['kind']} is published for {', '.join(form.layouts)}, not for {market}: "
                "check the market type",
            )
        source = self.data_source + ("_aggtrades" if name["kind"] == "aggTrades" else "")
        return form, Source(market, name["symbol"], source)


def _file_chunks(path: Path, form: Format, source: Source) -> Iterator[Chunk]:
    """The file's chunks, by its header or, without one, by the layout with as many columns."""
    cells = [cell.strip() for cell in first_row(path)]
    if set(cells) & set(form.used):
        parts = chunks(path, form.used, header=True)
    else:
        layouts = form.layouts[source.market_type]
        layout = next((names for names in layouts if len(names) == len(cells)), None)
        if layout is None:
            expected = " or ".join(",".join(names) for names in layouts)
            raise BadFileError(
                str(path),
                f"{len(cells)} columns; {source.market_type} files have {expected}: check the market type",
                line=1,
            )
        parts = chunks(path, layout, header=False)
    for chunk in parts:
        if "symbol" in chunk.columns:
            other = np.flatnonzero(pc.not_equal(chunk.columns["symbol"], source.symbol).to_numpy(False))
            if len(other):
                row = int(other[0])
                found = chunk.columns["symbol"][row].as_py()
                raise BadFileError(
                    chunk.file,
                    f"{found!r} in a file named after {source.symbol}",
                    line=int(chunk.lines[row]),
                    field="symbol",
                )
        yield chunk
