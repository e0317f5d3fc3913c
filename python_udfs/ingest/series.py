"""Recorded series of open interest, long/short ratio, funding, volatility index and liquidations.

One file is one series. Which one it is says its name together with its first record (`SERIES` below);
the same bytes in another place are the same series, except that two sources name their instrument nowhere
but in their folder (`okx-sol-swap-…`, `binance-btcusdt-…`).

What the files do not say themselves:

* OKX CSV: `ts` is UTC, `dt` the same moment at +08:00 (unused). `oi` equals `oi_value`, and both are USD:
  the open interest in coins is not given, so it is '0', which staging reads as not given.
* OKX polls: the stamp is the poll's, the event's is not given, so both our times are the poll's. A rate is
  the one predicted for `next_funding`. A poll that has no values or only zeros is refused, never loaded.
* Binance funding: percent per 8 hours, with 0 to 30 ms of jitter around the settlement. The stamp is kept,
  `funding_time` is the whole second.
* Deribit DVOL: a day's value is stamped with the day's start and known at its end; the lag is in
  `seeds/source_availability.csv`. `maturity_date`: the index looks 30 days ahead.
* Bybit: side Buy means that a long was liquidated, so the liquidation order sells.

Rates with further digits are rounded to eight decimals, half to even. A record of a JSON array is named by
its 1-based position in the array (the polls' arrays are one line of text), all else by its line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from python_udfs.errors import BadFileError
from python_udfs.ingest.binance_archive import long_share
from python_udfs.ingest.csvtable import Chunk, Ints, Rows, chunks, first_row, one_side
from python_udfs.ingest.decimals import ONE
from python_udfs.ingest.mapping import scaled_e8
from python_udfs.ingest.records import Item, Kind, Note, Progress, Reject

Columns = dict[str, npt.NDArray[Any] | str]
Record = dict[str, object]

SECOND: Final = 10**6
PERCENT: Final = Decimal("0.01")
# Long and short shares are published with four decimals; further off than this they are something else.
SHARE_TOLERANCE: Final = ONE // 1000
# Enough for the first record of any series.
HEAD_BYTES: Final = 1 << 16
RAW_CHARACTERS: Final = 500
_PAIR: Final = ("time", "value")


@dataclass(frozen=True, slots=True)
class Series:
    """One kind of file.

    Attributes:
        file: what its name looks like; a group `coin` or `symbol` names the instrument.
        first: any of these sets of field names is that of the file's first record.
        read: the file to text columns and, for records that are none, rejects.
        convert: text columns to wire columns (those of `records.COLUMNS` and the times).
        folder: what the folder's name looks like where only it names the instrument.
        symbol: the instrument's symbol, given `coin` or `symbol` in upper case; None: `convert` gives it.
        note: a finding for the load's summary.
    """

    data_source: str
    kind: Kind
    exchange: str
    market_type: str
    file: str
    first: tuple[tuple[str, ...], ...]
    read: Callable[[Path, Series], Iterator[Chunk | Reject]]
    convert: Callable[[Rows], Columns]
    folder: str | None = None
    symbol: str | None = None
    note: str | None = None


class SeriesReader:
    """Reads one series file. `data_source` is what the file was found to be."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            BadFileError: missing, empty, no series known here, or nothing names its instrument.
        """
        self.paths = [path]
        self._series = _identify(path)
        self._symbol = _symbol(path, self._series)
        self.data_source = self._series.data_source
        # File and folder names are no bytes of the file, and they decide these.
        self.options = {"kind": self._series.kind, "symbol": self._symbol or "per row"}

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Whether the file's name and first record are those of a series."""
        try:
            _identify(path)
        except BadFileError:
            return False
        return True

    def read(self) -> Iterator[Item]:
        """The rows and rejects, in file order.

        Raises:
            BadFileError: damaged or truncated (names the line).
        """
        path, series = self.paths[0], self._series
        for part in series.read(path, series):
            if isinstance(part, Reject):
                yield part
                continue
            rows = Rows(part, series.kind)
            columns: Columns = {
                "exchange": series.exchange,
                "market_type": series.market_type,
                "received_at": _zeros(rows),
                "data_source": series.data_source,
            }
            if self._symbol is not None:
                columns["symbol"] = self._symbol
            yield from rows.items({**columns, **series.convert(rows)})
        yield Progress(path.stat().st_size)
        if series.note is not None:
            yield Note(f"{series.data_source} {series.kind}", series.note)


