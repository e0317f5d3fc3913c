"""Windows of `sequence_inputs` for the labelled rows of `training_set`. Index arithmetic only: no feature is computed.

Every row is kept once; a window is gathered when a batch asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.scorer.card import KEYS, Column, live_columns
from python_udfs.settings import settings
from python_udfs.training.dataset import Label, parse_label

SOURCE: Final = "sequence_inputs"
WINDOW: Final = 60
MAX_GAP_S: Final = 3600.0
_GRAIN: Final = "exchange, market_type, symbol, bucket_id"


def first_rows(
    instrument: npt.NDArray[np.int64],
    start: npt.NDArray[np.int64],
    end: npt.NDArray[np.int64],
    max_gap_us: int,
) -> npt.NDArray[np.int64]:
    """The first row that a window ending at each row may hold: [m].

    Another instrument, or a longer silence than `max_gap_us` between two buckets, begins a new history.

    Args:
        instrument: [m], equal for rows of one instrument, which lie together in the order of buckets.
        start, end: [m] microseconds, of each row's bucket.
    """
    begins = np.ones(len(instrument), dtype=np.bool_)
    begins[1:] = (instrument[1:] != instrument[:-1]) | (start[1:] - end[:-1] > max_gap_us)
    return np.maximum.accumulate(np.where(begins, np.arange(len(instrument)), 0))


def gather(
    inputs: npt.NDArray[np.float32],
    first: npt.NDArray[np.int64],
    last: npt.NDArray[np.int64],
    window: int,
) -> npt.NDArray[np.float32]:
    """Windows [b, window, k], the latest row last, NaN before the first row.

    Args:
        inputs: [m, k].
        first: [m], see `first_rows`.
        last: [b], the row that each window ends at.
        window: rows of a window.
    """
    rows = last[:, None] + np.arange(1 - window, 1)
    out = inputs[np.maximum(rows, 0)]
    out[rows < first[last][:, None]] = np.nan
    return out


@dataclass(frozen=True, slots=True)
class Sequences:
    """n labelled samples in the order of `dataset.read_dataset`, over m rows of k inputs; times in microseconds UTC."""

    label: Label
    contract: list[Column]  # [k], in the order of the columns of `inputs`
    window: int
    inputs: npt.NDArray[np.float32]  # [m, k], NaN where missing; rows of an instrument lie together
    first: npt.NDArray[np.int64]  # [m], see `first_rows`
    last: npt.NDArray[np.int64]  # [n], the row of `inputs` at which a sample's window ends
    classes: npt.NDArray[np.int8]  # [n], -1, 0 or 1
    returns: npt.NDArray[np.float64]  # [n]
    as_of: npt.NDArray[np.int64]  # [n], ascending
    known_at: npt.NDArray[np.int64]  # [n], when the label was known
    instrument: npt.NDArray[np.int64]  # [n], index into `instruments`
    instruments: list[str]  # exchange:market_type:symbol

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.contract]

    def windows(
        self, rows: npt.NDArray[np.int64], back: npt.NDArray[np.int64] | int = 0
    ) -> npt.NDArray[np.float32]:
        """Inputs of these samples: [len(rows), window, k]. back: as they were so many buckets before, never later."""
        last = self.last[rows]
        return gather(self.inputs, self.first, np.maximum(last - back, self.first[last]), self.window)


def read_sequences(
    label_column: str,
    names: Sequence[str] | None = None,
    version: int = 1,
    *,
    window: int = WINDOW,
    max_gap_s: float = MAX_GAP_S,
) -> Sequences:
    """The rows of `training_set` whose label is known, each with its window of `sequence_inputs`.

    Args:
        label_column: a class label of `training_set`.
        names: columns of sequence_inputs (None: all).
        version: of sequence_inputs.
        window: rows of a window.
        max_gap_s: seconds between two buckets from which what was before is forgotten.

    Raises:
        UserError: no such table, label or column; no labelled row, or one that sequence_inputs lacks.
    """
    if window < 1 or max_gap_s < 0:
        raise UserError("a window has at least one row, and the longest gap is >= 0")
    database, table = settings().database("features"), f"{SOURCE}_v{version}"
    with db.connect(database, use_numpy=True) as c:
        contract = _choose(names, live_columns(c, version, SOURCE), table)
        columns = c.execute(
            "select name from system.columns where database = currentDatabase() and table = 'training_set'"
        )
        if not columns:
            raise UserError(f"{database} has no training_set: run `make build`")
        label = parse_label(label_column, [str(name) for (name,) in columns])
        needed = [db.names([x]) for x in (label.column, label.return_column, label.known_at_column)]
        known = " and ".join(f"t.{name} is not null" for name in needed)
        lacking = c.execute(
            f"""
            select concat(exchange, ':', market_type, ':', symbol), toInt64(count())
            from training_set as t
            where
                {known}
                and ({_GRAIN}) not in (select {_GRAIN} from {table})
            group by 1
            order by 1
            """
        )
        if len(lacking):
            which = ", ".join(f"{n} rows of {instrument}" for instrument, n in lacking)
            raise UserError(
                f"{database}.{table} lags behind training_set, it lacks {which}: run `make build`"
            )
        cls, ret, at = (f"t.{name}" for name in needed)
        values = [f"toFloat32(ifNull(s.{db.names([column.name])}, nan))" for column in contract]
        data = c.execute(
            f"""
            select
                concat(s.exchange, ':', s.market_type, ':', s.symbol),
                toUnixTimestamp64Micro(s.bucket_ts_start),
                toUnixTimestamp64Micro(s.bucket_ts_end),
                toUInt8({known}),
                toInt8(ifNull({cls}, 0)),
                toFloat64(ifNull({ret}, 0)),
                ifNull(toUnixTimestamp64Micro({at}), 0),
                {", ".join(values)}
            from {table} as s
            left join training_set as t
                on s.exchange = t.exchange
                and s.market_type = t.market_type
                and s.symbol = t.symbol
                and s.bucket_id = t.bucket_id
            order by s.exchange, s.market_type, s.symbol, s.bucket_id
            """,
            columnar=True,
        )
    if not data or not np.any(data[3]):
        raise UserError(
            f"{database}.training_set has no row with a known {label.column}: ingest more data, "
            "then run `make build`"
        )
    instrument, start, end, is_known, classes, returns, known_at, *inputs = data
    matrix = np.column_stack(inputs).astype(np.float32, copy=False)
    matrix[~np.isfinite(matrix)] = np.nan
    _, codes = np.unique(instrument.astype(str), return_inverse=True)
    labelled = np.flatnonzero(is_known)
    last = labelled[np.argsort(end[labelled], kind="stable")]
    instruments, own = np.unique(instrument[last].astype(str), return_inverse=True)
    return Sequences(
        label=label,
        contract=contract,
        window=window,
        inputs=matrix,
        first=first_rows(codes, start.astype(np.int64), end.astype(np.int64), round(max_gap_s * 1e6)),
        last=last,
        classes=classes[last].astype(np.int8),
        returns=returns[last].astype(np.float64),
        as_of=end[last].astype(np.int64),
        known_at=known_at[last].astype(np.int64),
        instrument=own.astype(np.int64),
        instruments=[str(name) for name in instruments],
    )


def _choose(names: Sequence[str] | None, live: Sequence[Column], table: str) -> list[Column]:
    """The asked columns in the order of the table."""
    numeric = [column for column in live if column.name not in KEYS]
    if names is None:
        return numeric
    unknown = sorted(set(names) - {column.name for column in numeric})
    if unknown:
        raise UserError(f"not a numeric column of {table}: {', '.join(unknown)}")
    if len(set(names)) != len(names) or not names:
        raise UserError("name each column once, and at least one")
    return [column for column in numeric if column.name in names]
