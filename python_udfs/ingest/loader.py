"""Moves what a reader gives into the raw tables: once, whole or not at all, whatever is killed when.

A load goes through three steps:

1. *Stage*: the reader's rows are checked and sent to private tables `_load_<id>_<kind>` (wire types).
2. *Plan*: slice by slice of event time they are converted, deduplicated and anti-joined with the raw
   table into `_load_<id>_<kind>_new`. Then the journal `_load_<id>_journal` is written: one row that says
   what is to be moved. Up to here a death leaves private tables only.
3. *Move*: one `insert select` a slice into the raw table, then quarantine, watermarks, the row in `loads`;
   each finished slice is noted in the journal. A death in here is healed by the next load of anything,
   which first replays the journal from the slice that was in flight (`recover`).

Why a journal, and not just loading again (seen on ClickHouse 26.9 with `insert_deduplication_token`):

* A token names blocks by position, not by content: a token used again swallows other rows in the same
  position. So rows left over by the anti-join of a second try must not come under the first try's token.
* Without the first try's token, a slice that had reached the raw table but not its materialized views is
  anti-joined away, and the views miss it for ever. Under the same token the same rows are refused by the
  raw table and still reach a view that lacks them.
* The same token with another cut into blocks inserts rows twice. So a slice is one block: one thread,
  squashed without limit, in the order of the raw table's key.

Hence a plan has a token of its own (drawn anew), and is replayed as planned. One machine runs one load at
a time per database (a lock file); machines that load into one server at once must not load the same rows.
"""

from __future__ import annotations

import fcntl
import hashlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors

from python_udfs.cluster import LOCAL
from python_udfs.db import connect, names, quote
from python_udfs.errors import BadFileError, UserError
from python_udfs.ingest.availability import (
    Availability,
    Instrument,
    known_at,
    read_availability,
    read_instruments,
)
from python_udfs.ingest.decimals import LIMIT, SCALE
from python_udfs.ingest.records import (
    COLUMNS,
    INSTRUMENT,
    MARKET_TYPES,
    NATURAL_KEY,
    NO_TIME,
    Batch,
    Column,
    Kind,
    LoadResult,
    Note,
    Progress,
    Reader,
    Reject,
    Watermark,
)
from python_udfs.settings import settings

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
OnProgress = Callable[[int, int], None]

EARLIEST: Final = 946_684_800_000_000  # 2000-01-01, µs
LATEST: Final = 4_102_444_800_000_000  # 2100-01-01, µs
# The same trade comes with ms from one source and with µs from another; an id is reused much later, if ever.
SAME_TRADE_US: Final = 1_000_000
MINUTE_US: Final = 60_000_000
STALE_AFTER: Final = "interval 1 day"
RAW_TEXT_LIMIT: Final = 4096
REJECT_ROWS: Final = 50_000

# Rows sent at once, and rows moved at once (one block in memory). A book of 20 levels is 1-2 kB.
FLUSH_ROWS: Final[dict[Kind, int]] = {"orderbooks": 20_000}
SLICE_ROWS: Final[dict[Kind, int]] = {"orderbooks": 100_000}
DEFAULT_FLUSH_ROWS: Final = 200_000
DEFAULT_SLICE_ROWS: Final = 1_000_000

# Strings of few values travel as numbers; their texts go into the converting query.
CODED: Final = frozenset(
    {"exchange", "market_type", "symbol", "data_source", "side", "period", "underlying_asset"}
)
POSITIVE: Final[dict[Kind, dict[str, str]]] = {
    "trades": {"price": "zero_price", "quantity": "zero_quantity"},
    "liquidations": {"price": "zero_price", "quantity": "zero_quantity"},
    "tickers": {"last_price": "zero_price"},
}
WIRE: Final[dict[Column, str]] = {
    "time": "Int64",
    "time?": "Int64",
    "e8": "Int64",
    "wide": "String",
    "string": "String",
    "uint64": "UInt64",
    "bool": "UInt8",
    "date": "UInt16",
}
# Everything in one block (see above), into as many partitions as the rows need.
ONE_BLOCK: Final[dict[str, Any]] = {
    "async_insert": 0,
    "max_threads": 1,
    "max_insert_threads": 1,
    "min_insert_block_size_rows": 1 << 40,
    "min_insert_block_size_bytes": 0,
    "max_partitions_per_insert_block": 0,
    "optimize_on_insert": 0,  # the block is unique by key already; looking again doubles the time
    "max_query_size": 1 << 28,
    "deduplicate_blocks_in_dependent_materialized_views": 1,
}


