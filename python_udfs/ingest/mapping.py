"""Any CSV or Parquet file through a mapping file: YAML that says which column is what, and in which unit.

`mappings/example_trades.yml` shows every key. The rules:

* `columns` names, for each target column of the kind (`records.COLUMNS`, with `timestamp` and
  `received_at`), its source: `column:` (a name, or the 0-based position) or `value:` (a constant).
* Exact: text and decimals are taken digit by digit, and a digit past the eighth decimal refuses the row
  unless the mapping says `round: true`. A binary float has no exact decimals, so its shortest text is
  taken and rounded to eight (half to even). Wide columns are always rounded so (see `csvtable.one_wide`).
* What may be left out: `received_at` and other optional times (not given); of trades `trade_time` (the
  timestamp) and `is_maker` (side is sell); of order books `bids` and `asks` (one level from the best), or
  instead the best (the first level), and the counts; of ratios the short share (1 - long), and
  the long one where `ratio` (long / short) is given. Nothing else is derived.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from python_udfs.errors import BadFileError
from python_udfs.ingest.binance_archive import long_share
from python_udfs.ingest.csvtable import (
    TICKS,
    Chunk,
    Rows,
    Unit,
    chunks,
    first_row,
    one_bool,
    one_decimal,
    one_e8,
    one_side,
    one_time,
    one_wide,
)
from python_udfs.ingest.decimals import LIMIT, ONE, SCALE, one_to_e8
from python_udfs.ingest.records import (
    COLUMNS,
    INSTRUMENT,
    MARKET_TYPES,
    NO_TIME,
    Batch,
    Column,
    Item,
    Kind,
    Progress,
    Reject,
    Watermark,
)

Values = npt.NDArray[Any]

PARQUET_ROWS: Final = 1 << 16
_EXACT: Final = Context(prec=100, rounding=ROUND_HALF_EVEN)
_EIGHT: Final = Decimal(1).scaleb(-SCALE)
_SIDES: Final = (("bids", "best_bid", -1), ("asks", "best_ask", 1))
_TIMES: Final = ("time", "time?", "date")
_CONSTANT: Final = "value"


# --- the mapping file ----------------------------------------------------------------------------------


class Source(BaseModel):
    """Where one target column comes from: a column of the file or a constant."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str | None = Field(None, description="name, or 0-based position, in the file")
    value: str | None = Field(None, description="the same for every row")
    unit: Literal["s", "ms", "us", "ns", "iso"] | None = Field(
        None, description="of a time; left out: a timestamp type, ISO 8601, or told by its magnitude"
    )
    scale: Decimal | None = Field(None, description="multiply by it: 0.01 turns percent into a fraction")
    round: bool = Field(False, description="round to 8 decimals instead of refusing further digits")
    values: dict[str, str] | None = Field(None, description="what each text in the file stands for")

    @model_validator(mode="after")
    def _one_of(self) -> Source:
        if (self.column is None) == (self.value is None):
            raise ValueError("give either `column` or `value`")
        return self

    def meaning(self, text: str) -> str:
        """What a text of the file stands for.

        Raises:
            ValueError: `unmapped_value: …`.
        """
        if self.values is None:
            return text
        try:
            return self.values[text]
        except KeyError as e:
            raise ValueError(f"unmapped_value: {text!r} is none of {', '.join(self.values)}") from e


def _plain(given: object) -> object:
    return {"value": given} if isinstance(given, str) else given


Constant = Annotated[Source, BeforeValidator(_plain)]


class Mapping(BaseModel):
    """A mapping file. `exchange`, `market_type` and `symbol` may be given as a plain text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    exchange: Constant
    market_type: Constant
    symbol: Constant
    header: bool = Field(True, description="whether the first line of a CSV file names the columns")
    columns: dict[str, Source]

    def sources(self) -> dict[str, tuple[Column, Source]]:
        """Every mapped target with its wire type, in the order in which a row's faults are reported."""
        instrument: dict[str, Source] = {name: getattr(self, name) for name in INSTRUMENT}
        given = {**instrument, **self.columns}
        return {name: (type_, given[name]) for name, type_ in _targets(self.kind).items() if name in given}


