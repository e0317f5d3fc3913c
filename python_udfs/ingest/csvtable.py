"""CSV files (plain, gz, zip) as chunks of text columns, and their exact conversion to wire columns.

Two steps, used by every reader of CSV:

* `chunks` reads a file block by block into text columns with their line numbers. What is wrong with the
  file as such (truncated, wrong columns, not UTF-8) raises `BadFileError` and names the line.
* `Rows` converts a chunk's columns. Whole columns at once; only a column with a value that does not
  convert is gone through value by value. A row that does not convert becomes one `Reject` (its first
  fault, in the order of the conversions), the other rows become batches.

A quoted value may not contain a line break: none of the formats has one, and lines stay countable.
"""

from __future__ import annotations

import csv
import gzip
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from pathlib import Path
from typing import IO, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as pa_csv

from python_udfs.errors import BadFileError
from python_udfs.ingest.decimals import SCALE, one_to_e8, to_e8
from python_udfs.ingest.records import BATCH_ROWS, NO_TIME, Batch, Item, Kind, Reject

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Objects = npt.NDArray[np.object_]
Unit = Literal["s", "ms", "us", "ns"]

BLOCK_BYTES: Final = 8 << 20
# A time outside [2000, 2100) is a wrong number or a wrong unit; inside, the magnitudes of s, ms, µs and
# ns do not overlap, so that the unit of a number can be told.
EARLIEST_S: Final = 946_684_800
LATEST_S: Final = 4_102_444_800
# Ticks per second of each unit.
TICKS: Final[dict[Unit, int]] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
# Decimal(38, 8): the type of the wide columns.
WIDE_LIMIT: Final = Decimal(10) ** 30
# Stricter than Decimal(), which takes 1_000 and other digits than ours, and overflows on 1e999999.
_NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_Bytes = IO[bytes] | gzip.GzipFile
_WIDE: Final = Context(prec=60, rounding=ROUND_HALF_EVEN)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of one file as text.

    Attributes:
        file: the path as given.
        columns: name to string array, all of one length; '' where a cell is blank.
        lines: the 1-based line of each row, shape (n,).
        bytes_done: bytes of the file (as stored, so compressed) read so far.
    """

    file: str
    columns: dict[str, pa.Array]
    lines: Ints
    bytes_done: int

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, keep: Bools) -> Chunk:
        """The rows for which `keep`, shape (n,), holds."""
        mask = pa.array(keep)
        columns = {name: column.filter(mask) for name, column in self.columns.items()}
        return Chunk(self.file, columns, self.lines[keep], self.bytes_done)

    def filled(self, name: str) -> Bools:
        """Which rows have something in this column, shape (n,)."""
        return np.asarray(pc.not_equal(self.columns[name], "").to_numpy(zero_copy_only=False), dtype=np.bool_)

    def raw(self, row: int) -> str:
        """One row as text again (quotes are not restored)."""
        return ",".join(column[row].as_py() for column in self.columns.values())


# --- reading -------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[tuple[_Bytes, IO[bytes]]]:
    """(the uncompressed bytes, the file as stored). What it is decides the first bytes, not the name.

    Raises:
        BadFileError: also for what decompression finds while the caller reads.
    """
    file = str(path)
    try:
        with path.open("rb") as stored:
            magic = stored.read(4)
            stored.seek(0)
            if not magic:
                raise BadFileError(file, "the file is empty")
            if magic[:2] == b"\x1f\x8b":
                with gzip.GzipFile(fileobj=stored) as content:
                    yield content, stored
            elif magic[:2] == b"PK":
                with zipfile.ZipFile(stored) as archive, archive.open(_only_member(file, archive)) as member:
                    yield member, stored
            elif path.suffix in {".gz", ".zip"}:
                raise BadFileError(file, f"not a {path.suffix[1:]} file: it starts with {magic!r}")
            else:
                yield stored, stored
    except (EOFError, zlib.error, zipfile.BadZipFile, gzip.BadGzipFile) as e:
        raise BadFileError(file, f"truncated or damaged: {e}; fetch it again") from e
    except NotImplementedError as e:  # zipfile: an unknown compression method
        raise BadFileError(file, str(e)) from e
    except RuntimeError as e:  # zipfile: a password is needed
        raise BadFileError(file, str(e)) from e
    except OSError as e:
        raise BadFileError(file, e.strerror or str(e)) from e


def _only_member(file: str, archive: zipfile.ZipFile) -> str:
    members = [i.filename for i in archive.infolist() if not i.is_dir()]
    if len(members) != 1:
        found = ", ".join(members[:5]) or "none"
        raise BadFileError(file, f"one CSV file is expected in the zip, found {len(members)}: {found}")
    return members[0]


def _fields(file: str, line: int, text: bytes) -> list[str]:
    """The cells of one line.

    Raises:
        BadFileError: not UTF-8, or a quote that does not end.
    """
    try:
        return next(csv.reader([text.decode("utf-8")], strict=True), [])
    except UnicodeDecodeError as e:
        raise BadFileError(file, f"not UTF-8 text: {e.reason} at byte {e.start}", line=line) from e
    except csv.Error as e:
        raise BadFileError(file, f"not CSV: {e}", line=line) from e


def _first_line(file: str, content: _Bytes) -> tuple[int, bytes]:
    """The first line that is not blank: (its number, its bytes without a byte order mark).

    Raises:
        BadFileError: there is none.
    """
    number = 0
    # Bounded: a binary file may have no line break at all.
    while line := content.readline(1 << 20):
        number += 1
        if text := line.removeprefix(b"\xef\xbb\xbf").strip(b"\r\n"):
            return number, text
    raise BadFileError(file, "the file is empty")


def first_row(path: Path) -> list[str]:
    """The cells of the first line that is not blank, to tell which layout and whether there is a header.

    Raises:
        BadFileError: the file is empty, damaged or no text.
    """
    with _opened(path) as (content, _):
        number, text = _first_line(str(path), content)
        return _fields(str(path), number, text)


def chunks(path: Path, columns: Sequence[str] | None = None, header: bool | None = None) -> Iterator[Chunk]:
    """The rows of a CSV file, in order, in chunks of about `BLOCK_BYTES` of text. Blank lines are skipped.

    Args:
        path: plain, gzip, or zip with one member; the content decides, not the name.
        columns: the names wanted. With a header, all of them must be in it (any order; further columns
            are kept too). Without one, they are the file's columns, in order. None: take the header's.
        header: whether the first line is one; None: it is if one of its cells is one of `columns`.

    Raises:
        BadFileError: empty, damaged, not UTF-8, a missing or repeated column name, or a line with
            another number of cells. A file with a header and no rows is fine and yields nothing.
    """
    file = str(path)
    with _opened(path) as (content, stored):
        number, text = _first_line(file, content)
        first = [cell.strip() for cell in _fields(file, number, text)]
        if header is None:
            header = columns is None or not set(first).isdisjoint(columns)
        if header:
            names, rest = _header(file, number, first, columns), b""
        elif columns is None:
            raise ValueError("a file without a header needs the names of its columns")
        else:
            names, rest = list(columns), text + b"\n"
        line = number + 1 if header else number
        block = content.read(BLOCK_BYTES)
        while block or rest:
            following = content.read(BLOCK_BYTES)
            block = rest + block
            cut = block.rfind(b"\n") + 1 if following else len(block)
            block, rest = block[:cut], block[cut:]
            if block:
                yield from _parsed(file, names, block, line, stored.tell())
                line += block.count(b"\n")
            if len(rest) > BLOCK_BYTES:
                raise BadFileError(file, "not CSV: a line without an end", line=line)
            block = following


def _header(file: str, line: int, found: list[str], wanted: Sequence[str] | None) -> list[str]:
    for name in found:
        if found.count(name) > 1:
            raise BadFileError(file, "the header has this column twice", line=line, field=name)
    for name in wanted or ():
        if name not in found:
            raise BadFileError(
                file, f"the header has no such column; it has {', '.join(found)}", line=line, field=name
            )
    return found


def _parsed(file: str, names: list[str], block: bytes, line: int, done: int) -> Iterator[Chunk]:
    """The rows of one block of whole lines, of which the first is line `line` of the file."""
    rows = block.count(b"\n") + (not block.endswith(b"\n"))
    lines: Ints = np.arange(line, line + rows, dtype=np.int64)
    try:
        table = None if _has_blank_line(block) else _arrow(names, block)
    except pa.ArrowInvalid:
        table = None
    if table is None or table.num_rows != rows:  # fewer rows: a line break inside quotes
        kept, lines = _checked(file, names, block, line)
        if not kept:
            return
        try:
            table = _arrow(names, b"\n".join(kept))
        except pa.ArrowInvalid as e:
            raise BadFileError(file, f"not CSV: {e}", line=line) from e
    yield Chunk(file, {n: table[n].combine_chunks() for n in names}, lines, done)


def _arrow(names: list[str], block: bytes) -> pa.Table:
    return pa_csv.read_csv(
        pa.BufferReader(block),
        read_options=pa_csv.ReadOptions(column_names=names, block_size=len(block) + 1),
        parse_options=pa_csv.ParseOptions(ignore_empty_lines=False),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )


def _has_blank_line(block: bytes) -> bool:
    """Arrow takes one for a row of blank cells. (`in` is far faster here than a regular expression.)"""
    return block.startswith((b"\n", b"\r\n")) or b"\n\n" in block or b"\n\r\n" in block


def _checked(file: str, names: list[str], block: bytes, line: int) -> tuple[list[bytes], Ints]:
    """The lines that are not blank and their numbers, each seen to have the right number of cells."""
    kept: list[bytes] = []
    lines: list[int] = []
    for number, text in enumerate(block.splitlines(), start=line):
        if not text:
            continue
        cells = _fields(file, number, text)
        if len(cells) != len(names):
            raise BadFileError(
                file, f"{len(cells)} columns where {len(names)} are expected: {','.join(names)}", line=number
            )
        kept.append(text)
        lines.append(number)
    return kept, np.array(lines, dtype=np.int64)


# --- one value -----------------------------------------------------------------------------------------


def one_time(text: str, unit: Unit | None = None) -> int:
    """A time to µs since the epoch: a whole number of `unit` (None: told by its magnitude), or ISO 8601
    (UTC where it names no zone). Finer than a µs is cut off.

    Raises:
        ValueError: `bad_time: …` or `out_of_range: …`.
    """
    if re.fullmatch(r"[0-9]{1,19}", text):
        micros = int(_to_micros(np.array([min(int(text), 2**63 - 1)], dtype=np.int64), unit)[0])
        if micros == NO_TIME:
            raise ValueError(f"out_of_range: {text} is no time between 2000 and 2100")
        return micros
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as e:
        raise ValueError(f"bad_time: {text!r} is not a time") from e
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    if not EARLIEST_S <= since.total_seconds() < LATEST_S:
        raise ValueError(f"out_of_range: {text} is no time between 2000 and 2100")
    return (since.days * 86_400 + since.seconds) * 10**6 + since.microseconds


def one_decimal(text: str) -> Decimal:
    """A plain or exponent number, exactly.

    Raises:
        ValueError: `bad_number: …`.
    """
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"bad_number: {text!r} is not a number")
    return Decimal(text)


def one_e8(text: str) -> int:
    """A number times 10**8, exactly.

    Raises:
        ValueError: `bad_number: …` or `out_of_range: …`.
    """
    one_decimal(text)
    return one_to_e8(text)


def one_wide(text: str) -> str:
    """A number as a plain decimal string with 8 decimals (what the wide columns hold; half to even).

    Venues publish derived values such as an open interest in USD with up to 16 decimals: those are rounded.

    Raises:
        ValueError: `bad_number: …` or `out_of_range: …`.
    """
    value = one_decimal(text)
    if abs(value) >= WIDE_LIMIT:
        raise ValueError(f"out_of_range: {text} does not fit Decimal(38,8)")
    rounded = _WIDE.quantize(value, Decimal(1).scaleb(-SCALE))
    return f"{abs(rounded) if rounded.is_zero() else rounded:f}"  # no negative zero


def one_uint(text: str) -> int:
    """A whole number that is not negative.

    Raises:
        ValueError: `bad_number: …` or `out_of_range: …`.
    """
    if not re.fullmatch(r"[0-9]+", text):
        raise ValueError(f"bad_number: {text!r} is not a whole number")
    if int(text) >= 1 << 64:
        raise ValueError(f"out_of_range: {text} does not fit 64 bits")
    return int(text)


def one_bool(text: str) -> int:
    """true/false in any case (or 1/0) to 1/0.

    Raises:
        ValueError: `bad_value: …`.
    """
    try:
        return {"true": 1, "false": 0, "1": 1, "0": 0}[text.lower()]
    except KeyError as e:
        raise ValueError(f"bad_value: {text!r} is neither true nor false") from e


def one_side(text: str) -> str:
    """buy/sell in any case.

    Raises:
        ValueError: `bad_value: …`.
    """
    side = text.lower()
    if side not in ("buy", "sell"):
        raise ValueError(f"bad_value: {text!r} is neither buy nor sell")
    return side


def _to_micros(values: Ints, unit: Unit | None) -> Ints:
    """Whole numbers of `unit` (None: told by magnitude) to µs, shape (n,); NO_TIME where out of range."""
    micros = np.full(len(values), NO_TIME, dtype=np.int64)
    for ticks in TICKS.values() if unit is None else (TICKS[unit],):
        inside = (values >= EARLIEST_S * ticks) & (values < LATEST_S * ticks)
        if ticks <= 10**6:
            np.copyto(micros, values * (10**6 // ticks), where=inside)
        else:
            np.copyto(micros, values // (ticks // 10**6), where=inside)
    return micros


# --- columns -------------------------------------------------------------------------------------------


class Rows:
    """The rows of one chunk on their way to one kind: converts columns, remembers what did not convert.

    Call the conversions in the order in which faults should be reported, then `items` once. A row with a
    fault holds an arbitrary value of the right type in what a conversion returns. A blank cell is a fault
    (`missing_field`) unless the conversion is given what a blank means.
    """

    def __init__(self, chunk: Chunk, kind: Kind) -> None:
        self.chunk = chunk
        self.kind: Kind = kind
        self._faults: dict[int, tuple[str, str]] = {}

    def __len__(self) -> int:
        return len(self.chunk)

    def refuse(self, bad: Bools | Sequence[int], field: str, reason: str | Callable[[int], str]) -> None:
        """Refuse rows (a mask of shape (n,), or row numbers). A row keeps the first fault it was given."""
        numbers = np.flatnonzero(bad) if isinstance(bad, np.ndarray) else bad
        for row in numbers:
            text = reason if isinstance(reason, str) else reason(int(row))
            self._faults.setdefault(int(row), (field, text))

    def e8(self, name: str, *, blank: str | None = None) -> Ints:
        """Decimals to int64 times 10**8, exact, shape (n,)."""
        return self._column(name, to_e8, one_e8, np.int64(0), blank)

    def positive(self, name: str, code: str = "out_of_range") -> Ints:
        """As `e8`, and what is not above 0 is refused under this reason code."""
        values = self.e8(name)
        self.refuse(values <= 0, name, lambda row: f"{code}: {self.chunk.columns[name][row]} is not above 0")
        return values

    def time(self, name: str, *, unit: Unit | None = None, blank: int | None = None) -> Ints:
        """Times to µs, shape (n,); see `one_time`. `blank`: usually NO_TIME (slow where there are many)."""

        def whole(texts: pa.Array) -> Ints:
            try:
                micros = _to_micros(pc.cast(texts, pa.int64()).to_numpy(), unit)
            except pa.ArrowInvalid:
                stamps = pc.cast(texts, pa.timestamp("us"))
                micros = _to_micros(stamps.cast(pa.int64()).to_numpy(), "us")
            if (micros == NO_TIME).any():
                raise ValueError("out_of_range")
            return micros

        default = np.int64(NO_TIME if blank is None else blank)
        return self._column(
            name, whole, lambda text: one_time(text, unit), default, None if blank is None else ""
        )

    def uint(self, name: str) -> npt.NDArray[np.uint64]:
        """Whole numbers, shape (n,)."""
        return self._column(name, lambda a: pc.cast(a, pa.uint64()).to_numpy(), one_uint, np.uint64(0))

    def wide(self, name: str, *, blank: str | None = None) -> Objects:
        """Decimals as plain strings, shape (n,); see `one_wide`."""
        return np.array(self._each(name, self._texts(name, blank), one_wide, "0"), dtype=np.object_)

    def text(self, name: str) -> Objects:
        """Strings, shape (n,)."""
        texts = self._texts(name, None)
        return np.asarray(texts.to_numpy(zero_copy_only=False), dtype=np.object_)

    def bools(self, name: str) -> npt.NDArray[np.uint8]:
        """Booleans as 0 and 1, shape (n,)."""
        return self.lookup(name, one_bool, 0).astype(np.uint8)

    def sides(self, name: str) -> Objects:
        """'buy' or 'sell', shape (n,)."""
        return self.lookup(name, one_side, "buy")

    def lookup(
        self, name: str, convert: Callable[[str], Any], default: Any, *, texts: pa.Array | None = None
    ) -> Objects:
        """Any conversion of a column with few distinct values: each of them is converted once, shape (n,).

        `texts` replaces the column, e.g. by several joined; faults still name `name`.
        """
        encoded = (self._texts(name, None) if texts is None else texts).dictionary_encode()
        codes = encoded.indices.to_numpy()
        values = np.empty(len(encoded.dictionary), dtype=np.object_)
        for code, text in enumerate(encoded.dictionary.to_pylist()):
            try:
                values[code] = convert(text)
            except ValueError as e:
                values[code] = default
                self.refuse(codes == code, name, str(e))
        return np.asarray(values[codes], dtype=np.object_)

    def items(self, columns: Mapping[str, npt.NDArray[Any] | str]) -> Iterator[Item]:
        """The rejects in line order, then the good rows as batches. A str stands for a constant column."""
        for row, (field, reason) in sorted(self._faults.items()):
            line = int(self.chunk.lines[row])
            yield Reject(self.kind, self.chunk.file, line, field, reason, self.chunk.raw(row))
        good = np.delete(np.arange(len(self)), list(self._faults)) if self._faults else slice(None)
        lines = self.chunk.lines[good]
        whole = {
            name: np.full(len(lines), column, dtype=np.object_) if isinstance(column, str) else column[good]
            for name, column in columns.items()
        }
        for start in range(0, len(lines), BATCH_ROWS):
            part = slice(start, start + BATCH_ROWS)
            yield Batch(self.kind, {n: c[part] for n, c in whole.items()}, self.chunk.file, lines[part])

    def _texts(self, name: str, blank: str | None) -> pa.Array:
        """The column's texts; blanks are replaced, or else faults."""
        texts = self.chunk.columns[name]
        empty = pc.equal(texts, "")
        if pc.any(empty).as_py():
            if blank is not None:
                return pc.if_else(empty, blank, texts)
            mask = np.asarray(empty.to_numpy(zero_copy_only=False), dtype=np.bool_)
            self.refuse(mask, name, f"missing_field: {name} is blank")
        return texts

    def _column(
        self,
        name: str,
        whole: Callable[[pa.Array], npt.NDArray[Any]],
        one: Callable[[str], Any],
        default: np.generic,
        blank: str | None = None,
    ) -> npt.NDArray[Any]:
        texts = self._texts(name, blank)
        try:
            return whole(texts)
        except ValueError:  # pa.ArrowInvalid is one
            return np.array(self._each(name, texts, one, default), dtype=default.dtype)

    def _each(self, name: str, texts: pa.Array, one: Callable[[str], Any], default: Any) -> list[Any]:
        """Value by value; `default` where a text is blank or does not convert (then the row is refused)."""
        values = [default] * len(texts)
        for row, text in enumerate(texts.to_pylist()):
            if text:
                try:
                    values[row] = one(text)
                except ValueError as e:
                    self.refuse([row], name, str(e))
        return values
