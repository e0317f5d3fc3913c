"""Assembly of training sets: to each labelled row the last features known as of it, by us and by others.

One question for all, on made-up rows. The clock is `known_at`: Feast compares event times alone unless told otherwise, so
that is the event time it is given. A value known at the as_of itself counts; one whose event is older than MAX_LAG_MS is
missing. Here none is that old, and none is wanted before its instrument's first: Feast's file store drops such
rows, which would be another answer. Results are compared with numpy's before any time counts.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from jinja2 import Environment
from rich.console import Console
from rich.table import Table

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.jobs.bench.environment import THREADS, run_peer
from python_udfs.jobs.bench.figures import Aim, first_difference, ratio, timed, times
from python_udfs.settings import REPOSITORY, settings

Floats = npt.NDArray[np.float64]
Micros = npt.NDArray[np.int64]

MAX_LAG_MS: Final = 3_600_000
KNOWN_LAG_MS: Final = 250
_START_US: Final = 1_700_000_000_000_000
_KEYS: Final = ("exchange", "market_type", "symbol")
_OURS: Final = "ClickHouse"


@dataclass(frozen=True)
class Question:
    """n labelled rows and m feature rows of k columns. Both by instrument, then by time; times in microseconds UTC."""

    names: list[str]  # [k]
    entity_instrument: Micros  # [n]
    as_of: Micros  # [n], each once in an instrument
    label: npt.NDArray[np.int8]  # [n]
    feature_instrument: Micros  # [m]
    timestamp: Micros  # [m]
    known_at: Micros  # [m], each once in an instrument
    features: Floats  # [m, k]

    @classmethod
    def made(cls, rows: int, columns: int, instruments: int, seed: int = 20261121) -> Question:
        """As many feature rows as labelled ones, one every ten seconds on average; one as_of in ten is a known_at.

        Labelled rows that fall on one instant of an instrument are one, so there may be a few less than `rows`.
        """
        rng = np.random.default_rng(seed)
        each = max(rows // instruments, 2)
        gaps = rng.integers(1, 20_000_000, (instruments, each))
        known = _START_US + KNOWN_LAG_MS * 1000 + np.cumsum(gaps, axis=1)
        as_of = rng.integers(known[:, :1], known[:, -1:] + 20_000_000, (instruments, each))
        as_of[:, ::10] = known[:, ::10]
        entities = [np.unique(x) for x in as_of]
        known_at = known.ravel()
        return cls(
            names=[f"f{i:02d}" for i in range(columns)],
            entity_instrument=np.repeat(np.arange(instruments), [len(x) for x in entities]),
            as_of=np.concatenate(entities),
            label=rng.integers(-1, 2, sum(map(len, entities))).astype(np.int8),
            feature_instrument=np.repeat(np.arange(instruments), each),
            timestamp=known_at - KNOWN_LAG_MS * 1000,
            known_at=known_at,
            features=rng.normal(size=(instruments * each, columns)),
        )

    def answer(self) -> Floats:
        """By numpy: the row's number and its features [n, 1 + k]; NaN where none is known, or it is too old."""
        out = np.full((len(self.as_of), 1 + len(self.names)), np.nan)
        out[:, 0] = np.arange(len(out))
        for instrument in np.unique(self.entity_instrument):
            mine = np.flatnonzero(self.entity_instrument == instrument)
            theirs = np.flatnonzero(self.feature_instrument == instrument)
            last = np.searchsorted(self.known_at[theirs], self.as_of[mine], side="right") - 1
            there = last >= 0
            mine, found = mine[there], theirs[last[there]]
            fresh = self.timestamp[found] >= self.as_of[mine] - MAX_LAG_MS * 1000
            out[mine[fresh], 1:] = self.features[found[fresh]]
        return out

    def write(self, folder: Path) -> None:
        """entities.parquet, features.parquet and question.json, for the peers."""
        import polars as pl

        def keys(instrument: Micros) -> dict[str, Any]:
            return {
                "exchange": pl.repeat("bench", len(instrument), eager=True),
                "market_type": pl.repeat("spot", len(instrument), eager=True),
                "symbol": pl.Series([f"S{i:03d}" for i in range(int(instrument.max()) + 1)]).gather(
                    instrument
                ),
            }

        utc = pl.Datetime("us", "UTC")
        pl.DataFrame(
            {
                "row": np.arange(len(self.as_of)),
                **keys(self.entity_instrument),
                "as_of": pl.Series(self.as_of).cast(utc),
                "label": self.label,
            }
        ).write_parquet(folder / "entities.parquet")
        pl.DataFrame(
            {
                **keys(self.feature_instrument),
                "timestamp": pl.Series(self.timestamp).cast(utc),
                "known_at": pl.Series(self.known_at).cast(utc),
                **{name: self.features[:, i] for i, name in enumerate(self.names)},
            }
        ).write_parquet(folder / "features.parquet")
        (folder / "question.json").write_text(
            json.dumps({"columns": self.names, "max_lag_ms": MAX_LAG_MS, "known_lag_ms": KNOWN_LAG_MS})
        )

    def load(self) -> None:
        """The same rows as tables of the features database: bench_entities and bench_features."""
        keys = ", ".join(f"{k} LowCardinality(String)" for k in _KEYS)
        features = {name: self.features[:, i].copy() for i, name in enumerate(self.names)}
        tables: dict[str, tuple[str, str, Micros, dict[str, npt.NDArray[Any]]]] = {
            "bench_entities": (
                f"row UInt64, {keys}, as_of DateTime64(6, 'UTC'), label Int8",
                "as_of",
                self.entity_instrument,
                {
                    "row": np.arange(len(self.as_of), dtype=np.uint64),
                    "as_of": self.as_of,
                    "label": self.label,
                },
            ),
            "bench_features": (
                f"{keys}, timestamp DateTime64(6, 'UTC'), known_at DateTime64(6, 'UTC'), "
                + ", ".join(f"{name} Float64" for name in self.names),
                "known_at",
                self.feature_instrument,
                {"timestamp": self.timestamp, "known_at": self.known_at, **features},
            ),
        }
        with db.connect(settings().database("features"), use_numpy=True) as c:
            for table, (columns, clock, instrument, values) in tables.items():
                # numbers go in as they are; the keys and times are made of them there
                raw = ", ".join(
                    f"{n} {'Int64' if n in ('as_of', 'timestamp', 'known_at') else _clickhouse_type(v)}"
                    for n, v in values.items()
                )
                c.execute(f"drop table if exists {table} sync")
                c.execute(f"drop table if exists {table}_raw sync")
                c.execute(f"create table {table}_raw (instrument Int64, {raw}) engine = Memory")
                c.execute(
                    f"insert into {table}_raw (instrument, {', '.join(values)}) values",
                    [instrument, *values.values()],
                    columnar=True,
                )
                c.execute(
                    f"create table {table} ({columns}) engine = MergeTree order by ({', '.join(_KEYS)}, {clock})"
                )
                named = ", ".join(
                    f"fromUnixTimestamp64Micro({n}, 'UTC')" if n in ("as_of", "timestamp", "known_at") else n
                    for n in values
                )
                c.execute(
                    f"insert into {table} ({', '.join([*_KEYS, *values])}) "
                    f"select 'bench', 'spot', concat('S', leftPad(toString(instrument), 3, '0')), {named} "
                    f"from {table}_raw"
                )
                c.execute(f"drop table {table}_raw sync")
                c.execute(f"optimize table {table} final")