def _targets(kind: Kind) -> dict[str, Column]:
    """What a mapping of this kind may name, and the wire types."""
    times: dict[str, Column] = {"timestamp": "time", "received_at": "time?"}
    ratio: dict[str, Column] = {"ratio": "e8"} if kind.startswith("lsr_") else {}
    return {**INSTRUMENT, **times, **COLUMNS[kind], **ratio}


def _missing(kind: Kind, given: set[str]) -> list[str]:
    """The target columns that are neither mapped nor derived from those that are."""
    optional = {name for name, type_ in _targets(kind).items() if type_ == "time?"}
    optional |= {*INSTRUMENT, "ratio"}
    if kind == "trades":
        optional |= {"trade_time", "is_maker"}
    if kind == "orderbooks":
        optional |= {"bids_count", "asks_count"}
        for side, best, _ in _SIDES:
            optional |= {f"{best}_price", f"{best}_quantity"} if side in given else {side}
    if kind.startswith("lsr_"):
        long, short = list(COLUMNS[kind])[:2]
        optional |= {short, long} if "ratio" in given else {short}
    return [name for name in _targets(kind) if name not in optional | given]


def read_mapping(path: Path) -> Mapping:
    """A mapping file, checked as far as it can be without the data.

    Raises:
        BadFileError: names the file and the field (`columns.price.unit`).
    """
    file = str(path)
    try:
        # Every scalar as text: `y` in `values` stays a text, and 0.01 does not pass through a float.
        content = yaml.load(path.read_text("utf-8"), Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else None
        raise BadFileError(file, f"not YAML: {e.problem or e.context}", line=line) from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise BadFileError(file, f"not YAML: {e}") from e
    except OSError as e:
        raise BadFileError(file, e.strerror or str(e)) from e
    if not isinstance(content, dict):
        raise BadFileError(file, "a mapping file is `key: value` lines: see mappings/example_trades.yml")
    try:
        mapping = Mapping.model_validate(content)
    except ValidationError as e:
        first = e.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part != "[key]")
        reason = first["msg"].removeprefix("Value error, ")
        raise BadFileError(file, reason, field=field) from e
    _check(file, mapping)
    return mapping


def _check(file: str, mapping: Mapping) -> None:
    targets = _targets(mapping.kind)
    for name in mapping.columns:
        if name not in targets or name in INSTRUMENT:
            known = ", ".join(t for t in targets if t not in INSTRUMENT)
            reason = f"{mapping.kind} has no such column; it has {known}"
            raise BadFileError(file, reason, field=f"columns.{name}")
    if missing := _missing(mapping.kind, set(mapping.columns)):
        raise BadFileError(file, f"{mapping.kind} needs this column: map it", field=f"columns.{missing[0]}")
    if "ratio" in mapping.columns and (both := set(mapping.columns) & set(list(COLUMNS[mapping.kind])[:2])):
        raise BadFileError(file, f"give either ratio or {sorted(both)[0]}", field="columns.ratio")
    for name, (type_, source) in mapping.sources().items():
        wrong = (
            ("unit", source.unit is not None, type_ in _TIMES, "times and dates"),
            ("scale", source.scale is not None, type_ in ("e8", "wide") and name != "ratio", "decimals"),
            ("round", source.round, type_ == "e8" and name != "ratio", "decimals"),
            ("values", source.values is not None, type_ in ("string", "bool"), "strings and booleans"),
        )
        for key, given, fits, what in wrong:
            if given and not fits:
                field = f"{name}.{key}" if name in INSTRUMENT else f"columns.{name}.{key}"
                raise BadFileError(file, f"only {what} take this; {name} is {type_}", field=field)


# --- files ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Table:
    """One data file: the types of its columns by name, and its rows as text (see `csvtable.Chunk`)."""

    types: dict[str, pa.DataType]
    chunks: Callable[[list[str]], Iterator[Chunk]]