def load(
    reader: Reader,
    *,
    again: bool = False,
    progress: OnProgress | None = None,
    instruments: frozenset[Instrument] | None = None,
    availability: dict[tuple[str, Kind], Availability] | None = None,
) -> LoadResult:
    """Loads what `reader` reads. Loading twice changes nothing.

    An id that an instrument has twice within the same second of one load is one trade, and so are two of
    different loads within `SAME_TRADE_US`; of two rows with the same natural key the first by line stays.

    Args:
        again: read the files even if they are in `loads`: after rows were lost, or instruments were added.
        progress: called with the input bytes read so far and in all.
        instruments: the known ones; default: seeds/instruments.csv.
        availability: the rules for `known_at`; default: seeds/source_availability.csv.

    Raises:
        BadFileError: a file cannot be read, or has no rows: nothing of the load is kept.
        UserError: no database answers, a source is not in seeds/source_availability.csv, or the server's disk is full:
            likewise, unless rows were on the move: then the next load goes on from there.
    """
    started = time.perf_counter()
    started_at = datetime.now(UTC)
    known = read_instruments() if instruments is None else instruments
    rules = read_availability() if availability is None else availability
    files = [str(path) for path in reader.paths]
    load_id, total = identify(reader)
    result = LoadResult(load_id, files, reader.data_source)
    with ExitStack() as stack:
        stack.enter_context(_only_one())
        store = stack.enter_context(open_store())
        stack.enter_context(_a_full_disk_is_told())
        recovered = recover(store)
        if load_id in recovered:
            return recovered[load_id]
        if not again and store.is_loaded(load_id):
            result.skipped = True
            return result
        store.drop_private(load_id)
        store.drop_stale()
        try:
            with _Stage(store, load_id, reader.data_source, known, rules) as stage:
                _read(reader, stage, total, progress)
            if not stage.rows and not stage.rejects:
                raise BadFileError(", ".join(files), "no rows")  # noqa: TRY301 - drop what was staged
            moves, result.rows, result.duplicates = _plan(store, stage)
            result.rejected = store.count_rejects(load_id)
            result.notes = stage.notes
            token = secrets.token_hex(8)
            store.write_journal(
                Journal(result, again, started_at.timestamp(), token, moves, stage.watermarks())
            )
        except BaseException:
            # The error that stopped the load is the one to show, not that its leftovers stay a while.
            with suppress(driver_errors.Error, OSError, EOFError):
                store.drop_private(load_id)
            raise
        _move(store, load_id)
    result.seconds = time.perf_counter() - started
    return result


def identify(reader: Reader) -> tuple[str, int]:
    """A load's identity and size: sha256 over the reader, its options and the bytes of its files; bytes.

    A folder among the paths stands for the files in it. Where a file lies, and its name, do not count.
    """
    head = [type(reader).__name__, reader.data_source, sorted(reader.options.items())]
    digest = hashlib.sha256(orjson.dumps(head))
    total = 0
    for path in reader.paths:
        for file in sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]:
            try:
                with file.open("rb") as f:
                    digest.update(hashlib.file_digest(f, "sha256").digest())
                    total += f.tell()
            except OSError as e:
                raise BadFileError(str(file), f"cannot be read: {e.strerror}") from e
    return digest.hexdigest(), total


# --- the store: every statement but those of the plan --------------------------------------------------


@dataclass(slots=True)
class Journal:
    """A plan that was made and has to be carried out, whoever was killed.

    Attributes:
        moves: (kind, first µs, last µs exclusive) a slice, in order.
        watermarks: (kind, exchange, market_type, symbol, µs) each.
    """

    result: LoadResult
    again: bool
    started_at: float
    token: str
    moves: list[tuple[Kind, int, int]]
    watermarks: list[tuple[Kind, str, str, str, int]]

    def text(self) -> str:
        return orjson.dumps(self).decode()

    @classmethod
    def parse(cls, text: str) -> Journal:
        content = orjson.loads(text)
        return cls(
            LoadResult(**content["result"]),
            content["again"],
            content["started_at"],
            content["token"],
            [(kind, low, high) for kind, low, high in content["moves"]],
            [(kind, *rest) for kind, *rest in content["watermarks"]],
        )


