from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from python_udfs.errors import UserError
from python_udfs.training.split import Fold, walk_forward


def split(as_of: list[int], known_at: list[int], **options: float) -> list[Fold]:
    return walk_forward(
        np.array(as_of, dtype=np.int64),
        np.array(known_at, dtype=np.int64),
        **{"min_train_rows": 1, "min_test_rows": 1, **options},  # type: ignore[arg-type]
    )


def test_training_rows_are_those_whose_label_was_known_at_the_first_tested_instant() -> None:
    as_of = list(range(10))
    first, second = split(as_of, [t + 2 for t in as_of], folds=2)
    # the label of row 2 is known at 4, the very instant of the first test row; that of row 3 at 5
    assert first.train.tolist() == [0, 1, 2]
    assert (first.test.tolist(), first.purged) == ([4, 5, 6], 1)
    assert second.train.tolist() == [0, 1, 2, 3, 4, 5]
    assert (second.test.tolist(), second.purged) == ([7, 8, 9], 1)


def test_embargo_asks_for_labels_known_longer_ago() -> None:
    as_of = list(range(10))
    first, second = split(as_of, [t + 2 for t in as_of], folds=2, embargo_us=2)
    assert (first.train.tolist(), first.purged) == ([0], 3)
    assert (second.train.tolist(), second.purged) == ([0, 1, 2, 3], 3)


def test_a_planted_overlap_is_purged_wherever_it_stands() -> None:
    known_at = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    known_at[1] = 7  # an old row of a long label
    first, second = split(list(range(10)), known_at, folds=2)
    assert 1 not in first.train
    assert 1 in second.train, "by then it was known"


def test_rows_of_one_instant_are_never_on_both_sides() -> None:
    as_of = [0, 1, 2, 3, 3, 3, 3, 7, 8, 9]
    first, _ = split(as_of, as_of, folds=2)
    # the nominal cut is at row 4, in the middle of the instant 3
    assert first.train.tolist() == [0, 1, 2]
    assert first.test.tolist()[:4] == [3, 4, 5, 6]


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 60)), min_size=40, max_size=80),
    folds=st.integers(1, 4),
    embargo=st.integers(0, 20),
)
def test_every_split_equals_the_rule_row_by_row(
    rows: list[tuple[int, int]], folds: int, embargo: int
) -> None:
    as_of = sorted(t for t, _ in rows)
    known_at = [t + lag for t, (_, lag) in zip(as_of, rows, strict=True)]
    try:
        result = split(as_of, known_at, folds=folds, embargo_us=embargo)
    except UserError:
        return
    tested = np.concatenate([fold.test for fold in result])
    assert tested.tolist() == list(range(result[0].test[0], len(as_of))), "each later row is tested once"
    for fold in result:
        start = as_of[fold.test[0]]
        before = [i for i, t in enumerate(as_of) if t < start]
        assert fold.train.tolist() == [i for i in before if known_at[i] + embargo <= start]
        assert fold.purged == len(before) - len(fold.train)


def test_too_few_rows_names_the_numbers() -> None:
    with pytest.raises(UserError, match="150 labelled rows are too few for 5 folds after 40% of training"):
        walk_forward(np.arange(150), np.arange(150))


def test_purging_that_leaves_too_little_says_so() -> None:
    as_of = np.arange(1000)
    with pytest.raises(UserError, match="fold 1 keeps 50 of 400 training rows after purging and embargo"):
        walk_forward(as_of, as_of + 351)


def test_rows_that_share_one_instant_cannot_fill_two_folds() -> None:
    with pytest.raises(UserError, match="fold 1 has 0 rows: too many share one as_of"):
        split([0] * 4 + [9] * 6, [0] * 4 + [9] * 6, folds=2)


@pytest.mark.parametrize(
    "options", [{"folds": 0}, {"first_train_share": 0.0}, {"first_train_share": 1.0}, {"embargo_us": -1}]
)
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="folds must be >= 1"):
        split(list(range(10)), list(range(10)), **options)


def test_rows_out_of_order_are_a_bug() -> None:
    with pytest.raises(ValueError, match="order of as_of"):
        split([1, 0, 2, 3], [1, 1, 2, 3], folds=1)