def _open(path: Path, header: bool) -> _Table:
    """Parquet by its first bytes, CSV otherwise.

    Raises:
        BadFileError: missing, empty or damaged.
    """
    try:
        with path.open("rb") as f:
            magic = f.read(4)
    except OSError as e:
        raise BadFileError(str(path), e.strerror or str(e)) from e
    if magic == b"PAR1":
        return _parquet(path)
    cells = first_row(path)
    names = [cell.strip() for cell in cells] if header else [str(i) for i in range(len(cells))]

    def read(used: list[str]) -> Iterator[Chunk]:
        return chunks(path, used if header else names, header=header)

    return _Table(dict.fromkeys(names, pa.string()), read)


def _parquet(path: Path) -> _Table:
    file = str(path)
    try:
        table = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as e:
        raise BadFileError(file, f"truncated or damaged Parquet: {e}") from e

    def read(used: list[str]) -> Iterator[Chunk]:
        done = 0
        try:
            for batch in table.iter_batches(PARQUET_ROWS, columns=used):
                lines = np.arange(done + 1, done + 1 + len(batch), dtype=np.int64)
                done += len(batch)
                texts = {name: _texts(file, name, batch[name]) for name in used}
                yield Chunk(file, texts, lines, path.stat().st_size * done // table.metadata.num_rows)
        except (pa.ArrowException, OSError) as e:
            raise BadFileError(file, f"damaged Parquet after row {done}: {e}", line=done + 1) from e

    types = {field.name: field.type for field in table.schema_arrow}
    if len(types) < len(table.schema_arrow):
        raise BadFileError(file, f"two columns have the same name: {', '.join(table.schema_arrow.names)}")
    return _Table(types, read)


def _texts(file: str, name: str, column: pa.Array) -> pa.Array:
    """A column as text, '' where NULL: times as µs (naive ones are UTC), floats as their shortest text."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_temporal(column.type):
        # A date has to pass through a timestamp; ns are cut to µs.
        column = pc.cast(column, pa.timestamp("us"), safe=False).cast(pa.int64())
    try:
        return pc.fill_null(pc.cast(column, pa.string()), "")
    except pa.ArrowInvalid as e:
        raise BadFileError(file, f"not text: {e}", field=name) from e


def _fits(target: Column, type_: pa.DataType) -> bool:
    """Whether a file's column of this type can hold the target."""
    t = pa.types
    if t.is_dictionary(type_):
        type_ = type_.value_type
    if t.is_string(type_) or t.is_large_string(type_) or t.is_binary(type_):
        return True
    match target:
        case "time" | "time?" | "date":
            tests = [t.is_integer, t.is_floating, t.is_timestamp, t.is_date]
        case "e8" | "wide":
            tests = [t.is_integer, t.is_floating, t.is_decimal]
        case "bool" | "string":
            # No floats: an id that went through one has lost digits.
            tests = [t.is_integer, t.is_boolean]
        case "uint64":
            tests = [t.is_integer]
    return any(test(type_) for test in tests)


# --- values --------------------------------------------------------------------------------------------


def scaled_e8(text: str, scale: Decimal | None, rounds: bool) -> int:
    """A number times `scale`, times 10**8; `rounds`: half to even at the eighth decimal, else exact.

    Raises:
        ValueError: `bad_number: …` or `out_of_range: …`.
    """
    value = one_decimal(text)
    if scale is not None:
        value = _EXACT.multiply(value, scale)
    if rounds and abs(value) <= LIMIT:  # a larger one does not fit, and may not even quantize
        value = _EXACT.quantize(value, _EIGHT)
    return one_to_e8(f"{value:f}" if abs(value) <= LIMIT else str(value))


def _plain_e8(value: int) -> str:
    """A value times 10**8, not negative, as a plain decimal: 150000000 is 1.5."""
    return f"{value // ONE}.{value % ONE:0{SCALE}d}".rstrip("0").rstrip(".")


def _micros(text: str, unit: Unit, optional: bool) -> int:
    """As `one_time`, for numbers that may have decimals (1626992741.301 s)."""
    if not text:
        if optional:
            return NO_TIME
        raise ValueError("missing_field: the time is blank")
    return one_time(f"{int(_EXACT.multiply(one_decimal(text), Decimal(10**6 // TICKS[unit]))):d}", "us")


@dataclass(frozen=True, slots=True)
class _Levels:
    """One side of a book: JSON as our column holds it, number of levels, and the best times 10**8."""

    json: str = "[]"
    count: int = 0
    price: int = 0
    quantity: int = 0


def _levels(text: str, order: int) -> _Levels:
    """`[[price, quantity], …]`, prices falling (`order` -1) or rising (1), from JSON.

    Raises:
        ValueError: `bad_json: …`, `bad_number: …`, `out_of_range: …`.
    """
    try:
        pairs = [(str(p), str(q)) for p, q in json.loads(text, parse_float=str, parse_int=str)]
    except (ValueError, TypeError) as e:
        raise ValueError('bad_json: levels are [["price", "quantity"], …], best first') from e
    prices, quantities = [one_e8(p) for p, _ in pairs], [one_e8(q) for _, q in pairs]
    if any(value <= 0 for value in prices + quantities):
        raise ValueError("out_of_range: a level's price and quantity must be above 0")
    if any((b - a) * order <= 0 for a, b in pairwise(prices)):
        raise ValueError("out_of_range: levels must be sorted, best first, one a price")
    if not pairs:
        return _Levels()
    return _Levels(json.dumps(pairs, separators=(",", ":")), len(pairs), prices[0], quantities[0])


# --- the reader ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Mapped:
    """One target column of one file."""

    target: str
    type: Column
    source: Source
    name: str
    file_type: pa.DataType

    def convert(self, rows: Rows) -> Values:
        """The target's values in their wire type, shape (n,); rows that do not convert are refused."""
        name, source = self.name, self.source
        match self.type:
            case "time" | "time?" | "date":
                micros = self._time(rows)
                if self.type == "date":
                    return micros.astype("datetime64[us]").astype("datetime64[D]")
                return micros
            case "e8" if self.target == "ratio":
                return rows.lookup(name, long_share, 0).astype(np.int64)
            case "e8":
                rounds = source.round or pa.types.is_floating(self.file_type)
                if source.scale is None and not rounds:
                    return rows.e8(name)
                scaled = rows.lookup(name, lambda text: scaled_e8(text, source.scale, rounds), 0)
                return scaled.astype(np.int64)
            case "wide":
                scale = source.scale
                if scale is None:
                    return rows.wide(name)
                return rows.lookup(
                    name, lambda text: one_wide(str(_EXACT.multiply(one_decimal(text), scale))), "0"
                )
            case "uint64":
                return rows.uint(name)
            case "bool":
                return rows.lookup(name, lambda text: one_bool(source.meaning(text)), 0).astype(np.uint8)
            case "string":
                return self._string(rows)

    def _time(self, rows: Rows) -> Values:
        optional = self.type == "time?"
        if pa.types.is_temporal(self.file_type):
            unit: Unit | None = "us"
        else:
            unit = None if self.source.unit == "iso" else self.source.unit
        texts = rows.chunk.columns[self.name]
        fractions = pa.types.is_floating(self.file_type) or pc.any(pc.match_substring(texts, ".")).as_py()
        if fractions and unit is not None:
            ticks = unit
            return rows.lookup(
                self.name, lambda text: _micros(text, ticks, optional), NO_TIME, texts=texts
            ).astype(np.int64)
        return rows.time(self.name, unit=unit, blank=NO_TIME if optional else None)

    def _string(self, rows: Rows) -> Values:
        meaning = self.source.meaning
        if self.target == "side":
            return rows.lookup(self.name, lambda text: one_side(meaning(text)), "buy")
        if self.target == "market_type":
            return rows.lookup(self.name, lambda text: _market_type(meaning(text)), "spot")
        if self.target in ("bids", "asks"):
            order = next(order for side, _, order in _SIDES if side == self.target)
            return rows.lookup(self.name, lambda text: _levels(text, order), _Levels())
        if self.source.values is None:
            return rows.text(self.name)
        return rows.lookup(self.name, meaning, "")


def _market_type(text: str) -> str:
    if text not in MARKET_TYPES:
        raise ValueError(f"bad_value: {text!r} is none of {', '.join(MARKET_TYPES)}")
    return text


class MappedReader:
    """Reads CSV (plain, gzip, zip) and Parquet files through one mapping file.

    A CSV row is named by its line, a Parquet row by its 1-based number.
    """

    data_source = "mapped"

    def __init__(self, paths: list[Path], mapping: Path) -> None:
        """Reads and checks the mapping; the files are opened in `read`.

        Raises:
            BadFileError: the mapping file is wrong; names it and the field.
        """
        self.paths = paths
        self.mapping = read_mapping(mapping)
        self._constants = self._convert_constants(str(mapping))
        digest = hashlib.sha256(self.mapping.model_dump_json().encode()).hexdigest()
        self.options = {"mapping": digest}

    def read(self) -> Iterator[Item]:
        """All items of all files, in order; at the end the watermarks of trades or order books.

        Raises:
            BadFileError: a file that is missing, empty or damaged, that lacks a mapped column, or holds it
                in a type that cannot be what the mapping says.
        """
        # Exclusive: whether further rows share the last stamp is not known.
        last: dict[tuple[str, str, str], int] = {}
        before = 0
        for path in self.paths:
            table = _open(path, self.mapping.header)
            mapped = self._resolve(str(path), table)
            for chunk in table.chunks(list(dict.fromkeys(m.name for m in mapped))):
                for item in self._items(chunk, mapped):
                    if isinstance(item, Batch):
                        _advance(last, item)
                    yield item
                yield Progress(before + chunk.bytes_done)
            before += path.stat().st_size
        if self.mapping.kind in ("trades", "orderbooks"):
            for instrument, timestamp in sorted(last.items()):
                yield Watermark(self.mapping.kind, *instrument, timestamp)

    def _convert_constants(self, file: str) -> dict[str, Values]:
        """Each `value:` in its wire type, shape (1,)."""
        constants = {}
        for target, (type_, source) in self.mapping.sources().items():
            if source.value is None:
                continue
            chunk = Chunk(file, {_CONSTANT: pa.array([source.value])}, np.zeros(1, np.int64), 0)
            rows = Rows(chunk, self.mapping.kind)
            constants[target] = _Mapped(target, type_, source, _CONSTANT, pa.string()).convert(rows)
            for item in rows.items({}):
                if isinstance(item, Reject):
                    field = target if target in INSTRUMENT else f"columns.{target}.value"
                    raise BadFileError(file, item.reason, field=field)
        return constants

    def _resolve(self, file: str, table: _Table) -> list[_Mapped]:
        """The mapped columns as they are in this file."""
        names = list(table.types)
        mapped = []
        for target, (type_, source) in self.mapping.sources().items():
            wanted = source.column
            if wanted is None:
                continue
            if wanted in table.types:
                name = wanted
            elif wanted.isascii() and wanted.isdigit() and int(wanted) < len(names):
                name = names[int(wanted)]
            else:
                raise BadFileError(
                    file, f"no such column, for {target}; the file has {', '.join(names)}", field=wanted
                )
            if not _fits(type_, table.types[name]):
                found = table.types[name]
                raise BadFileError(file, f"{target} ({type_}) cannot be read from {found}", field=name)
            mapped.append(_Mapped(target, type_, source, name, table.types[name]))
        return mapped

    def _items(self, chunk: Chunk, mapped: list[_Mapped]) -> Iterator[Item]:
        rows = Rows(chunk, self.mapping.kind)
        values = {name: np.repeat(value, len(rows)) for name, value in self._constants.items()}
        values |= {m.target: m.convert(rows) for m in mapped}
        values.setdefault("received_at", np.full(len(rows), NO_TIME, dtype=np.int64))
        if self.mapping.kind == "trades":
            _complete_trades(values)
        elif self.mapping.kind == "orderbooks":
            _complete_books(values)
        elif self.mapping.kind.startswith("lsr_"):
            _complete_ratios(values, *list(COLUMNS[self.mapping.kind])[:2])
        elif self.mapping.kind == "funding_rates":
            values.setdefault("next_funding_time", np.full(len(rows), NO_TIME, dtype=np.int64))
        _refuse(rows, values)
        yield from rows.items({**values, "data_source": self.data_source})


def _complete_trades(values: dict[str, Values]) -> None:
    values.setdefault("trade_time", values["timestamp"])
    if "is_maker" not in values:
        values["is_maker"] = (values["side"] == "sell").astype(np.uint8)


def _complete_books(values: dict[str, Values]) -> None:
    for side, best, _ in _SIDES:
        if side in values:
            levels: list[_Levels] = values[side].tolist()
            price = np.array([level.price for level in levels], dtype=np.int64)
            quantity = np.array([level.quantity for level in levels], dtype=np.int64)
            price, quantity = (
                values.setdefault(f"{best}_price", price),
                values.setdefault(f"{best}_quantity", quantity),
            )
        else:
            price, quantity = values[f"{best}_price"], values[f"{best}_quantity"]
            levels = [
                _Levels(f'[["{_plain_e8(p)}","{_plain_e8(q)}"]]', 1) if p > 0 else _Levels()
                for p, q in zip(price.tolist(), quantity.tolist(), strict=True)
            ]
        values[side] = np.array([level.json for level in levels], dtype=np.object_)
        counts = np.array([level.count for level in levels], dtype=np.uint64)
        values.setdefault(f"{side}_count", counts)


def _complete_ratios(values: dict[str, Values], long: str, short: str) -> None:
    share = values.pop("ratio", None)
    if share is not None:
        values.setdefault(long, share)
    values.setdefault(short, ONE - values[long])


def _refuse(rows: Rows, values: dict[str, Values]) -> None:
    """Refuse rows whose values convert but cannot be true."""
    kind = rows.kind
    if kind in ("trades", "liquidations"):
        rows.refuse(values["price"] <= 0, "price", "out_of_range: the price is not above 0")
        rows.refuse(values["quantity"] <= 0, "quantity", "zero_quantity: the quantity is not above 0")
    if kind == "orderbooks":
        bid, ask = values["best_bid_price"], values["best_ask_price"]
        for _, best, _ in _SIDES:
            price, quantity = values[f"{best}_price"], values[f"{best}_quantity"]
            below = (price < 0) | (quantity < 0)
            rows.refuse(below, f"{best}_price", "out_of_range: a price or quantity is below 0")
            rows.refuse((price > 0) & (quantity == 0), f"{best}_quantity", "zero_quantity: of a best price")
        rows.refuse((bid > 0) & (ask > 0) & (bid >= ask), "best_bid_price", "crossed_book: bid >= ask")
    if kind.startswith("lsr_"):
        for name in list(COLUMNS[kind])[:2]:
            outside = (values[name] < 0) | (values[name] > ONE)
            rows.refuse(outside, name, "out_of_range: a share is 0 to 1 (percent need `scale: 0.01`)")


def _advance(last: dict[tuple[str, str, str], int], batch: Batch) -> None:
    """Raise each instrument's last timestamp to that of the batch."""
    names = [*INSTRUMENT, "timestamp"]
    table = pa.table({name: pa.array(batch.columns[name]) for name in names})
    groups = table.group_by(list(INSTRUMENT)).aggregate([("timestamp", "max")])
    for row in groups.to_pylist():
        instrument = row["exchange"], row["market_type"], row["symbol"]
        last[instrument] = max(last.get(instrument, NO_TIME), row["timestamp_max"])
