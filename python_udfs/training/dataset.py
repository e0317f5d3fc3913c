"""Reads the labelled rows of `training_set`. No feature is computed here: a missing value stays NaN."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
from clickhouse_driver import Client

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.scorer.card import KEYS, Column, live_columns
from python_udfs.settings import settings

# Without the unit of an instrument's price or size, so that one model serves many instruments.
DEFAULT_FEATURES: Final = (
    "flow_imbalance",
    "tob_imbalance_close",
    "tob_imbalance_mean",
    "microprice_gap_bps",
    "spread_bps_close",
    "ofi",
    "mid_return",
    "vpin",
    "trades_per_second",
    "duration_s",
    "rv",
    "jump",
)
_NUMBER = re.compile(r"(Nullable\()?(U?Int\d+|Float\d+|Bool)\)?")


@dataclass(frozen=True, slots=True)
class Label:
    """A class label and its companions in `training_set`: its return, when both are known, how much is its own."""

    column: str
    suffix: str

    @property
    def return_column(self) -> str:
        return f"label_ret_{self.suffix if self.suffix.endswith('s') else 'ps_' + self.suffix}"

    @property
    def known_at_column(self) -> str:
        return f"label_known_at_{self.suffix}"

    @property
    def uniqueness_column(self) -> str:
        return f"label_uniqueness_{self.suffix}"

    @property
    def horizon(self) -> str:
        if not self.suffix.endswith("s"):
            return f"{self.suffix} buckets"
        return f"{self.suffix[:-1].replace('_', ' ')} s"


@dataclass(frozen=True, slots=True)
class Dataset:
    """Labelled rows in the order of their as_of. n rows, k features; times in microseconds UTC."""

    label: Label
    contract: list[Column]  # [k], in the order of the columns of `features`
    features: npt.NDArray[np.float32]  # [n, k], NaN where missing
    classes: npt.NDArray[np.int8]  # [n], -1, 0 or 1
    returns: npt.NDArray[np.float64]  # [n]
    as_of: npt.NDArray[np.int64]  # [n], ascending
    known_at: npt.NDArray[np.int64]  # [n], when the label was known
    instrument: npt.NDArray[np.int64]  # [n], index into `instruments`
    instruments: list[str]  # exchange:market_type:symbol
    weights: npt.NDArray[np.float64] | None = None  # [n], mean 1; None: every row counts alike

    def weighted(self) -> Dataset:
        """A row counts as much as its label is its own: labels that are open at once say the same thing.

        Raises:
            UserError: training_set does not say so.
        """
        name = self.label.uniqueness_column
        with db.connect(settings().database("features"), use_numpy=True) as c:
            if name not in _training_columns(c, settings().database("features")):
                raise UserError(f"training_set has no {name}: run `make build`")
            (values,) = c.execute(
                f"select toFloat64(ifNull({db.names([name])}, nan)) {_labelled(self.label)}", columnar=True
            )
        known = np.isfinite(values)
        if len(values) != len(self.as_of) or not known.any():
            raise UserError(
                f"training_set knows {name} of too few rows, or changed while it was read: run `make build`"
            )
        # of the newest labels it is not known yet
        values = np.where(known, values, values[known].mean())
        return replace(self, weights=values / values.mean())


def parse_label(column: str, available: Sequence[str]) -> Label:
    """The label of that name.

    Raises:
        UserError: it is not a class label of `training_set` (`available`: its columns).
    """
    found = re.fullmatch(r"label_(?:cls_(\d+s?)|(barrier_\d+s))", column)
    if found and column in available:
        return Label(column, found[1] or found[2])
    there = [name for name in available if name.startswith(("label_cls_", "label_barrier_"))]
    raise UserError(f"training_set has no class label {column!r}: there is {', '.join(there) or 'none'}")


def choose_features(names: Sequence[str], live: Sequence[Column], version: int) -> list[Column]:
    """The contract of a model: the asked columns of feature_vector, in the order of the table.

    Raises:
        UserError: a name is not a numeric column of feature_vector, or comes twice, or there is none.
    """
    numeric = [column for column in live if column.name not in KEYS and _NUMBER.fullmatch(column.type)]
    unknown = sorted(set(names) - {column.name for column in numeric})
    if unknown:
        raise UserError(
            f"not a numeric feature of feature_vector_v{version}: {', '.join(unknown)}. "
            f"Choose from {', '.join(column.name for column in numeric)}"
        )
    if len(set(names)) != len(names) or not names:
        raise UserError("name each feature once, and at least one")
    return [column for column in numeric if column.name in names]


def read_dataset(label_column: str, feature_names: Sequence[str], version: int = 1) -> Dataset:
    """The rows of `training_set` whose label is known.

    Inputs become float32, the type the ONNX model takes, and infinities become missing: training and scoring
    see the same numbers.

    Raises:
        UserError: no training_set, no such feature_vector version, label or feature; no labelled row.
    """
    database = settings().database("features")
    with db.connect(database, use_numpy=True) as c:
        contract = choose_features(feature_names, live_columns(c, version), version)
        columns = _training_columns(c, database)
        label = parse_label(label_column, list(columns))
        changed = [str(column) for column in contract if columns.get(column.name) != column.type]
        if changed:
            raise UserError(
                f"{database}.training_set lags behind feature_vector_v{version} in {', '.join(changed)}: "
                "run `make build`"
            )
        features = [f"toFloat32(ifNull({db.names([column.name])}, nan))" for column in contract]
        data = c.execute(
            f"""
            select
                toUnixTimestamp64Micro(bucket_ts_end),
                toUnixTimestamp64Micro(assumeNotNull({db.names([label.known_at_column])})),
                toInt8(assumeNotNull({db.names([label.column])})),
                toFloat64(assumeNotNull({db.names([label.return_column])})),
                concat(exchange, ':', market_type, ':', symbol),
                {", ".join(features)}
            {_labelled(label)}
            """,
            columnar=True,
        )
    if not data:
        raise UserError(
            f"{database}.training_set has no row with a known {label.column}: ingest more data, "
            "then run `make build`"
        )
    as_of, known_at, classes, returns, instrument, *inputs = data
    matrix = np.column_stack(inputs).astype(np.float32, copy=False)
    matrix[~np.isfinite(matrix)] = np.nan
    instruments, codes = np.unique(instrument.astype(str), return_inverse=True)
    return Dataset(
        label=label,
        contract=contract,
        features=matrix,
        classes=classes.astype(np.int8),
        returns=returns.astype(np.float64),
        as_of=as_of.astype(np.int64),
        known_at=known_at.astype(np.int64),
        instrument=codes.astype(np.int64),
        instruments=[str(name) for name in instruments],
    )


def _labelled(label: Label) -> str:
    """From which rows, in which order."""
    columns = (label.column, label.return_column, label.known_at_column)
    known = " and ".join(f"{db.names([name])} is not null" for name in columns)
    return f"from training_set where {known} order by bucket_ts_end, exchange, market_type, symbol, bucket_id"


def _training_columns(c: Client, database: str) -> dict[str, str]:
    found = c.execute(
        "select name, type from system.columns where database = %(d)s and table = 'training_set'",
        {"d": database},
    )
    if not found:
        raise UserError(f"{database} has no training_set: run `make build`")
    return {str(name): str(type_) for name, type_ in found}
