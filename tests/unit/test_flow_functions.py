"""mp_pin and mp_hawkes: against the likelihoods written out, and against simulations of which the truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import poisson
from threadpoolctl import threadpool_limits

from python_udfs.functions.flow import MIN_ARRIVALS, MIN_INTERVALS, mp_hawkes, mp_pin
from python_udfs.functions.registry import Floats
from tests.oracles.flow import hawkes_log_likelihood, pin_log_likelihood

PIN_TRUTHS = [
    (0.4, 0.4, 30.0, 50.0, 40.0),
    (0.2, 0.7, 5000.0, 9000.0, 10_000.0),
    (0.3, 0.5, 10.0, 12.0, 13.0),
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the UDF's process: on vectors of five numbers the threads of BLAS only wait for each other."""
    with threadpool_limits(1):
        yield


def _counts(seed: int, truth: tuple[float, ...], n: int = 288) -> tuple[Floats, Floats]:
    alpha, delta, mu, eps_b, eps_s = truth
    r = np.random.default_rng(seed)
    news = r.random(n) < alpha
    bad = news & (r.random(n) < delta)
    buys, sells = r.poisson(eps_b + mu * (news & ~bad)), r.poisson(eps_s + mu * bad)
    return buys.astype(float), sells.astype(float)


@pytest.mark.parametrize("truth", PIN_TRUTHS)
def test_pin_is_found(truth: tuple[float, ...]) -> None:
    alpha, _, mu, eps_b, eps_s = truth
    found = mp_pin(*_counts(1, truth))
    # three standard errors of alpha from 288 intervals
    assert found["alpha"] == pytest.approx(alpha, abs=0.09)
    assert found["mu"] == pytest.approx(mu, rel=0.2)
    assert found["epsilon_buy"] == pytest.approx(eps_b, rel=0.05)
    assert found["epsilon_sell"] == pytest.approx(eps_s, rel=0.05)
    assert found["pin"] == pytest.approx(alpha * mu / (alpha * mu + eps_b + eps_s), abs=0.03)


@pytest.mark.parametrize("truth", PIN_TRUTHS)
def test_nothing_is_likelier_than_pin(truth: tuple[float, ...]) -> None:
    """No step from the maximum raises the likelihood as the paper writes it; nor does another optimiser find a higher one."""
    buys, sells = _counts(2, truth)
    found = mp_pin(buys, sells)
    best = pin_log_likelihood(found, buys, sells, poisson.logpmf)
    for name in ("alpha", "delta", "mu", "epsilon_buy", "epsilon_sell"):
        for factor in (0.99, 0.9999, 1.0001, 1.01):
            moved = {**found, name: found[name] * factor}
            assert pin_log_likelihood(moved, buys, sells, poisson.logpmf) < best, (name, factor)

    names = ("alpha", "delta", "mu", "epsilon_buy", "epsilon_sell")

    def loss(x: Floats) -> float:
        if not (0 < x[0] < 1 and 0 < x[1] < 1 and min(x[2:]) > 0):
            return math.inf
        return -pin_log_likelihood(dict(zip(names, x, strict=True)), buys, sells, poisson.logpmf)

    other = minimize(
        loss, truth, method="Nelder-Mead", options={"maxiter": 4000, "xatol": 1e-8, "fatol": 1e-8}
    )
    assert -other.fun <= best + 1e-6


def test_pin_of_too_little_is_not_said() -> None:
    buys, sells = _counts(3, PIN_TRUTHS[0], MIN_INTERVALS)
    assert math.isfinite(mp_pin(buys, sells)["pin"])
    assert math.isnan(mp_pin(buys[1:], sells[1:])["pin"])
    assert math.isnan(mp_pin(np.array([]), np.array([]))["pin"])
    assert math.isnan(mp_pin(np.zeros(100), np.ones(100))["pin"])


@pytest.mark.parametrize(
    ("buys", "sells"), [([1.0], [1.0, 2.0]), ([-1.0] * 50, [1.0] * 50), ([math.nan] * 50, [1.0] * 50)]
)
def test_wrong_counts_are_refused(buys: list[float], sells: list[float]) -> None:
    with pytest.raises(ValueError, match=r"intervals of buys|counts are finite"):
        mp_pin(np.array(buys), np.array(sells))


def _cascade(seed: int, ratio: float, decay: float, rate: float, n: int) -> Floats:
    """The last n events of a Hawkes process, by its definition as families: each event has Poisson(ratio) children,
    exponentially later."""
    r = np.random.default_rng(seed)
    span = 3 * n / rate
    generation = r.uniform(0, span, r.poisson(rate * (1 - ratio) * span))
    events = [generation]
    while generation.size:
        children = np.repeat(generation, r.poisson(ratio, generation.size))
        generation = children + r.exponential(1 / decay, children.size)
        generation = generation[generation < span]
        events.append(generation)
    return np.sort(np.concatenate(events))[-n:]


@pytest.mark.parametrize("decay", [2.0, 50.0])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.6, 0.9])
def test_the_branching_ratio_is_found(ratio: float, decay: float) -> None:
    found = [mp_hawkes(_cascade(seed, ratio, decay, 5.0, 500)) for seed in range(20)]
    ratios = [f["branching_ratio"] for f in found]
    # one fit of 500 events scatters by about 0.1; a maximum over decays cannot fall below 0, so Poisson gives a little more
    assert np.mean(ratios) == pytest.approx(ratio, abs=0.12 if ratio == 0 else 0.06)
    if ratio:
        assert np.median([f["decay"] for f in found]) == pytest.approx(decay, rel=0.3)


def test_nothing_is_likelier_than_the_fit() -> None:
    times = _cascade(5, 0.5, 20.0, 5.0, 200)
    found = mp_hawkes(times)
    names = ("branching_ratio", "baseline", "decay")
    best = hawkes_log_likelihood(times, **found)

    def loss(x: Floats) -> float:
        return -hawkes_log_likelihood(times, *x) if min(x) > 0 else math.inf

    other = minimize(loss, [0.5, 2.5, 20.0], method="Nelder-Mead", options={"maxiter": 300, "xatol": 1e-6})
    # decays come from a grid: what that costs is far below the half that a likelihood ratio calls a difference
    assert best > -other.fun - 0.02
    assert [found[n] for n in names] == pytest.approx(other.x, rel=0.05)


def test_hawkes_of_too_little_is_not_said() -> None:
    times = np.cumsum(np.random.default_rng(1).exponential(1, MIN_ARRIVALS))
    assert math.isfinite(mp_hawkes(times)["branching_ratio"])
    assert math.isnan(mp_hawkes(times[1:])["branching_ratio"])
    assert math.isnan(mp_hawkes(np.array([]))["branching_ratio"])


@pytest.mark.parametrize("spoil", [lambda t: t[::-1], lambda t: np.repeat(t, 2), lambda t: t * math.nan])
def test_times_that_do_not_increase_are_refused(spoil: Callable[[Floats], Floats]) -> None:
    with pytest.raises(ValueError, match="strictly increasing"):
        mp_hawkes(spoil(np.arange(60.0)))
