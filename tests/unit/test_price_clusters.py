"""The clusters on a line are those of scikit-learn's DBSCAN, and what is no cluster there is one of its own here."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import DBSCAN

from python_udfs.functions.price_clusters import mp_price_clusters


def _clusters(prices: list[float], min_samples: int = 3, **more: list[float]) -> dict[str, list[float]]:
    n = len(prices)
    found = mp_price_clusters(
        np.array(prices),
        np.array(more.get("volumes", [1.0] * n)),
        np.array(more.get("deltas", [1.0] * n)),
        np.array(more.get("last_seen", range(n)), dtype=np.int64),
        5.0,
        min_samples,
    )
    return {k: v.tolist() for k, v in found.items()}


@pytest.mark.parametrize("seed", range(40))
def test_equals_dbscan(seed: int) -> None:
    r = np.random.default_rng(seed)
    n = int(r.integers(1, 60))
    prices = np.sort(100 * (1 + r.choice([20, 100, 400]) * 1e-4 * r.random(n)))
    min_samples = int(r.integers(1, 6))
    place = (prices / np.median(prices) - 1) * 1e4
    labels = DBSCAN(eps=5, min_samples=min_samples).fit(place.reshape(-1, 1)).labels_
    of = [label if label >= 0 else n + i for i, label in enumerate(labels)]
    own = [[i for i in range(n) if of[i] == label] for label in dict.fromkeys(of)]
    shuffled = r.permutation(n)
    got = mp_price_clusters(prices[shuffled], np.ones(n), np.ones(n), shuffled, 5.0, min_samples)
    expected = sorted((prices[i].mean(), len(i), max(i)) for i in own)
    np.testing.assert_allclose(got["price"], [e[0] for e in expected], rtol=1e-12)
    assert got["bins"].tolist() == [e[1] for e in expected]
    assert got["last_seen"].tolist() == [e[2] for e in expected]


def test_by_hand() -> None:
    # three within 5 bps, and one 20 bps away
    got = _clusters(
        [100.20, 100.02, 100.00, 100.01],
        volumes=[5.0, 1.0, 1.0, 2.0],
        deltas=[-5.0, 1.0, 0.0, -3.0],
        last_seen=[9, 3, 7, 5],
    )
    assert got["price"] == [pytest.approx(100.01), 100.20]
    assert got["volume"] == [4.0, 5.0]
    assert got["delta"] == [-2.0, -5.0]
    assert got["last_seen"] == [7, 9]
    assert got["bins"] == [3, 1]


def test_nothing_in_nothing_out() -> None:
    assert _clusters([]) == {"price": [], "volume": [], "delta": [], "last_seen": [], "bins": []}


@pytest.mark.parametrize(
    ("prices", "more", "message"),
    [
        ([1.0, 2.0], {"volumes": [1.0]}, "differ in length"),
        ([0.0], {}, "not above 0"),
        ([1.0], {"volumes": [float("nan")]}, "not above 0"),
    ],
)
def test_what_it_refuses(prices: list[float], more: dict[str, list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _clusters(prices, **more)
    with pytest.raises(ValueError, match="must be above 0"):
        _clusters([1.0], min_samples=0)
