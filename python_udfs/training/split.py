"""Walk-forward splits by time, expanding or rolling, purged and embargoed by when labels were known.

Cuts are instants of several instruments' rows, which no library cuts at; what overlaps a cut is `purgedcv`'s.

Reference: M. López de Prado, Advances in Financial Machine Learning (2018), chapter 7 (purging and embargo).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import purgedcv

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
    rolling_rows: int | None = None,
    purge: bool = True,
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
        rolling_rows: train on the newest so many of those rows; None: on all of them (expanding).
        purge: False trains on every row before T, embargo or not: a leak, there to measure what it would gain.

    Raises:
        UserError: an option is out of range, or there are too few rows for these folds.
        ValueError: as_of is not ascending, or a label was known before its as_of.
    """
    if folds < 1 or not 0 < first_train_share < 1 or embargo_us < 0:
        raise UserError("folds must be >= 1, the first train share between 0 and 1, the embargo >= 0")
    if rolling_rows is not None and rolling_rows < min_train_rows:
        raise UserError(
            f"a rolling window of {rolling_rows} rows is below {min_train_rows}: use a longer one"
        )
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
        train = _known(as_of, known_at, start, embargo_us) if purge else np.arange(start, dtype=np.int64)
        purged = start - len(train)
        if rolling_rows is not None:
            train = train[-rolling_rows:]
        if len(train) < min_train_rows:
            raise UserError(
                f"fold {number} keeps {len(train)} of {start} training rows after purging and embargo, fewer "
                f"than {min_train_rows}: use a shorter label horizon or embargo, or ingest more data"
            )
        result.append(Fold(train, np.arange(start, stop, dtype=np.int64), purged))
    return result


def _known(
    as_of: npt.NDArray[np.int64], known_at: npt.NDArray[np.int64], start: int, embargo_us: int
) -> npt.NDArray[np.int64]:
    """The rows before `start` whose label was known for the embargo when row `start` was decided."""
    # purgedcv drops labels [from, to) that overlap the test's, widened by the embargo. All candidates begin
    # before the test, so its first instant decides. It overlooks labels of no length: those begin 1 µs early
    begin, end = as_of[: start + 1].copy(), known_at[: start + 1].copy()
    begin[:start] -= 1
    end[start] = begin[start] + 1
    if start == 0:
        return np.empty(0, dtype=np.int64)
    kept = purgedcv.purge(
        np.arange(start, dtype=np.int64),
        np.array([start]),
        begin.view("datetime64[us]"),
        end.view("datetime64[us]"),
        pd.Timedelta(embargo_us, "us"),
    )
    return np.asarray(kept, dtype=np.int64)


def inner_folds(
    outer: Fold,
    as_of: npt.NDArray[np.int64],
    known_at: npt.NDArray[np.int64],
    *,
    folds: int = 3,
    first_train_share: float = 0.5,
    embargo_us: int = 0,
    rolling_rows: int | None = None,
    min_train_rows: int = MIN_TRAIN_ROWS,
    min_test_rows: int = MIN_TEST_ROWS,
) -> list[Fold]:
    """Splits the training rows of a fold by the same rule: for hyper-parameters and calibration.

    Row numbers are those of the outer arrays, which are [n]; see `walk_forward` for the options and errors.
    """
    rows = outer.train
    inner = walk_forward(
        as_of[rows],
        known_at[rows],
        folds=folds,
        first_train_share=first_train_share,
        embargo_us=embargo_us,
        rolling_rows=rolling_rows,
        min_train_rows=min_train_rows,
        min_test_rows=min_test_rows,
    )
    return [Fold(rows[fold.train], rows[fold.test], fold.purged) for fold in inner]


T = TypeVar("T")
Predict = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], npt.NDArray[np.float64]]


def out_of_sample(
    folds: list[Fold], predict: Predict
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The tested rows [m], fold after fold, and what `predict(train rows, test rows)` said of them [m, c].

    With `inner_folds`: what a calibrator may be fitted on.
    """
    return (
        np.concatenate([fold.test for fold in folds]),
        np.concatenate([predict(fold.train, fold.test) for fold in folds]),
    )


def tune(
    options: Sequence[T],
    folds: list[Fold],
    predict: Callable[[T, npt.NDArray[np.int64], npt.NDArray[np.int64]], npt.NDArray[np.float64]],
    loss: Callable[[npt.NDArray[np.int64], npt.NDArray[np.float64]], float],
) -> tuple[T, list[float]]:
    """The option with the least loss out of sample (of equals, the first) and the loss of each.

    Args:
        options: hyper-parameters to choose from.
        folds: `inner_folds` of the training fold that the choice is for.
        predict: what (option, train rows, test rows) says of the test rows.
        loss: of (tested rows, what was said of them); NaN: the option has none and cannot be chosen.

    Raises:
        UserError: no option has a loss.
    """
    losses = []
    for option in options:
        rows, said = out_of_sample(folds, partial(predict, option))
        losses.append(float(loss(rows, said)))
    if np.isnan(losses).all():
        raise UserError(
            f"none of {len(losses)} options has a loss out of sample: tune on other data or options"
        )
    return options[int(np.nanargmin(losses))], losses