@dataclass(frozen=True, slots=True)
class Store:
    """The hot database: `plain` for statements, `bulk` for columns of numpy arrays."""

    plain: Client
    bulk: Client
    database: str

    def run(self, query: str, **options: Any) -> list[tuple[Any, ...]]:
        return cast("list[tuple[Any, ...]]", self.plain.execute(query, settings=options))

    def is_loaded(self, load_id: str) -> bool:
        return bool(self.run(f"select count() from loads where load_id = {quote(load_id)}")[0][0])

    def tables(self, pattern: str, condition: str = "1") -> list[str]:
        found = self.run(
            f"select name from system.tables where database = {quote(self.database)} "
            f"and match(name, {quote(pattern)}) and {condition} order by name"
        )
        return [name for (name,) in found]

    def drop_private(self, load_id: str) -> None:
        """The journal first: without it the other tables are garbage, with it they are needed."""
        found = self.tables(f"^{_private(load_id)}_")
        for table in sorted(found, key=lambda name: not name.endswith("_journal")):
            self.run(f"drop table if exists {names([table])} sync")

    def drop_stale(self) -> None:
        """What killed loads left that nobody ran again."""
        old = f"metadata_modification_time < now() - {STALE_AFTER}"
        for table in self.tables(r"^_load_[0-9a-f]{16}_", old):
            self.run(f"drop table if exists {names([table])} sync")

    def count_rejects(self, load_id: str) -> dict[str, int]:
        table = _private(load_id, "quarantine")
        return {
            str(kind): count
            for kind, count in self.run(
                f"select kind, uniqExact(file, line, field, reason) from {table} group by kind order by kind"
            )
        }

    def write_journal(self, journal: Journal) -> None:
        table = _private(journal.result.load_id, "journal")
        self.run(f"create table {table} (step UInt32, body String) engine = MergeTree order by step")
        self.note_step(journal.result.load_id, 0, journal.text())

    def note_step(self, load_id: str, step: int, body: str = "") -> None:
        self.plain.execute(
            f"insert into {_private(load_id, 'journal')} (step, body) values",
            [(step, body)],
            settings={"async_insert": 0},
        )

    def read_journal(self, load_id: str) -> tuple[Journal, int] | None:
        """The plan and the number of slices moved; None: it was not written to the end."""
        found = self.run(f"select body, step from {_private(load_id, 'journal')} order by step")
        return (Journal.parse(found[0][0]), found[-1][1]) if found else None


@contextmanager
def open_store() -> Iterator[Store]:
    database = settings().database("hot")
    with connect(database) as plain, connect(database, use_numpy=True) as bulk:
        yield Store(plain, bulk, database)


@contextmanager
def _only_one() -> Iterator[None]:
    """Waits until no other load of this machine runs on this database."""
    s = settings()
    s.data_dir.mkdir(parents=True, exist_ok=True)
    lock = s.data_dir / f"load-{s.host.replace('/', '_')}-{s.port}-{s.database('hot')}.lock"
    with lock.open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


@contextmanager
def _a_full_disk_is_told() -> Iterator[None]:
    """Whichever statement met it; one of a move says already where the load stands."""
    try:
        yield
    except (driver_errors.ServerException, UserError) as e:
        said = e if isinstance(e, driver_errors.ServerException) else e.__cause__
        if not isinstance(said, driver_errors.ServerException) or not (
            said.code == driver_errors.ErrorCodes.NOT_ENOUGH_SPACE
            or "No space left on device" in said.message
        ):
            raise
        raise UserError(
            "the ClickHouse server's disk is full: make room there (a larger disk, or keep rows for fewer days with "
            "MARKETPRISM_HOT_TTL_DAYS, MARKETPRISM_COLD_TTL_DAYS and `make migrate`), then load again: nothing is lost "
            f"or doubled. It said: {_first_line(said)}"
        ) from said


def _private(load_id: str, what: str = "") -> str:
    """The name of one of a load's private tables (plain letters: needs no quoting)."""
    return f"_load_{load_id[:16]}" + (f"_{what}" if what else "")


# --- step 1: stage -------------------------------------------------------------------------------------


def _read(reader: Reader, stage: _Stage, total: int, progress: OnProgress | None) -> None:
    for item in reader.read():
        match item:
            case Batch():
                stage.add(item)
            case Reject():
                stage.reject([item])
            case Watermark():
                stage.watermark(item)
            case Note():
                stage.notes[item.name] = item.value
            case Progress():
                if progress is not None:
                    progress(min(item.done, total), total)
    stage.flush()
    if progress is not None:
        progress(total, total)


@dataclass(slots=True)
class _Buffer:
    """Checked rows of one kind that were not sent yet."""

    columns: list[dict[str, npt.NDArray[Any]]] = field(default_factory=list)
    rows: int = 0


