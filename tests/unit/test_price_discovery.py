"""Information shares against statsmodels, and where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.tsa.vector_ar.vecm import VECM

from python_udfs.functions.price_discovery import error_correction, mp_information_share


def _cointegrated(speeds: tuple[float, float], correlation: float, n: int = 20_000) -> np.ndarray:
    """Log prices, shape (2, n), that correct their difference with these speeds."""
    r = np.random.default_rng(5)
    noise = r.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], n) * 1e-4
    out = np.zeros((2, n))
    for t in range(1, n):
        z = out[0, t - 1] - out[1, t - 1]
        out[:, t] = out[:, t - 1] + np.array(speeds) * z + noise[t]
    return out + 7.0


@pytest.mark.parametrize("lags", [1, 3])
def test_the_model_equals_that_of_statsmodels(lags: int) -> None:
    prices = _cointegrated((-0.1, 0.3), 0.4, 3000)
    fitted = VECM(prices.T, k_ar_diff=lags, coint_rank=1, deterministic="co").fit()
    found = error_correction(prices, lags, vector=tuple(fitted.beta[:, 0]))
    np.testing.assert_allclose(found.alpha, fitted.alpha[:, 0], rtol=1e-6)
    np.testing.assert_allclose(found.gamma, fitted.gamma, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(found.covariance, fitted.sigma_u, rtol=1e-6)
    assert found.rows == 3000 - lags - 1
    # Johansen's estimate of the vector is the one that is imposed
    np.testing.assert_allclose(fitted.beta[:, 0], [1, -1], atol=0.02)


def test_shares_equal_those_of_the_long_run_impact() -> None:
    """Hasbrouck's definition, from statsmodels: C(1) by its moving average, Cholesky in both orders."""
    prices = _cointegrated((-0.05, 0.2), 0.5)
    fitted = VECM(prices.T, k_ar_diff=2, coint_rank=1, deterministic="co").fit()
    impact = fitted.ma_rep(400)[-1]
    shares = []
    for order in ([0, 1], [1, 0]):
        factor = np.linalg.cholesky(fitted.sigma_u[np.ix_(order, order)])
        parts = (impact[0, order] @ factor) ** 2
        shares.append((parts / parts.sum())[order.index(0)])
    found = mp_information_share(np.exp(prices[0]), np.exp(prices[1]), 2)
    assert [found["low"], found["high"]] == pytest.approx(sorted(shares), abs=0.01)
    assert found["component"] == pytest.approx(
        fitted.alpha[1, 0] / (fitted.alpha[1, 0] - fitted.alpha[0, 0]), abs=0.01
    )
    # by construction: w = (0.8, 0.2), correlation 0.5
    assert found["component"] == pytest.approx(0.8, abs=0.05)
    assert found["high"] == pytest.approx((0.8 + 0.1) ** 2 / 0.84, abs=0.03)
    assert found["low"] == pytest.approx(0.8**2 * 0.75 / 0.84, abs=0.06)


def test_the_shares_of_both_markets_add_up_to_one() -> None:
    one, two = np.exp(_cointegrated((-0.05, 0.2), 0.5, 5000))
    a, b = mp_information_share(one, two, 3), mp_information_share(two, one, 3)
    assert [a["low"] + b["high"], a["high"] + b["low"], a["component"] + b["component"]] == pytest.approx(
        [1, 1, 1]
    )


def test_the_market_that_never_follows_discovers_everything() -> None:
    one, two = np.exp(_cointegrated((0.0, 0.5), 0.0))
    found = mp_information_share(one, two, 1)
    assert found["component"] == pytest.approx(1, abs=0.03)
    assert found["low"] > 0.97


def test_unknown_instants_are_left_out() -> None:
    one, two = np.exp(_cointegrated((-0.05, 0.2), 0.5))
    whole = mp_information_share(one, two, 1)
    one[5000:7000] = np.nan
    two[::500] = np.nan
    assert mp_information_share(one, two, 1) == pytest.approx(whole, abs=0.05)


@pytest.mark.parametrize(
    ("this", "other", "reason"),
    [
        (np.array([]), np.array([]), "fewer than"),
        (np.full(50, 100.0), np.full(50, 100.0), "too few"),
        (np.full(5000, 100.0), np.full(5000, 100.0), "vary"),
        (np.full(5000, np.nan), np.full(5000, 100.0), "too few"),
        (np.full(5000, 0.0), np.full(5000, 100.0), "above 0"),
        (np.full(5000, 1.0), np.full(4999, 1.0), "length"),
    ],
)
def test_what_cannot_be_told_raises(this: np.ndarray, other: np.ndarray, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        mp_information_share(this, other, 2)


def test_prices_that_run_away_from_each_other_raise() -> None:
    one, two = np.exp(np.clip(_cointegrated((0.002, -0.002), 0.0, 2000), 0, 20))
    with pytest.raises(ValueError, match="pull"):
        mp_information_share(one, two, 1)
