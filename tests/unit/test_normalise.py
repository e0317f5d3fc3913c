from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import iqr
from sklearn.preprocessing import RobustScaler

from python_udfs.training.normalise import TimeOfDay

HOUR = 3_600_000_000


def season(seed: int, days: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """A row each minute; level and spread of two features follow the hour, the third is free of it."""
    rng = np.random.default_rng(seed)
    as_of = np.arange(days * 1440) * 60_000_000
    hour = as_of // HOUR % 24
    x = rng.normal(size=(len(as_of), 3))
    x[:, 0] += hour
    x[:, 1] *= 1 + hour
    return x, as_of


def test_the_hour_is_gone_and_the_rest_stays() -> None:
    x, as_of = season(1)
    fitted = TimeOfDay.fit(x, as_of, shrinkage=5)
    later, later_as_of = season(2)
    out = fitted.transform(later, later_as_of)
    hour = later_as_of // HOUR % 24
    for h in (0, 7, 23):
        assert np.median(out[hour == h], axis=0) == pytest.approx(np.zeros(3), abs=0.1)
        assert out[hour == h].std(axis=0) == pytest.approx(np.ones(3), abs=0.1)
    assert np.corrcoef(out[:, 2], later[:, 2])[0, 1] > 0.99


def test_without_shrinkage_each_hour_is_scaled_robustly_alone() -> None:
    x, as_of = season(3, days=3)
    out = TimeOfDay.fit(x, as_of, shrinkage=0).transform(x, as_of)
    hour = as_of // HOUR % 24
    for h in (0, 12):
        theirs = RobustScaler(unit_variance=True).fit_transform(x[hour == h])
        assert out[hour == h] == pytest.approx(theirs)


def test_a_part_with_few_values_is_drawn_to_the_day() -> None:
    x = np.concatenate([np.arange(100.0), np.arange(10.0) + 500])[:, None]
    as_of = np.concatenate([np.zeros(100), np.full(10, 5 * HOUR)]).astype(np.int64)
    fitted = TimeOfDay.fit(x, as_of, shrinkage=30)
    width = iqr(x, scale="normal")
    assert fitted.centre[5, 0] == pytest.approx((10 * 504.5 + 30 * np.median(x)) / 40)
    assert fitted.scale[5, 0] == pytest.approx((10 * iqr(x[100:], scale="normal") + 30 * width) / 40)
    assert (fitted.centre[7, 0], fitted.scale[7, 0]) == pytest.approx((np.median(x), width)), "never seen"


def test_what_comes_later_changes_nothing() -> None:
    x, as_of = season(4)
    cut = len(x) // 2
    fitted = TimeOfDay.fit(x[:cut], as_of[:cut])
    before = fitted.transform(x[:cut], as_of[:cut])
    x[cut:] *= 1000
    again = TimeOfDay.fit(x[:cut], as_of[:cut])
    assert (again.transform(x[:cut], as_of[:cut]) == before).all()


def test_midnight_and_negative_times_have_a_part() -> None:
    as_of = np.array([-1, 0, 24 * HOUR - 1, 24 * HOUR])
    fitted = TimeOfDay(np.arange(24.0)[:, None], np.ones((24, 1)))
    assert fitted.transform(np.zeros((4, 1)), as_of)[:, 0].tolist() == [-23, 0, -23, 0]


def test_missing_constant_and_spiked_features() -> None:
    x = np.array(
        [[np.nan, 7.0, 0.0], [np.inf, 7.0, 0.0], [np.nan, 7.0, 0.0], [np.nan, 7.0, 0.0], [np.nan, 7.0, 9.0]]
    )
    as_of = np.zeros(5, dtype=np.int64)
    fitted = TimeOfDay.fit(x, as_of, shrinkage=0)
    assert fitted.centre[0].tolist() == [0, 7, 0]
    assert fitted.scale[0] == pytest.approx([1, 1, x[:, 2].std()])
    out = fitted.transform(x, as_of)
    assert np.isnan(out[:, 0]).all()
    assert out[:, 1].tolist() == [0] * 5
    assert np.isfinite(out[:, 2]).all()


def test_no_rows_change_nothing() -> None:
    fitted = TimeOfDay.fit(np.empty((0, 2)), np.empty(0, dtype=np.int64))
    assert fitted.transform(np.array([[3.0, -1.0]]), np.zeros(1, dtype=np.int64)).tolist() == [[3, -1]]


def test_constants_survive_json() -> None:
    x, as_of = season(5, days=1)
    fitted = TimeOfDay.fit(x, as_of, bins=48)
    again = TimeOfDay.from_constants(json.loads(json.dumps(fitted.to_constants())))
    assert (again.transform(x, as_of) == fitted.transform(x, as_of)).all()