class _Stage:
    """The private tables of one load while it is being read.

    Attributes:
        rows: rows staged.
        rejects: lines for the quarantine, staged or refused here.
        instruments: per kind, those that have rows.
        codes: per coded column, its texts and their numbers.
        notes: the reader's.
    """

    def __init__(
        self,
        store: Store,
        load_id: str,
        data_source: str,
        known: frozenset[Instrument],
        rules: dict[tuple[str, Kind], Availability],
    ) -> None:
        self._store, self.load_id, self._data_source = store, load_id, data_source
        self._known, self._rules = known, rules
        self.rows = self.rejects = 0
        self.instruments: dict[Kind, set[Instrument]] = {}
        self.codes: dict[str, dict[str, int]] = {column: {} for column in CODED}
        self.notes: dict[str, str] = {}
        self._files: dict[str, int] = {}
        self._buffers: dict[Kind, _Buffer] = {}
        self._refused: list[Reject] = []
        self._watermarks: dict[tuple[Kind, str, str, str], int] = {}
        # Rows are sent while the next are read; one insert at a time, and one waits at most.
        self._sender = ThreadPoolExecutor(max_workers=1)
        self._sent: Future[None] | None = None
        fields = ("kind", "data_source", "file", "field", "reason_code", "reason", "raw")
        store.run(
            f"create table {_private(load_id, 'quarantine')} (line UInt64, "
            + ", ".join(f"{name} String" for name in fields)
            + ") engine = MergeTree order by (kind, file, line)"
        )

    def __enter__(self) -> _Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._sender.shutdown(cancel_futures=True)

    def add(self, batch: Batch) -> None:
        """Takes the batch's good rows; the others become rejects."""
        kind, types = batch.kind, _types(batch.kind)
        columns = _checked(batch, types, self._data_source)
        texts: dict[str, list[str]] = {}
        for column in CODED & columns.keys():
            columns[column], texts[column] = _encode(columns[column], column)
        sizes = tuple(len(texts[name]) for name in INSTRUMENT)
        import pandas as pd  # here: half a second of import that other commands need not pay

        combined, unique = pd.factorize(np.ravel_multi_index([columns[name] for name in INSTRUMENT], sizes))
        instruments = [
            Instrument(*(texts[name][code] for name, code in zip(INSTRUMENT, codes, strict=True)))
            for codes in zip(*np.unravel_index(unique, sizes), strict=True)
        ]
        unknown = np.array([i not in self._known for i in instruments], dtype=np.bool_)[combined]
        good = np.ones(len(batch), dtype=np.bool_)
        for name, bad, reason in _checks(kind, columns, texts, unknown):
            if (new := np.flatnonzero(bad & good)).size:
                self.reject(Reject(kind, batch.file, int(batch.lines[i]), name, reason(int(i))) for i in new)
                good[new] = False
        place = np.int64(self._files.setdefault(batch.file, len(self._files)) << 40) + batch.lines
        if not good.all():
            columns = {name: values[good] for name, values in columns.items()}
            place = place[good]
        if not len(place):
            return
        columns["known_at"] = self._known_at(kind, columns, texts["data_source"])
        used = np.unique(combined[good])
        self.instruments.setdefault(kind, set()).update(instruments[i] for i in used)
        for column, values in texts.items():
            columns[column] = self._translate(column, columns[column], values)
        columns["place"] = place
        columns["row"] = np.arange(self.rows, self.rows + len(place), dtype=np.uint64)
        self.rows += len(place)
        if kind not in self._buffers:
            self._create(kind, types)
        buffer = self._buffers.setdefault(kind, _Buffer())
        buffer.columns.append(columns)
        buffer.rows += len(place)
        if buffer.rows >= FLUSH_ROWS.get(kind, DEFAULT_FLUSH_ROWS):
            self._send(kind)

    def reject(self, rejects: Iterable[Reject]) -> None:
        for reject in rejects:
            self._refused.append(reject)
            self.rejects += 1
            if len(self._refused) >= REJECT_ROWS:
                self._send_rejects()

    def watermark(self, mark: Watermark) -> None:
        instrument = Instrument(mark.exchange, mark.market_type, mark.symbol)
        if instrument in self._known and EARLIEST <= mark.timestamp < LATEST:
            key = (mark.kind, *instrument)
            self._watermarks[key] = max(mark.timestamp, self._watermarks.get(key, 0))

    def watermarks(self) -> list[tuple[Kind, str, str, str, int]]:
        return [(*key, timestamp) for key, timestamp in self._watermarks.items()]

    def flush(self) -> None:
        for kind in self._buffers:
            self._send(kind)
        self._send_rejects()
        if self._sent is not None:
            self._sent.result()

    def kinds(self) -> list[Kind]:
        return list(self._buffers)

    def _known_at(self, kind: Kind, columns: dict[str, npt.NDArray[Any]], sources: list[str]) -> Ints:
        result = np.empty(len(columns["timestamp"]), dtype=np.int64)
        for code in np.unique(columns["data_source"]):
            rule = self._rules.get((sources[code], kind))
            if rule is None:
                raise UserError(
                    f"seeds/source_availability.csv does not say when {kind} of {sources[code]!r} are known: "
                    "add a line"
                )
            mine = columns["data_source"] == code
            result[mine] = known_at(columns["timestamp"][mine], columns["received_at"][mine], rule)
        return result

    def _translate(self, column: str, local: Ints, texts: list[str]) -> npt.NDArray[np.uint32]:
        """A batch's own numbers of a column's texts into those of the load."""
        table = self.codes[column]
        mapping = np.zeros(len(texts), dtype=np.uint32)
        for code in np.flatnonzero(np.bincount(local, minlength=len(texts))):
            mapping[code] = table.setdefault(texts[code], len(table))
        return mapping[local]

    def _create(self, kind: Kind, types: dict[str, Column]) -> None:
        columns = {name: "UInt32" if name in CODED else WIRE[type_] for name, type_ in types.items()}
        # Merging tables that live for seconds is work for nothing.
        self._store.run(
            f"create table {_private(self.load_id, kind)} (place UInt64, row UInt64, known_at Int64, "
            + ", ".join(f"{name} {type_}" for name, type_ in columns.items())
            + ", index slice timestamp type minmax) engine = MergeTree order by (place, row) settings "
            "max_bytes_to_merge_at_max_space_in_pool = 1, max_bytes_to_merge_at_min_space_in_pool = 1, "
            "parts_to_delay_insert = 1000000, parts_to_throw_insert = 1000000"
        )

    def _send(self, kind: Kind) -> None:
        buffer = self._buffers[kind]
        if not buffer.rows:
            return
        if self._sent is not None:
            self._sent.result()
        self._sent = self._sender.submit(self._insert, kind, buffer.columns)
        self._buffers[kind] = _Buffer()

    def _insert(self, kind: Kind, parts: list[dict[str, npt.NDArray[Any]]]) -> None:
        columns = list(parts[0])
        self._store.bulk.execute(
            f"insert into {_private(self.load_id, kind)} ({names(columns)}) values",
            [np.concatenate([part[name] for part in parts]) for name in columns],
            columnar=True,
            settings={"async_insert": 0},
        )

    def _send_rejects(self) -> None:
        if not self._refused:
            return
        self._store.plain.execute(
            f"insert into {_private(self.load_id, 'quarantine')} "
            "(kind, data_source, file, line, field, reason_code, reason, raw) values",
            [
                (
                    r.kind,
                    self._data_source,
                    r.file,
                    r.line,
                    r.field,
                    r.reason.partition(":")[0],
                    _storable(r.reason),
                    _storable(r.raw),
                )
                for r in self._refused
            ],
            settings={"async_insert": 0},
        )
        self._refused = []