def _clickhouse_type(values: npt.NDArray[Any]) -> str:
    return {"f": "Float", "i": "Int", "u": "UInt"}[values.dtype.kind] + str(values.dtype.itemsize * 8)


def as_of_sql(names: list[str]) -> str:
    """What the project's macro makes of the question: the text that dbt would run."""
    source = (REPOSITORY / "macros" / "time" / "as_of.sql").read_text()
    macro = Environment(autoescape=False).from_string(source).make_module().as_of  # type: ignore[attr-defined]
    return str(
        macro(
            "bench_entities",
            "bench_features",
            {n: n for n in names},
            MAX_LAG_MS,
            prefix="feature",
            at="as_of",
        )
    )


@dataclass(frozen=True)
class Measured:
    """Rows per second (medians) of one engine; None: not measured."""

    engine: str
    rows: int
    table: float | None
    numpy: float | None


def _per_second(rows: int, seconds: list[float]) -> float | None:
    return rows / statistics.median(seconds) if seconds else None


def ours(question: Question, expected: Floats, runs: int) -> Measured:
    """ClickHouse: from table to table (sorted, as dbt keeps it), and from table to numpy.

    Raises:
        UserError: its result is not the expected one.
    """
    question.load()
    sql, names = as_of_sql(question.names), question.names
    database = settings().database("features")
    # what the profile sets for every model
    with db.connect(database, use_numpy=True, max_threads=THREADS, join_use_nulls=1) as c:

        def to_table() -> None:
            c.execute(
                f"create table bench_training engine = MergeTree order by ({', '.join(_KEYS)}, as_of) as {sql}"
            )

        def to_numpy(source: str = f"({sql})") -> list[Any]:
            values = ", ".join(f"ifNull({n}, nan)" for n in names)
            found: list[Any] = c.execute(f"select row, {values} from {source}", columnar=True)
            return found

        drop = "drop table if exists bench_training sync"
        c.execute(drop)
        to_table()
        for source, what in (("bench_training", "table"), (f"({sql})", "numpy")):
            columns = to_numpy(source)
            found = np.column_stack([np.asarray(x, dtype=np.float64) for x in columns])
            _equal(f"{_OURS} to {what}", question, expected, found[np.argsort(found[:, 0])])
        table = timed(to_table, runs, before=lambda: c.execute(drop), warm_up=0) / 1000
        numpy = timed(to_numpy, runs, warm_up=0) / 1000
        n = len(expected)
        return Measured(_OURS, n, _per_second(n, table.tolist()), _per_second(n, numpy.tolist()))


