"""mp_wavelet_energy and mp_trade_clusters against libraries and the textbook."""

from __future__ import annotations

import numpy as np
import pytest
import pywt
from sklearn.cluster import DBSCAN

from python_udfs.functions.trade_clusters import mp_trade_clusters
from python_udfs.functions.wavelets import mp_wavelet_energy
from tests.oracles.heatmap import MIN_TRADES, SCALES, cluster_features, dbscan
from tests.oracles.volatility import wavelet_step

Floats = np.ndarray


@pytest.mark.parametrize("n", [56, 64, 128])
def test_wavelet_energies_equal_the_filter_bank_s_and_add_up_to_the_signal_s(n: int) -> None:
    signal = np.random.default_rng(n).normal(size=n) * 1e-4
    found = mp_wavelet_energy(signal)
    rest, noise = signal, 0.0
    for level in (1, 2, 3):
        rest, detail = wavelet_step(rest)
        # 1e-11: the oracle's filter is a table of 16 digits
        assert found[f"detail_{level}"] == pytest.approx(np.sum(detail**2), rel=1e-11)
        noise += np.sum(detail**2)
    assert found["approximation"] == pytest.approx(np.sum(rest**2), rel=1e-11)
    assert found["snr"] == pytest.approx(np.sum(rest**2) / noise, rel=1e-11)
    assert sum(v for k, v in found.items() if k != "snr") == pytest.approx(np.sum(signal**2), rel=1e-12)


def test_waves_are_found_at_their_level() -> None:
    t = np.arange(64)
    shares = {}
    for period, name in ((2, "detail_1"), (6, "detail_2"), (32, "approximation")):
        found = mp_wavelet_energy(np.cos(2 * np.pi * t / period))
        shares[name] = found[name] / sum(v for k, v in found.items() if k != "snr")
    assert all(share > 0.6 for share in shares.values()), shares


def test_a_still_signal_has_no_signal_to_noise() -> None:
    found = mp_wavelet_energy(np.zeros(64))
    assert found["approximation"] == 0 and np.isnan(found["snr"])


@pytest.mark.parametrize("signal", [np.zeros(0), np.zeros(63), np.array([np.nan] * 64)])
def test_what_cannot_be_transformed_says_so(signal: Floats) -> None:
    with pytest.raises(ValueError, match=r"multiple of 8|not finite"):
        mp_wavelet_energy(signal)


def test_the_wavelet_is_pywt_s_db4() -> None:
    from tests.oracles.volatility import DB4

    np.testing.assert_allclose(DB4, pywt.Wavelet("db4").rec_lo, atol=1e-12)


def _trades(r: np.random.Generator, n: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Bursts with ties in time, price and size."""
    times = np.cumsum(r.choice([0, 1000, 300_000, 8_000_000], size=n, p=[0.3, 0.3, 0.3, 0.1]))
    prices = 100 + np.cumsum(r.choice([-0.05, 0, 0, 0.05], size=n))
    return times, prices, np.round(r.pareto(2.2, n) + 0.001, 3) + 0.001, r.integers(0, 2, n)


def _points(times: Floats, prices: Floats, quantities: Floats) -> Floats:
    return np.column_stack(
        [
            (times - times[-1]) / 1e6 / SCALES[0],
            1e4 * (prices / prices[-1] - 1) / SCALES[1],
            np.log(quantities) / SCALES[2],
        ]
    )


@pytest.mark.parametrize("n", [1, 2, 3, 5, 20, 100, 500])
@pytest.mark.parametrize("seed", range(4))
def test_clusters_equal_dbscan_s(n: int, seed: int) -> None:
    trades = _trades(np.random.default_rng(1000 * seed + n), n)
    found = mp_trade_clusters(*trades, *SCALES, MIN_TRADES)
    labels = DBSCAN(eps=1, min_samples=MIN_TRADES).fit(_points(*trades[:3])).labels_
    sizes = np.bincount(labels[labels >= 0])
    assert found["clusters"] == len(sizes)
    assert found["clustered_share"] == pytest.approx(np.mean(labels >= 0))
    assert found["largest_trades"] == max(sizes, default=0)
    if len(sizes):
        _, _, quantities, is_buy = trades
        largest = labels == sizes.argmax()
        assert found["largest_buy_share"] == pytest.approx(
            quantities[largest & (is_buy == 1)].sum() / quantities[largest].sum()
        )
        assert found["largest_buy_share"] + found["largest_sell_share"] == pytest.approx(1)
        assert found["largest_volume_share"] == pytest.approx(quantities[largest].sum() / quantities.sum())
    if n <= 100:
        expected = cluster_features(*trades[:3], trades[3] == 1)
        renamed = {"clusters": "count", "clustered_share": "share"}
        for name, value in found.items():
            assert value == pytest.approx(
                expected[f"trade_cluster_{renamed.get(name, name)}"], rel=1e-12, nan_ok=True
            ), name


def test_the_textbook_s_dbscan_is_sklearn_s() -> None:
    for seed in range(5):
        points = np.random.default_rng(seed).normal(size=(80, 3)) * 2
        labels, _ = dbscan(points, MIN_TRADES)
        np.testing.assert_array_equal(labels, DBSCAN(eps=1, min_samples=MIN_TRADES).fit(points).labels_)


def test_a_border_trade_joins_the_cluster_that_began_first() -> None:
    # two bursts of four trades; the trade between is near one trade of each, and a core of neither
    seconds = np.array([0, 1, 2, 3, 7.9, 12.8, 13.8, 14.8, 15.8])
    same = np.ones(9)
    times = (seconds * 1e6).astype(np.int64)
    found = mp_trade_clusters(times, same, same, np.array([1] * 5 + [0] * 4), *SCALES, 4)
    assert (found["clusters"], found["largest_trades"], found["largest_buy_share"]) == (2, 5, 1.0)


def test_far_trades_are_no_cluster() -> None:
    found = mp_trade_clusters(
        np.arange(5) * 10**8, np.full(5, 100.0), np.full(5, 1.0), np.ones(5, dtype=np.int64), *SCALES, 3
    )
    assert (found["clusters"], found["clustered_share"], found["largest_trades"]) == (0, 0, 0)
    assert np.isnan([found["density"], found["largest_buy_share"], found["largest_volume_share"]]).all()


@pytest.mark.parametrize(("price", "quantity", "scale"), [(0.0, 1.0, 5.0), (1.0, 0.0, 5.0), (1.0, 1.0, 0.0)])
def test_what_cannot_be_clustered_says_so(price: float, quantity: float, scale: float) -> None:
    one = np.ones(1, dtype=np.int64)
    with pytest.raises(ValueError, match="above 0"):
        mp_trade_clusters(one, np.array([price]), np.array([quantity]), one, scale, 10.0, 0.2, 3)
    with pytest.raises(ValueError, match="one length"):
        mp_trade_clusters(one[:0], np.zeros(0), np.zeros(0), one[:0], 5.0, 10.0, 0.2, 3)