def _checks(
    kind: Kind, columns: dict[str, npt.NDArray[Any]], texts: dict[str, list[str]], unknown: Mask
) -> Iterator[tuple[str, Mask, Callable[[int], str]]]:
    """(field, rows at fault, the reason of row i): of several, the first gives a row's reason."""

    def text(name: str, i: int) -> str:
        return texts[name][int(columns[name][i])]

    def of(name: str, template: str) -> Callable[[int], str]:
        return lambda i: template.format(columns[name][i])

    market_types = np.array([m in MARKET_TYPES for m in texts["market_type"]], dtype=np.bool_)
    yield (
        "market_type",
        ~market_types[columns["market_type"]],
        lambda i: f"unknown_market_type: {text('market_type', i)!r} is none of {', '.join(MARKET_TYPES)}",
    )
    yield (
        "symbol",
        unknown,
        lambda i: (
            f"unknown_symbol: {' '.join(text(name, i) for name in INSTRUMENT)}: "
            "add it to seeds/instruments.csv, then load with --again"
        ),
    )
    for name, type_ in _types(kind).items():
        values = columns[name]
        match type_:
            case "time" | "time?":
                bad = (values < EARLIEST) | (values >= LATEST)
                if type_ == "time?":
                    bad &= values != NO_TIME
                yield name, bad, of(name, "out_of_range: {} µs is not in the years 2000 to 2099")
            case "e8":
                bad = (values > LIMIT) | (values < -LIMIT)
                yield name, bad, of(name, "out_of_range: {}e-8 does not fit Decimal(18,8)")
            case "wide":
                yield name, _not_wide(values), of(name, "bad_number: {!r} does not fit Decimal(38,8)")
            case "uint64":
                yield name, values < 0, of(name, "out_of_range: {} is below zero")
    for name, code in POSITIVE.get(kind, {}).items():
        yield name, columns[name] <= 0, of(name, code + ": {}e-8 is not above zero")
    if kind == "trades":
        yield "trade_id", columns["trade_id"] == "", lambda _: "missing_field: a trade without an id"
    if "side" in columns:
        sides = np.array([side in ("buy", "sell") for side in texts["side"]], dtype=np.bool_)
        yield (
            "side",
            ~sides[columns["side"]],
            lambda i: f"bad_side: {text('side', i)!r} is neither buy nor sell",
        )
    if kind == "orderbooks":
        bid, ask = columns["best_bid_price"], columns["best_ask_price"]
        for name in ("best_bid_price", "best_ask_price", "best_bid_quantity", "best_ask_quantity"):
            yield name, columns[name] < 0, of(name, "out_of_range: {}e-8 is below zero")
        yield (
            "best_bid_price",
            (bid != 0) & (ask != 0) & (bid >= ask),
            lambda i: f"crossed_book: bid {bid[i]}e-8 is not below ask {ask[i]}e-8",
        )


