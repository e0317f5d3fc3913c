from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from purgedcv import WalkForwardSplit
from sklearn.neighbors import KNeighborsRegressor

from python_udfs.errors import UserError
from python_udfs.training.split import Fold, inner_folds, out_of_sample, tune, walk_forward


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


def test_a_rolling_window_keeps_the_newest_known_rows() -> None:
    as_of = list(range(10))
    first, second = split(as_of, [t + 2 for t in as_of], folds=2, rolling_rows=2)
    assert (first.train.tolist(), first.purged) == ([1, 2], 1), "row 3 is purged, row 0 too old"
    assert (second.train.tolist(), second.purged) == ([4, 5], 1)


def test_a_rolling_window_that_could_never_train() -> None:
    with pytest.raises(UserError, match="a rolling window of 20 rows is below 100"):
        walk_forward(np.arange(1000), np.arange(1000), rolling_rows=20)


def test_a_label_known_before_its_row_is_a_bug() -> None:
    with pytest.raises(ValueError, match="evaluation"):
        split(list(range(10)), [t - 2 for t in range(10)], folds=1)


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(st.integers(1, 9), min_size=60, max_size=60),
    lags=st.lists(st.integers(1, 60), min_size=60, max_size=60),
    folds=st.integers(1, 4),
    embargo=st.integers(0, 30),
    rolling=st.sampled_from([None, 5, 12]),
)
def test_folds_equal_purgedcv_where_rows_are_instants(
    gaps: list[int], lags: list[int], folds: int, embargo: int, rolling: int | None
) -> None:
    """Its walk-forward cuts at rows and widens the test's labels: the same where no two rows share an instant."""
    as_of = np.cumsum(gaps)
    known_at = as_of + np.array(lags)
    theirs = WalkForwardSplit(
        folds,
        36 // folds,
        window="expanding" if rolling is None else "sliding",
        train_size=rolling,
        prediction_times=as_of.view("datetime64[us]"),
        evaluation_times=known_at.view("datetime64[us]"),
        purge_horizon=pd.Timedelta(embargo, "us"),
    )
    expected = list(theirs.split(np.zeros((60, 1))))
    if any(not len(train) for train, _ in expected):
        return
    ours = split(as_of.tolist(), known_at.tolist(), folds=folds, embargo_us=embargo, rolling_rows=rolling)
    assert len(ours) == len(expected)
    for fold, (train, test) in zip(ours, expected, strict=True):
        assert (fold.train.tolist(), fold.test.tolist()) == (train.tolist(), test.tolist())


def test_inner_folds_lie_inside_the_training_fold_and_keep_the_rule() -> None:
    as_of = np.arange(1000)
    known_at = as_of + 7
    outer = walk_forward(as_of, known_at, folds=2, embargo_us=5)[1]
    inner = inner_folds(outer, as_of, known_at, folds=3, embargo_us=5)
    assert len(inner) == 3
    for fold in inner:
        start = as_of[fold.test[0]]
        assert np.isin(np.concatenate([fold.train, fold.test]), outer.train).all()
        before = outer.train[as_of[outer.train] < start]
        assert fold.train.tolist() == before[known_at[before] + 5 <= start].tolist()
        assert fold.purged == len(before) - len(fold.train) == 11
    rows, said = out_of_sample(
        inner, lambda train, test: np.column_stack([test, np.full(len(test), train[-1])])
    )
    assert rows.tolist() == [int(i) for fold in inner for i in fold.test]
    assert (said[:, 0] == rows).all()
    assert (known_at[said[:, 1].astype(int)] < as_of[rows]).all()


def test_the_only_fold_can_be_split_again() -> None:
    as_of = np.arange(1000)
    (outer,) = walk_forward(as_of, as_of + 1, folds=1, first_train_share=0.8)
    (inner,) = inner_folds(outer, as_of, as_of + 1, folds=1)
    assert inner.test[-1] == outer.train[-1] == 799


def test_tuning_chooses_what_predicts_the_inner_tests_and_sees_nothing_later() -> None:
    rng = np.random.default_rng(1)
    n = 1200
    as_of = np.arange(n)
    x = rng.uniform(-2, 2, size=(n, 1))
    y = np.sin(2 * x[:, 0]) + rng.normal(scale=0.5, size=n)
    (outer,) = walk_forward(as_of, as_of + 3, folds=1, first_train_share=0.8)
    inner = inner_folds(outer, as_of, as_of + 3)
    y[outer.test] = np.nan  # whoever reads them has no loss

    def predict(k: int, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        return KNeighborsRegressor(k).fit(x[train], y[train]).predict(x[test])

    chosen, losses = tune(
        [1, 15, 300], inner, predict, lambda rows, said: float(((said - y[rows]) ** 2).mean())
    )
    assert chosen == 15
    assert losses[1] == min(losses) < 0.35
    nothing = np.zeros(0)
    losses_of = {"broken": np.nan, "good": 1.0, "as good": 1.0}
    assert (
        tune(list(losses_of), inner, lambda o, a, b: np.full(len(b), losses_of[o]), lambda _, s: s[0])[0]
        == "good"
    )
    with pytest.raises(UserError, match="none of 1 options has a loss"):
        tune(["broken"], inner, lambda *_: nothing, lambda *_: np.nan)


def test_an_overlap_leak_raises_ic_without_purging_and_not_with_it() -> None:
    """Returns are pure noise. A label is the sum of the next 30, so neighbours in time share most of it.

    A nearest neighbour in a feature that drifts slowly then copies the newest training label: without purging that
    label overlaps the test's own future.
    """
    rng = np.random.default_rng(3)
    n, horizon = 6000, 30
    noise = rng.normal(size=n + horizon)
    label = np.array([noise[i + 1 : i + 1 + horizon].sum() for i in range(n)])
    as_of = np.arange(n) * 1_000_000
    known_at = as_of + horizon * 1_000_000
    drift = (as_of / 1e6 + rng.normal(scale=0.1, size=n))[:, None]

    def ic(**options: bool) -> float:
        folds = walk_forward(as_of, known_at, folds=300, first_train_share=0.5, min_test_rows=1, **options)

        def predict(train: np.ndarray, test: np.ndarray) -> np.ndarray:
            return KNeighborsRegressor(1).fit(drift[train], label[train]).predict(drift[test])

        rows, said = out_of_sample(folds, predict)
        return float(np.corrcoef(said, label[rows])[0, 1])

    # ten rows a fold: the copied label shares 29 to 20 of its 30 returns with the tested one
    assert ic(purge=False) == pytest.approx(24.5 / 30, abs=0.05)
    # the standard error of what is left: 100 labels do not overlap, each is copied by about three folds
    assert abs(ic(purge=True)) < 0.2
