"""Reads the last rows of each instrument of one public relation, in one query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from time import perf_counter_ns
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from python_udfs import db
from python_udfs.errors import UserError

Floats = npt.NDArray[np.float32]
Execute = Callable[[str, dict[str, Any] | None], list[Any]]
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


class Row(NamedTuple):
    """A row of the relation: its bucket, and its features in the relation's order."""

    bucket_id: int
    bucket_ts_start: datetime
    bucket_ts_end: datetime
    features: list[float]


class Relation:
    """The columns of one relation that the models in use read between them, and as many rows as the longest window.

    Attributes:
        table: its name in the features database.
        features: the columns read.
        window: how many rows of an instrument are read.
    """

    def __init__(self, execute: Execute, table: str, features: Sequence[str], window: int) -> None:
        self.table, self.features, self.window = table, list(features), window
        self._execute = execute
        # the oldest row read of each instrument, so that the next read starts there
        self._seen: dict[Instrument, int] = {}
        self._known: tuple[int, list[Instrument]] | None = None
        inputs = ", ".join(f"toFloat32(ifNull({db.names([name])}, nan))" for name in self.features)
        self._select = f"select {_KEY}, bucket_id, bucket_ts_start, bucket_ts_end, [{inputs}] from {table}"

    def instruments(self) -> list[Instrument]:
        """Every instrument that has a bucket, by name; read again when the list is older than a minute."""
        if self._known is None or perf_counter_ns() - self._known[0] > _LIST_AGE_S * 1e9:
            found = self._execute(f"select distinct {_KEY} from {self.table} order by {_KEY}", None)
            self._known = perf_counter_ns(), [Instrument(*key) for key in found]
        return self._known[1]

    def newest(self) -> datetime | None:
        """The end of the newest bucket of any instrument; None: there is no bucket."""
        [(n, end)] = self._execute(
            f"select count(), max(bucket_ts_end) from {self.table} "
            f"where bucket_ts_start >= (select max(bucket_ts_start) from {self.table}) - toIntervalDay(1)",
            None,
        )
        return end if n else None

    def read(
        self, wanted: Sequence[Instrument], as_of: datetime | None = None
    ) -> dict[Instrument, list[Row]]:
        """The last rows, the oldest first, of each instrument that has one: `window` of them, or all there are.

        Where each was seen before this is one query, which starts at the rows seen. Those that fell behind are
        read apart: the others would all be read from as far back. What was not seen before, or has fewer rows
        than the window, is looked up, first in the last hour of data, then (windows) in the last day, then in
        all of it; so is everything at an as_of.
        """
        found: dict[Instrument, list[Row]] = {}
        seen = {i: self._seen[i] for i in wanted if i in self._seen} if as_of is None else {}
        edge = max(seen.values(), default=0) - _RECENT_S * _IDS_PER_ANCHOR
        for group in ([i for i in seen if seen[i] >= edge], [i for i in seen if seen[i] < edge]):
            if group:
                first = min(seen[i] for i in group)
                found |= self._rows(
                    group,
                    # the second condition says nothing new: it lets ClickHouse skip whole days
                    "bucket_id >= %(first)s and bucket_ts_start >= toDateTime64(%(anchor)s, 6, 'UTC')",
                    {"first": first, "anchor": first // _IDS_PER_ANCHOR},
                )
        until = "bucket_ts_end <= fromUnixTimestamp64Micro(%(as_of)s, 'UTC')" if as_of else "true"
        newest = f"(select max(bucket_ts_start) from {self.table})"
        if as_of:
            newest = f"least({newest}, fromUnixTimestamp64Micro(%(as_of)s, 'UTC'))"
        for seconds in (_RECENT_S, 86_400 if self.window > 1 else 0, None):
            rest = [i for i in wanted if len(found.get(i, ())) < self.window]
            if rest and seconds != 0:
                since = (
                    "true"
                    if seconds is None
                    else f"bucket_ts_start >= {newest} - toIntervalSecond({seconds})"
                )
                found |= self._rows(
                    rest,
                    # the ids first, without the other columns of all those rows
                    f"({_KEY}, bucket_id) in (select {_KEY}, bucket_id from {self.table} "
                    f"where ({_KEY}) in %(instruments)s and {since} and {until} "
                    f"order by bucket_id desc limit {self.window} by {_KEY}) and {since}",
                    {"as_of": as_of and (as_of - _EPOCH) // timedelta(microseconds=1)},
                )
        if as_of is None:
            self._seen |= {i: rows[0].bucket_id for i, rows in found.items()}
        return found

    def _rows(
        self, instruments: list[Instrument], condition: str, parameters: dict[str, Any]
    ) -> dict[Instrument, list[Row]]:
        """The last rows of each of these instruments among those that meet the condition, the oldest first."""
        found = self._execute(
            f"{self._select} where ({_KEY}) in %(instruments)s and {condition} "
            f"order by bucket_id desc limit {self.window} by {_KEY}",
            {"instruments": [tuple(i) for i in instruments], **parameters},
        )
        rows: dict[Instrument, list[Row]] = {}
        for exchange, market_type, symbol, *row in reversed(found):
            rows.setdefault(Instrument(exchange, market_type, symbol), []).append(Row(*row))
        return rows


def block(rows: Sequence[Sequence[Row]], window: int, width: int, max_gap_s: float) -> Floats:
    """The rows of n instruments as one array (n, window, width), the latest last; what is not there is NaN.

    Rows before a silence between two buckets longer than `max_gap_s` are left out, as in training: they tell of another
    time (`training.sequences.first_rows`).
    Infinities become the one NaN that a hash can know.
    """
    if window == 1:
        inputs = np.array([r[-1].features for r in rows], dtype=np.float32).reshape(len(rows), 1, width)
    else:
        gap = timedelta(seconds=max_gap_s)
        inputs = np.full((len(rows), window, width), np.nan, dtype=np.float32)
        for i, all_rows in enumerate(rows):
            last = all_rows[-window:]
            first = len(last) - 1
            while first and last[first].bucket_ts_start - last[first - 1].bucket_ts_end <= gap:
                first -= 1
            inputs[i, window - len(last) + first :] = [row.features for row in last[first:]]
    inputs[~np.isfinite(inputs)] = np.nan
    return inputs
