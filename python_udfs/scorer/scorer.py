"""Scores the latest bucket of each instrument with an exported model: `Scorer` for use in a program."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Final, NamedTuple, Self
from uuid import UUID, uuid4

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from clickhouse_driver import errors as driver_errors

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.scorer.card import INPUT, OUTPUT, check_contract, load_model
from python_udfs.settings import settings

# bucket_id = anchor in unix seconds * this + sequence
_IDS_PER_ANCHOR: Final = 100_000
_RECENT_S: Final = 3600
_LIST_AGE_S: Final = 60
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_KEY: Final = "exchange, market_type, symbol"


class Instrument(NamedTuple):
    """What a bucket belongs to."""

    exchange: str
    market_type: str
    symbol: str

    @classmethod
    def parse(cls, text: str) -> Instrument:
        """From `exchange:market_type:symbol`; the symbol may have colons of its own.

        Raises:
            UserError: there are not three parts.
        """
        parts = text.split(":", 2)
        if len(parts) != 3 or not all(parts):
            raise UserError(f"{text!r} is no instrument: write exchange:market_type:symbol")
        return cls(*parts)

    def __str__(self) -> str:
        return ":".join(self)


class Prediction(NamedTuple):
    """A row of `predictions`, named like its columns. Rows of one call share request id and latency parts."""

    request_id: UUID
    predicted_at: datetime
    exchange: str
    market_type: str
    symbol: str
    bucket_id: int
    bucket_ts_end: datetime
    model_name: str
    model_version: str
    feature_vector_version: int
    feature_hash: str
    missing_features: int
    stale: bool
    age_ms: int
    probabilities: list[float]
    score: float
    read_us: int
    prepare_us: int
    run_us: int
    total_us: int


class _Row(NamedTuple):
    bucket_id: int
    bucket_ts_end: datetime
    features: list[float]


class Scorer:
    """A loaded model with a database connection. Not for use by several threads at once.

    Attributes:
        card: the model's card.
    """

    def __init__(self, folder: Path, *, max_age_s: float = 60.0, threads: int = 1) -> None:
        """Loads the model and compares its card with the live contract.

        Args:
            folder: with model.onnx and card.json.
            max_age_s: a row whose bucket ended longer ago is marked stale.
            threads: intra-op threads of the ONNX runtime; one is best for few rows.

        Raises:
            UserError: no model there, files that do not belong together, a card that does not fit the live
                feature_vector, or no database.
        """
        self.card, onnx = load_model(folder)
        self._max_age = timedelta(seconds=max_age_s)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self._session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        width = self._session.get_inputs()[0].shape[1]
        if width != len(self.card.features):
            raise UserError(
                f"{folder}: the ONNX model takes {width} inputs, its card names {len(self.card.features)}"
            )
        self._weights = np.sign(np.array(self.card.classes, dtype=np.float32))
        self._table = f"feature_vector_v{self.card.feature_vector_version}"
        # the latest bucket seen of each instrument, so that the next read starts there
        self._seen: dict[Instrument, int] = {}
        self._known: tuple[int, list[Instrument]] | None = None
        with ExitStack() as stack:
            self._c = stack.enter_context(db.connect(settings().database("features")))
            check_contract(self._c, self.card)
            self.close = stack.pop_all().close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reconnect(self) -> None:
        """Drops the connection, after a network error; the next call makes a new one."""
        self._c.disconnect()

    def score(
        self,
        instruments: Iterable[Instrument] | None = None,
        *,
        as_of: datetime | None = None,
        write: bool = True,
    ) -> list[Prediction]:
        """Scores the latest bucket of each instrument, in one model run.

        Args:
            instruments: which; None for every one that has a bucket.
            as_of: the time to score at, with a zone: buckets that end later are not seen, and ages count from
                it. None: now.
            write: also insert into `predictions`, in one insert.

        Returns:
            One prediction per instrument, in the order asked for (None: by name). Stale ones are marked.

        Raises:
            UserError: an instrument has no bucket (then nothing is written), there is none at all, or the
                live feature_vector no longer fits the card.
        """
        if as_of is not None and as_of.tzinfo is None:
            raise UserError(f"as_of {as_of} has no time zone: add one, such as +00:00")
        started = perf_counter_ns()
        wanted = self._instruments() if instruments is None else list(dict.fromkeys(instruments))
        latest = self.read_latest(wanted, as_of) if wanted else {}
        rows = {i: latest[i] for i in wanted if i in latest}
        read = perf_counter_ns()
        if not rows or (instruments is not None and len(rows) < len(wanted)):
            raise self._unknown([i for i in wanted if i not in rows], self._instruments())
        inputs = np.array([row.features for row in rows.values()], dtype=np.float32)
        inputs[~np.isfinite(inputs)] = np.nan  # one kind of NaN: the hash must not tell them apart
        missing = np.isnan(inputs).sum(axis=1).tolist()
        hashes = [hashlib.sha256(row.tobytes()).hexdigest() for row in inputs]
        prepared = perf_counter_ns()
        probabilities = self.run(inputs)
        scores = (probabilities @ self._weights).tolist()
        done = perf_counter_ns()
        parts = ((started, read), (read, prepared), (prepared, done), (started, done))
        latency = [(end - begin) // 1000 for begin, end in parts]
        request, now = uuid4(), as_of or datetime.now(UTC)
        predictions = [
            Prediction(
                request,
                now,
                *instrument,
                row.bucket_id,
                row.bucket_ts_end,
                self.card.name,
                self.card.version,
                self.card.feature_vector_version,
                hashes[i],
                missing[i],
                now - row.bucket_ts_end > self._max_age,
                (now - row.bucket_ts_end) // timedelta(milliseconds=1),
                probabilities[i].tolist(),
                scores[i],
                *latency,
            )
            for i, (instrument, row) in enumerate(rows.items())
        ]
        if write:
            self._write(predictions)
        return predictions

    def run(self, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The model alone: inputs of shape (n, features) in the card's order to probabilities (n, classes)."""
        probabilities: npt.NDArray[np.float32] = self._session.run([OUTPUT], {INPUT: inputs})[0]
        return probabilities

    def newest(self) -> datetime:
        """The end of the newest bucket of any instrument: the present of recorded data.

        Raises:
            UserError: there is no bucket.
        """
        [(n, end)] = self._execute(
            f"select count(), max(bucket_ts_end) from {self._table} "
            f"where bucket_ts_start >= (select max(bucket_ts_start) from {self._table}) - toIntervalDay(1)"
        )
        if not n:
            raise self._unknown([], [])
        return end  # type: ignore[no-any-return]

    def _instruments(self) -> list[Instrument]:
        """Every instrument that has a bucket, by name; read again when the list is older than a minute."""
        if self._known is None or perf_counter_ns() - self._known[0] > _LIST_AGE_S * 1e9:
            found = self._execute(f"select distinct {_KEY} from {self._table} order by {_KEY}")
            self._known = perf_counter_ns(), [Instrument(*key) for key in found]
        return self._known[1]

    def read_latest(self, wanted: list[Instrument], as_of: datetime | None = None) -> dict[Instrument, _Row]:
        """The last row of each instrument that has one.

        Where each was seen before this is one query, which starts at the buckets seen. Those that fell behind
        are read apart: the others would all be read from as far back. What was not seen before is looked up,
        first in the last hour of data, then in all of it; so is everything at an as_of.
        """
        found: dict[Instrument, _Row] = {}
        seen = {i: self._seen[i] for i in wanted if i in self._seen} if as_of is None else {}
        edge = max(seen.values(), default=0) - _RECENT_S * _IDS_PER_ANCHOR
        for group in ([i for i in seen if seen[i] >= edge], [i for i in seen if seen[i] < edge]):
            if group:
                first = min(seen[i] for i in group)
                found |= self._read(
                    group,
                    # the second condition says nothing new: it lets ClickHouse skip whole days
                    "bucket_id >= %(first)s and bucket_ts_start >= toDateTime64(%(anchor)s, 6, 'UTC')",
                    {"first": first, "anchor": first // _IDS_PER_ANCHOR},
                )
        until = "bucket_ts_end <= fromUnixTimestamp64Micro(%(as_of)s, 'UTC')" if as_of else "true"
        newest = f"(select max(bucket_ts_start) from {self._table})"
        if as_of:
            newest = f"least({newest}, fromUnixTimestamp64Micro(%(as_of)s, 'UTC'))"
        for window in (f"bucket_ts_start >= {newest} - toIntervalSecond({_RECENT_S})", "true"):
            rest = [i for i in wanted if i not in found]
            if rest:
                found |= self._read(
                    rest,
                    # the ids first, without the other columns of all those rows
                    f"({_KEY}, bucket_id) in (select {_KEY}, max(bucket_id) from {self._table} "
                    f"where ({_KEY}) in %(instruments)s and {window} and {until} "
                    f"group by {_KEY}) and {window}",
                    {"as_of": as_of and (as_of - _EPOCH) // timedelta(microseconds=1)},
                )
        if as_of is None:
            self._seen |= {i: row.bucket_id for i, row in found.items()}
        return found

    def _read(
        self, instruments: list[Instrument], condition: str, parameters: dict[str, Any]
    ) -> dict[Instrument, _Row]:
        """The last row of each of these instruments among those that meet the condition."""
        inputs = ", ".join(f"toFloat32(ifNull({db.names([name])}, nan))" for name in self.card.features)
        found = self._execute(
            f"select {_KEY}, bucket_id, bucket_ts_end, [{inputs}] from {self._table} "
            f"where ({_KEY}) in %(instruments)s and {condition} order by bucket_id desc limit 1 by {_KEY}",
            {"instruments": [tuple(i) for i in instruments], **parameters},
        )
        return {Instrument(*row[:3]): _Row(*row[3:]) for row in found}

    def _execute(self, query: str, parameters: dict[str, Any] | None = None) -> list[Any]:
        try:
            return self._c.execute(query, parameters)  # type: ignore[no-any-return]
        except driver_errors.ServerException as e:
            # most likely the table was rebuilt in another shape meanwhile: that has a better message
            check_contract(self._c, self.card)
            raise UserError(f"ClickHouse refuses to read {self._table}: {_message(e)}") from e

    def _write(self, predictions: list[Prediction]) -> None:
        table = f"{db.names([settings().database('serving')])}.predictions"
        try:
            self._c.execute(f"insert into {table} ({', '.join(Prediction._fields)}) values", predictions)
        except driver_errors.ServerException as e:
            raise UserError(f"cannot write to {table}: {_message(e)}. Did you run `make migrate`?") from e

    def _unknown(self, unknown: list[Instrument], known: list[Instrument]) -> UserError:
        if not known:
            return UserError(
                f"{settings().database('features')}.{self._table} has no bucket: "
                "ingest data, then run `make build`"
            )
        names = [str(i) for i in known]
        near = [n for i in unknown for n in difflib.get_close_matches(str(i), names, n=2, cutoff=0.6)]
        hint = (
            f"did you mean {', '.join(dict.fromkeys(near))}?" if near else f"there is {', '.join(names[:8])}"
        )
        return UserError(f"no bucket of {', '.join(map(str, unknown))} at that time: {hint}")


def _message(e: driver_errors.ServerException) -> str:
    """The first line of what the server said."""
    return str(e.message).split("Stack trace")[0].strip()
