"""Reads the last rows of each instrument of one public relation, in one query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from time import perf_counter_ns
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from python_udfs import db
from python_udfs.errors import UserError

Floats = npt.NDArray[np.float32]
Execute = Callable[[str, dict[str, Any] | None], list[Any]]
Columns = Callable[[str, dict[str, Any] | None], list[npt.NDArray[Any]]]
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


class Rows(NamedTuple):
    """Rows of one instrument, at least one, the oldest first: their buckets, and features in the relation's order."""

    bucket_id: npt.NDArray[np.uint64]  # [n]
    start_us: npt.NDArray[np.int64]  # [n], UTC
    end_us: npt.NDArray[np.int64]  # [n]
    features: Floats  # [n, k], NaN where missing

    @property
    def last_bucket(self) -> int:
        return int(self.bucket_id[-1])

    @property
    def last_end(self) -> datetime:
        return _EPOCH + timedelta(microseconds=int(self.end_us[-1]))


class Relation:
    """The columns of one relation that the models in use read between them, and as many rows as the longest window.

    Attributes:
        table: its name in the features database.
        features: the columns read.
        window: how many rows of an instrument are read.
    """

    def __init__(
        self, execute: Execute, columns: Columns, table: str, features: Sequence[str], window: int
    ) -> None:
        """execute: runs a query, to rows; columns: to arrays, a column each, none where there is no row."""
        self.table, self.features, self.window = table, list(features), window
        self._execute, self._columns = execute, columns
        # the oldest row read of each instrument, so that the next read starts there
        self._seen: dict[Instrument, int] = {}
        self._known: tuple[int, list[Instrument]] | None = None
        # columns, not one array: the driver turns a column into numpy at once, and an array value by value
        inputs = ", ".join(f"toFloat32(ifNull({db.names([name])}, nan))" for name in self.features)
        self._select = (
            "select indexOf(%(instruments)s, (toString(exchange), toString(market_type), toString(symbol))) as place, "
            "bucket_id, toUnixTimestamp64Micro(bucket_ts_start), toUnixTimestamp64Micro(bucket_ts_end), "
            f"{inputs} from {table}"
        )

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

    def read(self, wanted: Sequence[Instrument], as_of: datetime | None = None) -> dict[Instrument, Rows]:
        """The last rows of each instrument that has one: `window` of them, or all there are.

        Where each was seen before this is one query, which starts at the rows seen. Those that fell behind are
        read apart: the others would all be read from as far back. What was not seen before, or has fewer rows
        than the window, is looked up, first in the last hour of data, then (windows) in the last day, then in
        all of it; so is everything at an as_of.
        """
        found: dict[Instrument, Rows] = {}
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
            rest = [i for i in wanted if i not in found or len(found[i].bucket_id) < self.window]
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
            self._seen |= {i: int(rows.bucket_id[0]) for i, rows in found.items()}
        return found

    def _rows(
        self, instruments: list[Instrument], condition: str, parameters: dict[str, Any]
    ) -> dict[Instrument, Rows]:
        """The last rows of each of these instruments among those that meet the condition."""
        found = self._columns(
            f"{self._select} where ({_KEY}) in %(instruments)s and {condition} "
            f"order by bucket_id desc limit {self.window} by {_KEY}",
            {"instruments": [tuple(i) for i in instruments], **parameters},
        )
        if not found:
            return {}
        place, bucket_id, *_ = found
        order = np.lexsort((bucket_id, place))
        place, bucket_id, start, end, *inputs = (column[order] for column in found)
        features = np.column_stack(inputs).astype(np.float32, copy=False)
        edges = np.flatnonzero(np.diff(place, prepend=0, append=len(instruments) + 1)).tolist()
        return {
            instruments[int(place[a]) - 1]: Rows(bucket_id[a:b], start[a:b], end[a:b], features[a:b])
            for a, b in pairwise(edges)
        }


def block(rows: Sequence[Rows], window: int, width: int, max_gap_s: float) -> Floats:
    """The rows of n instruments as one array (n, window, width), the latest last; what is not there is NaN.

    Rows before a silence between two buckets longer than `max_gap_s` are left out, as in training: they tell of another
    time (`training.sequences.first_rows`).
    Infinities become the one NaN that a hash can know.
    """
    inputs = np.full((len(rows), window, width), np.nan, dtype=np.float32)
    for i, of in enumerate(rows):
        silences = np.flatnonzero(of.start_us[1:] - of.end_us[:-1] > max_gap_s * 1e6) + 1
        first = max(silences[-1] if len(silences) else 0, len(of.end_us) - window)
        inputs[i, window - (len(of.end_us) - first) :] = of.features[first:]
    inputs[~np.isfinite(inputs)] = np.nan
    return inputs
