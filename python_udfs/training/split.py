"""Expanding walk-forward split by time, purged by when labels were known.

Reference: M. López de Prado, Advances in Financial Machine Learning (2018), chapter 7 (purging and embargo).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from python_udfs.errors import UserError

MIN_TRAIN_ROWS: Final = 100
MIN_TEST_ROWS: Final = 20


@dataclass(frozen=True, slots=True)
class Fold:
    """Row numbers of one step. `purged`: rows before the test whose label was not yet known at its start."""

    train: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]
    purged: int


def walk_forward(
    as_of: npt.NDArray[np.int64],
    known_at: npt.NDArray[np.int64],
    *,
    folds: int = 5,
    first_train_share: float = 0.4,
    embargo_us: int = 0,
    min_train_rows: int = MIN_TRAIN_ROWS,
    min_test_rows: int = MIN_TEST_ROWS,
) -> list[Fold]:
    """Cuts rows into `folds` test periods, each predicted from what was known before it.

    A cut is a point in time: rows with the same as_of, of whatever instrument, are on the same side of it. A
    row trains for a fold iff its as_of is before the fold's first as_of T and `known_at + embargo_us <= T`:
    what was known exactly at T was known to the row decided at T.

    Args:
        as_of: [n] microseconds, ascending.
        known_at: [n] microseconds, when each row's label was known.
        folds: number of test periods, of about equal rows.
        first_train_share: share of the rows before the first test period, in (0, 1).
        embargo_us: microseconds that a label must have been known for.

    Raises:
        UserError: an option is out of range, or there are too few rows for these folds.
        ValueError: as_of is not ascending.
    """
    if folds < 1 or not 0 < first_train_share < 1 or embargo_us < 0:
        raise UserError("folds must be >= 1, the first train share between 0 and 1, the embargo >= 0")
    if (np.diff(as_of) < 0).any():
        raise ValueError("rows must come in the order of as_of")
    n = len(as_of)
    first = round(n * first_train_share)
    nominal = first + (n - first) * np.arange(folds + 1) // folds
    if first < min_train_rows or (n - first) // folds < min_test_rows:
        raise UserError(
            f"{n} labelled rows are too few for {folds} folds after {first_train_share:.0%} of training: at "
            f"least {min_train_rows} must train and {min_test_rows} test in each. Ingest more data or use "
            "fewer folds"
        )
    # to the first row of the instant that the nominal cut falls into
    cuts = [int(np.searchsorted(as_of, as_of[i], side="left")) for i in nominal[:-1]] + [n]
    result = []
    for number, (start, stop) in enumerate(pairwise(cuts), 1):
        if stop - start < min_test_rows:
            raise UserError(
                f"fold {number} has {stop - start} rows: too many share one as_of. Use fewer folds"
            )
        train = np.flatnonzero(known_at[:start] + embargo_us <= as_of[start])
        if len(train) < min_train_rows:
            raise UserError(
                f"fold {number} keeps {len(train)} of {start} training rows after purging and embargo, fewer "
                f"than {min_train_rows}: use a shorter label horizon or embargo, or ingest more data"
            )
        result.append(
            Fold(train.astype(np.int64), np.arange(start, stop, dtype=np.int64), start - len(train))
        )
    return result