def peer(
    name: str, python: Path, folder: Path, question: Question, expected: Floats, *, runs: int
) -> Measured:
    """What a peer needs for the question in that folder.

    Raises:
        UserError: it failed, or its result is not the expected one.
    """
    found = run_peer(python, name, str(folder), "--runs", str(runs))
    for path in found["results"]:
        _equal(Path(path).stem.removeprefix("result-"), question, expected, np.load(path))
    n = len(expected)
    engine = f"{name} {found['version']}"
    return Measured(engine, n, _per_second(n, found["table_s"]), _per_second(n, found["numpy_s"]))


def _equal(what: str, question: Question, expected: Floats, found: Floats) -> None:
    wrong = first_difference(expected, found, ["row", *question.names])
    if wrong:
        raise UserError(f"{what} gives another answer, so its time says nothing: {wrong}")


def assembly(
    console: Console,
    rows: int,
    feast_rows: int,
    *,
    runs: int,
    peers: Path | None,
    local: Path,
    columns: int = 16,
    instruments: int = 50,
) -> Iterator[Table | str | Aim]:
    """The tables, remarks and aims of this part.

    Args:
        rows: labelled rows, and feature rows.
        feast_rows: the same where Feast takes part: it joins every labelled row with every feature row of its
            instrument before it filters, so time and memory grow with the square.
        runs: of which the median is taken.
        peers: the interpreter with DuckDB and Feast; None: there is none.
        local: our own interpreter, which has polars.
    """
    measured: dict[int, list[Measured]] = {}
    for size, names in ((feast_rows, ("duckdb", "polars", "feast")), (rows, ("duckdb", "polars"))):
        if not size or size in measured:
            continue
        with tempfile.TemporaryDirectory(prefix="marketprism-bench-") as scratch:
            folder = Path(scratch)
            with console.status(f"assembly: {size:,} rows") as status:
                question = Question.made(size, columns, instruments)
                expected = question.answer()
                measured[size] = []
                status.update(f"assembly: {size:,} rows, ClickHouse")
                measured[size].append(ours(question, expected, runs))
                question.write(folder)
                for name in names:
                    python = local if name == "polars" else peers
                    if python is None:
                        continue
                    status.update(f"assembly: {size:,} rows, {name}")
                    try:
                        measured[size].append(peer(name, python, folder, question, expected, runs=runs))
                    except UserError as e:
                        yield str(e)
        yield _table(measured[size], columns, instruments)
    yield (
        "One clock for all: known_at <= as_of (Feast's event time is known_at), nothing older than "
        f"{MAX_LAG_MS // 60_000} minutes; each answer was equal to numpy's, bit for bit, before it was timed. "
        "Ours is the macro as_of. To a table: MergeTree, sorted; DuckDB database file; polars frame in memory. "
        f"To numpy: ClickHouse from its tables, the others from parquet. {THREADS} threads."
    )
    yield from aims(measured, feast_rows, rows)


def aims(measured: dict[int, list[Measured]], feast_rows: int, rows: int) -> Iterator[Aim]:
    """What was promised, from the sizes measured: five times Feast, and not slower than DuckDB."""

    def of(size: int, engine: str) -> Measured | None:
        return next((m for m in measured.get(size, []) if m.engine.startswith(engine)), None)

    def numpy(m: Measured | None) -> float | None:
        return m.numpy if m else None

    def table(m: Measured | None) -> float | None:
        return m.table if m else None

    us, feast = of(feast_rows, _OURS), of(feast_rows, "feast")
    yield Aim("assembly against Feast, to numpy", 5, "x", ratio(numpy(us), numpy(feast)), at_least=True)
    us, duck = of(rows, _OURS), of(rows, "duckdb")
    yield Aim("assembly against DuckDB, table to table", 1, "x", ratio(table(us), table(duck)), at_least=True)
    yield Aim("assembly against DuckDB, to numpy", 1, "x", ratio(numpy(us), numpy(duck)), at_least=True)


def _table(found: list[Measured], columns: int, instruments: int) -> Table:
    us = found[0]
    table = Table(
        title=f"training-set assembly: {us.rows:,} labelled and as many feature rows, "
        f"{columns} columns, {instruments} instruments"
    )
    for name in ("engine", "to a table, rows/s", "we are", "to numpy, rows/s", "we are"):
        table.add_column(name, justify="left" if name == "engine" else "right")
    for m in found:
        cells = []
        for rate, mine in ((m.table, us.table), (m.numpy, us.numpy)):
            cells += [
                "-" if rate is None or math.isnan(rate) else f"{rate:,.0f}",
                "" if m is us else times(ratio(mine, rate)),
            ]
        table.add_row(m.engine, *cells)
    return table