# --- which series --------------------------------------------------------------------------------------


def _identify(path: Path) -> Series:
    found = _first_fields(path)
    named = [s for s in SERIES if re.fullmatch(s.file, path.name)]
    for series in named:
        if any(set(found) == set(first) for first in series.first):
            return series
    if named:
        expected = " or ".join(",".join(first) for series in named for first in series.first)
        reason = f"the first record has {','.join(found) or 'no fields'}; a file of this name has {expected}"
    else:
        reason = "no series of this name is known; load it through a mapping file"
    raise BadFileError(str(path), reason)


def _first_fields(path: Path) -> tuple[str, ...]:
    """The field names of the first record; () where it has none or cannot be read.

    Raises:
        BadFileError: missing or empty.
    """
    if path.suffix == ".csv":
        return tuple(cell.strip() for cell in first_row(path))
    try:
        with path.open("rb") as f:
            head = f.read(HEAD_BYTES).decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n")
    except OSError as e:
        raise BadFileError(str(path), e.strerror or str(e)) from e
    if not head:
        raise BadFileError(str(path), "the file is empty")
    if path.suffix == ".json":
        head = head.removeprefix("[").lstrip()
    try:
        first, _ = json.JSONDecoder().raw_decode(head)
    except (ValueError, RecursionError):
        return ()
    return tuple(_record(first) or ())


def _symbol(path: Path, series: Series) -> str | None:
    if series.symbol is None:
        return None
    if series.folder is None:
        name = re.fullmatch(series.file, path.name)
    else:
        name = re.match(series.folder, path.resolve().parent.name)
    if name is None:
        like = (series.folder or "").replace("([a-z0-9]+)", "<name>")
        reason = f"nothing in it names its instrument; put it into a folder whose name starts like {like}"
        raise BadFileError(str(path), reason)
    return series.symbol.format(name[1].upper())


# --- files to text columns -----------------------------------------------------------------------------


def _csv(path: Path, series: Series) -> Iterator[Chunk | Reject]:
    yield from chunks(path, series.first[0], header=True)


def _records(path: Path, series: Series) -> Iterator[Chunk | Reject]:
    """A JSON array of objects, or of [time, value] pairs."""
    kept: list[tuple[int, Record]] = []
    for number, element in enumerate(_array(path), start=1):
        record = _record(element)
        if record is None:
            what = f"a record with {', '.join(series.first[0])}"
            yield _reject(path, series, number, element, reason=f"bad_json: not {what}")
        else:
            kept.append((number, record))
    if kept:
        yield _chunk(path, list(series.first[0]), kept)


def _polls(path: Path, series: Series) -> Iterator[Chunk | Reject]:
    """A JSON array of polls, each with one or more objects of values by symbol, to one row a symbol."""
    fields = [name for name in series.first[-1] if name not in ("timestamp", "unix")]
    kept: list[tuple[int, Record]] = []
    for number, element in enumerate(_array(path), start=1):
        poll = element if isinstance(element, dict) else {}
        values = poll.get(fields[0])
        if not isinstance(values, dict) or not values:
            reason = f"missing_field: this poll has no values of {fields[0]!r}; it has {', '.join(poll)}"
            yield _reject(path, series, number, element, field=fields[0], reason=reason)
            continue
        for symbol in values:
            row: Record = {"timestamp": poll.get("timestamp"), "symbol": symbol}
            for field in fields:
                by_symbol = poll.get(field)
                row[field] = by_symbol.get(symbol) if isinstance(by_symbol, dict) else None
            kept.append((number, row))
    if kept:
        yield _chunk(path, ["timestamp", "symbol", *fields], kept)