def _types(kind: Kind) -> dict[str, Column]:
    """All columns of a kind as they go over the wire."""
    return {
        **INSTRUMENT,
        "timestamp": "time",
        **COLUMNS[kind],
        "received_at": "time?",
        "data_source": "string",
    }


def _checked(batch: Batch, types: dict[str, Column], data_source: str) -> dict[str, npt.NDArray[Any]]:
    """The batch's columns as they are sent, or what is wrong with the reader that made them.

    A batch without `data_source` has the reader's.
    """
    given = dict(batch.columns)
    if "data_source" not in given:
        given["data_source"] = np.full(len(batch), data_source, dtype=np.object_)
    if given.keys() != types.keys():
        odd = ", ".join(sorted(given.keys() ^ types.keys()))
        raise TypeError(f"a batch of {batch.kind} has columns too few or too many: {odd}")
    columns: dict[str, npt.NDArray[Any]] = {}
    for name, type_ in types.items():
        values = given[name]
        if len(values) != len(batch):
            raise TypeError(f"{batch.kind}.{name}: {len(values)} values for {len(batch)} lines")
        if type_ in ("string", "wide"):
            columns[name] = values
        elif type_ == "date":
            columns[name] = values.astype("datetime64[D]").astype(np.int64).astype(np.uint16)
        elif values.dtype.kind in "iub":
            columns[name] = values
        else:
            raise TypeError(f"{batch.kind}.{name}: {values.dtype} is no integer type")
    return columns


def _encode(values: npt.NDArray[Any], column: str) -> tuple[Ints, list[str]]:
    """Texts, shape (n,), as numbers, shape (n,), into a list of the different ones."""
    if len(values) and isinstance(values[0], str) and np.all(values == values[0]):
        return np.zeros(len(values), dtype=np.int64), [str(values[0])]  # the usual case, twice as fast
    encoded = pa.array(values, type=pa.string()).dictionary_encode()
    if encoded.null_count:
        raise TypeError(f"{column}: a null where a text is needed")
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def _not_wide(values: npt.NDArray[Any]) -> Mask:
    """Which texts are no number that fits Decimal(38, 8) exactly (of 20 digits before the point at most)."""

    def fits(texts: pa.Array) -> bool:
        try:
            return bool(pc.cast(texts, pa.decimal128(38, 18)).cast(pa.decimal128(38, SCALE)).null_count == 0)
        except pa.ArrowInvalid:
            return False

    texts = pa.array(values, type=pa.string())
    if fits(texts):
        return np.zeros(len(values), dtype=np.bool_)
    return np.array([not fits(texts.slice(i, 1)) for i in range(len(texts))])


def _storable(text: str) -> str:
    """What a String column and this page can hold: no lone surrogates, not a whole file."""
    return text[:RAW_TEXT_LIMIT].encode("utf-8", "replace").decode()


# --- step 2: plan --------------------------------------------------------------------------------------