def _liquidation_polls(path: Path, series: Series) -> Iterator[Chunk | Reject]:
    """One poll a line; most have no liquidation."""
    kept: list[tuple[int, Record]] = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            poll = _loads(line)
        except ValueError as e:
            yield _reject(path, series, number, line, reason=f"bad_json: {e}")
            continue
        events = poll["d"] or [] if isinstance(poll, dict) and "d" in poll else None
        if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
            yield _reject(
                path, series, number, poll, field="d", reason="missing_field: no list of liquidations"
            )
            continue
        kept += [(number, {"t": poll.get("t"), **event}) for event in events]
    if kept:
        yield _chunk(path, ["t", "updatedTime", "symbol", "side", "size", "price"], kept)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as e:
        raise BadFileError(str(path), f"not UTF-8 text: {e.reason} at byte {e.start}") from e
    except OSError as e:
        raise BadFileError(str(path), e.strerror or str(e)) from e


def _loads(text: str) -> Any:
    """JSON with every number as the text it was written in, so that no digit is lost."""
    try:
        return json.loads(text, parse_float=str, parse_int=str)
    except RecursionError as e:
        raise ValueError("nested too deeply") from e


def _array(path: Path) -> list[object]:
    try:
        content = _loads(_text(path))
    except json.JSONDecodeError as e:
        raise BadFileError(str(path), f"truncated or no JSON: {e.msg}", line=e.lineno) from e
    except ValueError as e:
        raise BadFileError(str(path), f"no JSON: {e}") from e
    if not isinstance(content, list):
        raise BadFileError(str(path), "a JSON array of records is expected")
    return content


def _record(element: object) -> Record | None:
    if isinstance(element, dict):
        return element
    if isinstance(element, list) and len(element) == len(_PAIR):
        return dict(zip(_PAIR, element, strict=True))
    return None


def _chunk(path: Path, names: list[str], records: list[tuple[int, Record]]) -> Chunk:
    columns = {
        name: pa.array([_cell(record.get(name)) for _, record in records], type=pa.string()) for name in names
    }
    return Chunk(str(path), columns, np.array([number for number, _ in records], dtype=np.int64), 0)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _reject(
    path: Path, series: Series, line: int, element: object, *, reason: str, field: str = ""
) -> Reject:
    return Reject(series.kind, str(path), line, field, reason, _cell(element)[:RAW_CHARACTERS])


# --- text columns to wire columns ----------------------------------------------------------------------


def _zeros(rows: Rows) -> Ints:
    return np.zeros(len(rows), dtype=np.int64)


def _rate(rows: Rows, name: str, scale: Decimal | None = None) -> Ints:
    rate = rows.lookup(name, lambda text: scaled_e8(text, scale, rounds=True), 0)
    return np.asarray(rate, dtype=np.int64)


def _not_given(rows: Rows) -> Columns:
    # 0 stands for "not given" in each of them.
    return {name: _zeros(rows) for name in ("next_funding_time", "mark_price", "index_price")}


def _funding(rows: Rows, time: str, rate: str, scale: Decimal | None = None) -> Columns:
    """Realised rates: the stamp is the settlement, give or take some ms."""
    stamp = rows.time(time, unit="ms")
    return {
        "timestamp": stamp,
        "funding_rate": _rate(rows, rate, scale),
        "funding_time": (stamp + SECOND // 2) // SECOND * SECOND,
        **_not_given(rows),
    }


def _okx_funding(rows: Rows) -> Columns:
    return _funding(rows, "ts", "fundingRate")


def _binance_funding(rows: Rows) -> Columns:
    return _funding(rows, "time", "value", PERCENT)


def _above_zero(rows: Rows, name: str) -> npt.NDArray[np.object_]:
    """A wide column of open interest. Feeds that broke have published 0 for weeks."""
    values = rows.wide(name)
    stuck = np.array([Decimal(value) <= 0 for value in values], dtype=np.bool_)
    symbols = rows.chunk.columns.get("symbol")

    def reason(row: int) -> str:
        of = "" if symbols is None else f" of {symbols[row]}"
        return f"stuck_zero: the open interest{of} is {rows.chunk.columns[name][row]}, which is no value"

    rows.refuse(stuck, name, reason)
    return values


def _interest(rows: Rows, stamp: Ints, interest: npt.NDArray[np.object_] | str, value: str) -> Columns:
    return {
        "timestamp": stamp,
        "open_interest": interest,
        "open_interest_value": _above_zero(rows, value),
        "count": np.zeros(len(rows), dtype=np.uint64),
    }


def _okx_interest(rows: Rows) -> Columns:
    columns = _interest(rows, rows.time("ts", unit="ms"), "0", "oi_value")
    differs = np.asarray(rows.wide("oi") != rows.wide("oi_value"), dtype=np.bool_)
    rows.refuse(differs, "oi", "unit_unknown: oi and oi_value differ; in this series both are USD")
    return columns


def _binance_interest(rows: Rows) -> Columns:
    stamp = rows.time("time", unit="ms")
    return _interest(rows, stamp, _above_zero(rows, "openInterest"), "openInterestValue")


def _ratio(rows: Rows, stamp: Ints, name: str, period: str) -> Columns:
    """Long / short accounts to the two shares."""
    long = rows.lookup(name, long_share, 0).astype(np.int64)
    return {
        "timestamp": stamp,
        "long_account_ratio": long,
        "short_account_ratio": ONE - long,
        "period": period,
    }


def _okx_ratio(rows: Rows) -> Columns:
    return _ratio(rows, rows.time("ts", unit="ms"), "ratio", "1h")


def _binance_ratio(rows: Rows) -> Columns:
    """The published shares: more exact than their published ratio."""
    stamp = rows.time("time", unit="ms")
    long, short = rows.e8("longAccount"), rows.e8("shortAccount")
    wrong = (np.minimum(long, short) < 0) | (np.abs(long + short - ONE) > SHARE_TOLERANCE)
    rows.refuse(wrong, "longAccount", "out_of_range: longAccount and shortAccount are no shares of 1")
    return {
        "timestamp": stamp,
        "long_account_ratio": long,
        "short_account_ratio": short,
        "period": "1h",
    }


def _volatility(coin: str, rows: Rows) -> Columns:
    stamp = rows.time("time", unit="ms")
    return {
        "timestamp": stamp,
        "index_value": rows.positive("value"),
        "underlying_asset": coin,
        "maturity_date": stamp.astype("datetime64[us]").astype("datetime64[D]") + np.timedelta64(30, "D"),
    }


def _poll(rows: Rows) -> Columns:
    stamp = rows.time("timestamp")
    return {
        "timestamp": stamp,
        "received_at": stamp,
        "symbol": rows.lookup("symbol", _okx_swap, ""),
    }


def _okx_swap(text: str) -> str:
    """BTCUSDT, as the collector calls it, to BTC-USDT-SWAP.

    Raises:
        ValueError: `unknown_symbol: …`.
    """
    if (name := re.fullmatch("([A-Z0-9]+)USDT", text)) is None:
        raise ValueError(f"unknown_symbol: {text!r} is no USDT swap")
    return f"{name[1]}-USDT-SWAP"


def _poll_ratio(rows: Rows) -> Columns:
    columns = _poll(rows)
    stamp = np.asarray(columns["timestamp"], dtype=np.int64)
    return {**columns, **_ratio(rows, stamp, "global", "poll")}


def _poll_funding(rows: Rows) -> Columns:
    return {
        **_poll(rows),
        "funding_rate": _rate(rows, "rates"),
        "funding_time": rows.time("next_funding", unit="ms"),
        **_not_given(rows),
    }


def _poll_interest(rows: Rows) -> Columns:
    """The unit of `oi` is not stated anywhere, so only the value is taken."""
    columns = _poll(rows)
    stamp = np.asarray(columns["timestamp"], dtype=np.int64)
    return {**columns, **_interest(rows, stamp, "0", "oi_value")}


def _liquidations(rows: Rows) -> Columns:
    stamp = rows.time("updatedTime", unit="ms")
    return {
        "timestamp": stamp,
        "received_at": rows.time("t", unit="ms"),
        "symbol": rows.text("symbol"),
        "side": rows.lookup("side", _closing_side, "buy"),
        "price": rows.positive("price"),
        "quantity": rows.positive("size", "zero_quantity"),
        "liquidation_time": stamp,
    }


def _closing_side(text: str) -> str:
    """Bybit's side is that of the position: one that was bought is closed by selling."""
    return {"buy": "sell", "sell": "buy"}[one_side(text)]


_FOLDER_OKX: Final = "okx-([a-z0-9]+)-swap"
_FOLDER_BINANCE: Final = "binance-([a-z0-9]+)-"
_ROUNDED: Final = "rates are rounded to 8 decimals, half to even"
_NO_COINS: Final = "USD value only: the open interest in coins is not given, so it is 0"
_FALLBACK: Final = "the collector may have asked Gate.io instead, without saying so; all polls count as OKX"

SERIES: Final = (
    Series(
        data_source="okx_rest",
        kind="funding_rates",
        exchange="okx",
        market_type="linear",
        file=r"funding_rate.*\.csv",
        first=(("ts", "fundingRate", "dt"),),
        read=_csv,
        convert=_okx_funding,
        folder=_FOLDER_OKX,
        symbol="{}-USDT-SWAP",
        note=_ROUNDED,
    ),
    Series(
        data_source="okx_rest",
        kind="lsr_all_accounts",
        exchange="okx",
        market_type="linear",
        file=r"long_short_ratio.*\.csv",
        first=(("ts", "ratio", "dt"),),
        read=_csv,
        convert=_okx_ratio,
        folder=_FOLDER_OKX,
        symbol="{}-USDT-SWAP",
    ),
    Series(
        data_source="okx_rest",
        kind="open_interests",
        exchange="okx",
        market_type="linear",
        file=r"open_interest.*\.csv",
        first=(("ts", "oi", "oi_value", "dt"),),
        read=_csv,
        convert=_okx_interest,
        folder=_FOLDER_OKX,
        symbol="{}-USDT-SWAP",
        note=_NO_COINS,
    ),
    Series(
        data_source="binance_rest",
        kind="lsr_all_accounts",
        exchange="binance",
        market_type="linear",
        file=r"long_short_ratio.*\.json",
        first=(("time", "ratio", "longAccount", "shortAccount"),),
        read=_records,
        convert=_binance_ratio,
        folder=_FOLDER_BINANCE,
        symbol="{}",
    ),
    Series(
        data_source="binance_rest",
        kind="open_interests",
        exchange="binance",
        market_type="linear",
        file=r"open_interest.*\.json",
        first=(("time", "openInterest", "openInterestValue"),),
        read=_records,
        convert=_binance_interest,
        folder=_FOLDER_BINANCE,
        symbol="{}",
    ),
    Series(
        data_source="binance_rest",
        kind="funding_rates",
        exchange="binance",
        market_type="linear",
        file=r"funding_rate_([a-z0-9]+)\.json",
        first=(_PAIR,),
        read=_records,
        convert=_binance_funding,
        symbol="{}USDT",
        note=f"percent divided by 100; {_ROUNDED}",
    ),
    *(
        Series(
            data_source="deribit_rest",
            kind="volatility_indices",
            exchange="deribit",
            market_type="option",
            file=rf"dvol_({coin})\.json",
            first=(_PAIR,),
            read=_records,
            convert=partial(_volatility, coin.upper()),
            symbol="{}-DVOL",
        )
        for coin in ("btc", "eth")
    ),
    # The polls' first records have another shape and no values; `first` ends with the shape that has them.
    Series(
        data_source="okx_poll",
        kind="lsr_all_accounts",
        exchange="okx",
        market_type="linear",
        file=r"long_short_ratio.*\.json",
        first=(("timestamp", "unix", "ratios"), ("timestamp", "unix", "global")),
        read=_polls,
        convert=_poll_ratio,
        note=_FALLBACK,
    ),
    Series(
        data_source="okx_poll",
        kind="funding_rates",
        exchange="okx",
        market_type="linear",
        file=r"funding_rates.*\.json",
        first=(("timestamp", "unix", "rates"), ("timestamp", "unix", "rates", "next_funding")),
        read=_polls,
        convert=_poll_funding,
        note=f"{_FALLBACK}; {_ROUNDED}",
    ),
    Series(
        data_source="okx_poll",
        kind="open_interests",
        exchange="okx",
        market_type="linear",
        file=r"open_interest.*\.json",
        first=(("timestamp", "unix", "oi"), ("timestamp", "unix", "oi", "oi_value")),
        read=_polls,
        convert=_poll_interest,
        note=f"{_FALLBACK}; {_NO_COINS}",
    ),
    Series(
        data_source="bybit_ws",
        kind="liquidations",
        exchange="bybit",
        market_type="linear",
        file=r"liquidations.*\.jsonl",
        first=(("t", "d"),),
        read=_liquidation_polls,
        convert=_liquidations,
    ),
)