def _plan(store: Store, stage: _Stage) -> tuple[list[tuple[Kind, int, int]], dict[str, int], dict[str, int]]:
    """Fills the `_new` tables. Returns the moves, and per kind the rows that are new and that are not."""
    moves: list[tuple[Kind, int, int]] = []
    new: dict[str, int] = {}
    duplicates: dict[str, int] = {}
    for kind in stage.kinds():
        staged = _private(stage.load_id, kind)
        fresh = _private(stage.load_id, f"{kind}_new")
        key = _sorting_key(store, kind)
        # A copy of the raw table, constraints included: what would break a move breaks here.
        store.run(f"create table {fresh} as {kind} engine = MergeTree order by ({key})")
        total = 0
        for low, high, rows in _slices(store, staged, SLICE_ROWS.get(kind, DEFAULT_SLICE_ROWS)):
            store.run(
                _conversion(stage, kind, low, high),
                **{**ONE_BLOCK, "max_threads": 0, "optimize_read_in_order": 1},
            )
            total += rows
            moves.append((kind, low, high))
        new[kind] = store.run(f"select count() from {fresh}")[0][0]
        duplicates[kind] = total - new[kind]
        if not new[kind]:
            moves = [move for move in moves if move[0] != kind]
    return moves, new, duplicates


def _slices(store: Store, staged: str, size: int) -> Iterator[tuple[int, int, int]]:
    """(first µs, last µs exclusive, rows): whole minutes with rows, about `size` rows together."""
    minutes = store.run(
        f"select intDiv(timestamp, {MINUTE_US}) as minute, count() from {staged} "
        "group by minute order by minute"
    )
    first, last, rows = 0, 0, 0
    for minute, count in minutes:
        if rows and rows + count > size:
            yield first * MINUTE_US, (last + 1) * MINUTE_US, rows
            rows = 0
        if not rows:
            first = minute
        last = minute
        rows += count
    if rows:
        yield first * MINUTE_US, (last + 1) * MINUTE_US, rows


def _conversion(stage: _Stage, kind: Kind, low: int, high: int) -> str:
    """The query that takes one slice from staged to new."""
    types = _types(kind)
    columns = [*types, "known_at"]
    natural = [*INSTRUMENT, *NATURAL_KEY[kind]]
    # The first by line, in the wire's terms. A stamp cut to ms stays in its second, and so in its slice.
    once = ", ".join(
        [f"s.{name}" for name in natural]
        + ([f"intDiv(s.timestamp, {SAME_TRADE_US})"] if kind == "trades" else [])
    )
    same = [f"f.{name} = o.{name}" for name in natural]
    margin = 0
    if kind == "trades":
        margin = SAME_TRADE_US
        same.append(
            "abs(toUnixTimestamp64Micro(f.timestamp) - toUnixTimestamp64Micro(o.timestamp)) "
            f"<= {SAME_TRADE_US}"
        )
    instruments = ", ".join(
        "(" + ", ".join(quote(part) for part in i) + ")" for i in sorted(stage.instruments[kind])
    )
    needed = ", ".join(dict.fromkeys([*natural, "timestamp"]))
    fresh = _private(stage.load_id, f"{kind}_new")
    return f"""
insert into {fresh} ({names(columns)})
with
    first_by_line as (
        select * from {_private(stage.load_id, kind)} as s
        where s.timestamp >= {low} and s.timestamp < {high}
        order by s.place, s.row
        limit 1 by {once}
    ),
    fresh as (
        select
            {", ".join(f"{_converted(stage, c, types)} as {c}" for c in columns)}
        from first_by_line as s
    )
select {", ".join(f"f.{c}" for c in columns)}
from fresh as f
left anti join (
    select {needed} from (
        select {needed} from {kind}
        union all
        select {needed} from {settings().database("cold")}.{kind}
    )
    where timestamp >= {_time(low - margin)} and timestamp < {_time(high + margin)}
        and (exchange, market_type, symbol) in ({instruments})
) as o on {" and ".join(same)}
"""


def _converted(stage: _Stage, column: str, types: dict[str, Column]) -> str:
    """A staged column as an expression of the raw table's type. Integers become decimals bit for bit."""
    if column in CODED:
        texts = ", ".join(quote(text) for text in stage.codes[column])
        return f"toLowCardinality([{texts}][s.{column} + 1])"
    match types.get(column, "time"):  # known_at is the loader's own
        case "time":
            return f"fromUnixTimestamp64Micro(s.{column}, 'UTC')"
        case "time?":
            return f"if(s.{column} = {NO_TIME}, null, fromUnixTimestamp64Micro(s.{column}, 'UTC'))"
        case "e8":
            return f"reinterpret(s.{column}, 'Decimal(18, {SCALE})')"
        case "wide":
            return f"toDecimal128(s.{column}, {SCALE})"
        case "date":
            return f"toDate(s.{column})"
        case _:
            return f"s.{column}"


def _time(microseconds: int) -> str:
    return f"fromUnixTimestamp64Micro(toInt64({microseconds}), 'UTC')"


def _sorting_key(store: Store, table: str) -> str:
    # on a cluster `table` is Distributed, and has none
    found = store.run(
        f"select sorting_key from system.tables where database = {quote(store.database)} "
        f"and name in ({quote(table)}, {quote(table + LOCAL)}) and sorting_key != ''"
    )
    if not found:
        raise UserError(f"no table {store.database}.{table}: run `make migrate`")
    return str(found[0][0])


# --- step 3: move --------------------------------------------------------------------------------------


def recover(store: Store) -> dict[str, LoadResult]:
    """Finishes the loads that were killed while they moved: load_id to result."""
    finished: dict[str, LoadResult] = {}
    for table in store.tables(r"^_load_[0-9a-f]{16}_journal$"):
        short = table.removeprefix("_load_").removesuffix("_journal")
        if store.read_journal(short) is not None:
            result = _move(store, short)
            finished[result.load_id] = result
    return finished


def _move(store: Store, load_id: str) -> LoadResult:
    """Carries out the journal's plan, from where it stands to the end."""
    read = store.read_journal(load_id)
    if read is None:
        raise RuntimeError(f"{_private(load_id, 'journal')} is empty")
    journal, done = read
    result = journal.result
    for step in range(done, len(journal.moves)):
        try:
            _move_slice(store, journal, step)
        except driver_errors.ServerException as e:
            raise UserError(
                f"the server refused rows of {', '.join(result.files)} for "
                f"{store.database}.{journal.moves[step][0]}: {_first_line(e)}. "
                "Mend the cause (a materialized view that fails?); the next load goes on from there. "
                f"To give the load up, drop the tables {_private(load_id)}_*, the journal first"
            ) from e
        store.note_step(load_id, step + 1)
    _move_rejects(store, result)
    _move_watermarks(store, journal)
    if not journal.again or any(result.rows.values()) or not store.is_loaded(result.load_id):
        _note_load(store, journal)
    store.drop_private(result.load_id)
    return result


def _move_slice(store: Store, journal: Journal, step: int) -> None:
    kind, low, high = journal.moves[step]
    columns = names([*_types(kind), "known_at"])
    store.run(
        f"insert into {kind} ({columns}) "
        f"select {columns} from {_private(journal.result.load_id, f'{kind}_new')} "
        f"where timestamp >= {_time(low)} and timestamp < {_time(high)} "
        f"order by {_sorting_key(store, kind)}",
        **ONE_BLOCK,
        insert_deduplication_token=f"{journal.result.load_id}:{kind}:{journal.token}:{step}",
    )


def _move_rejects(store: Store, result: LoadResult) -> None:
    """The load's lines in quarantine are those of its last run: it may know more instruments than before."""
    mine = f"load_id = {quote(result.load_id)}"
    if store.run(f"select count() from quarantine where {mine}")[0][0]:
        store.run(f"delete from quarantine where {mine}", lightweight_deletes_sync=2)
    columns = "kind, data_source, file, line, field, reason_code, reason, raw"
    store.run(
        f"insert into quarantine ({columns}, load_id) select {columns}, {quote(result.load_id)} "
        f"from {_private(result.load_id, 'quarantine')} "
        "order by kind, file, line, field, reason limit 1 by kind, file, line, field, reason",
        async_insert=0,
        # After a death in here the same rows come again, to a table they were deleted from.
        deduplicate_insert_select="disable",
    )


def _move_watermarks(store: Store, journal: Journal) -> None:
    there = {
        tuple(row)
        for row in store.run(
            "select kind, exchange, market_type, symbol, toUnixTimestamp64Micro(watermark) from watermarks "
            f"where load_id = {quote(journal.result.load_id)}"
        )
    }
    if missing := [mark for mark in journal.watermarks if mark not in there]:
        store.plain.execute(
            "insert into watermarks "
            "(kind, exchange, market_type, symbol, watermark, data_source, load_id) values",
            [
                (*mark[:4], _datetime(mark[4]), journal.result.data_source, journal.result.load_id)
                for mark in missing
            ],
            settings={"async_insert": 0},
        )


def _note_load(store: Store, journal: Journal) -> None:
    result = journal.result
    store.plain.execute(
        "insert into loads (load_id, files, data_source, rows_loaded, rows_duplicate, rows_rejected, notes, "
        "started_at) values",
        [
            (
                result.load_id,
                result.files,
                result.data_source,
                result.rows,
                result.duplicates,
                result.rejected,
                result.notes,
                datetime.fromtimestamp(journal.started_at, UTC),
            )
        ],
        settings={"async_insert": 0},
    )


def _datetime(microseconds: int) -> datetime:
    """Exact, unlike fromtimestamp of a float."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


def _first_line(error: driver_errors.ServerException) -> str:
    return str(error.message).split(" Stack trace:")[0].splitlines()[0]
