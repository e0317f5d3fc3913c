"""Models of how trades arrive: the probability of informed trading, and self-excitation."""

from __future__ import annotations

import math

import numpy as np

from python_udfs.functions.registry import Floats, udf

MIN_INTERVALS = 48
MIN_ARRIVALS = 50
_PIN_NULL = dict.fromkeys(("pin", "alpha", "delta", "mu", "epsilon_buy", "epsilon_sell"), math.nan)
_HAWKES_NULL = dict.fromkeys(("branching_ratio", "baseline", "decay"), math.nan)


# ---- probability of informed trading -------------------------------------------------------------------


def _pin_loss(theta: Floats, buys: Floats, sells: Floats) -> tuple[float, Floats]:
    """Minus the mean log-likelihood, and its gradient, at theta = (logit alpha, logit delta, log mu, log epsilon_buy,
    log epsilon_sell). Terms that no parameter moves (log B!, log S!) are left out."""
    alpha, delta = 1 / (1 + np.exp(-theta[:2]))
    mu, eps_b, eps_s = np.exp(theta[2:])
    quiet = buys * np.log(eps_b) + sells * np.log(eps_s)
    terms = np.stack(
        [
            np.log1p(-alpha) + quiet,
            np.log(alpha) + np.log1p(-delta) + quiet + buys * np.log1p(mu / eps_b) - mu,
            np.log(alpha) + np.log(delta) + quiet + sells * np.log1p(mu / eps_s) - mu,
        ]
    )
    # the largest term is taken out before exp: counts of any size neither overflow nor vanish
    top = terms.max(axis=0)
    likelihood = np.exp(terms - top).sum(axis=0)
    log_likelihood = top + np.log(likelihood) - eps_b - eps_s
    _, good, bad = np.exp(terms - top) / likelihood

    news = good + bad
    rate_b, rate_s = buys / (mu + eps_b), sells / (mu + eps_s)
    gradient = np.array(
        [
            np.mean(news) - alpha,
            np.mean(bad) - delta * np.mean(news),
            mu * np.mean(good * rate_b + bad * rate_s - news),
            np.mean((1 - good) * buys) + eps_b * np.mean(good * rate_b) - eps_b,
            np.mean((1 - bad) * sells) + eps_s * np.mean(bad * rate_s) - eps_s,
        ]
    )
    return -float(np.mean(log_likelihood)), -gradient


@udf(
    arguments={"buys": "Array(Float64)", "sells": "Array(Float64)"},
    returns={
        "pin": "Float64",
        "alpha": "Float64",
        "delta": "Float64",
        "mu": "Float64",
        "epsilon_buy": "Float64",
        "epsilon_sell": "Float64",
    },
)
def mp_pin(buys: Floats, sells: Floats) -> dict[str, float]:
    """The probability of informed trading of Easley, Kiefer, O'Hara and Paperman (1996), with different rates of
    uninformed buyers and sellers, by maximum likelihood.

    An interval has news with probability alpha, bad news with delta of those. Buys and sells are Poisson with rates
    epsilon_buy and epsilon_sell; informed traders add mu to the buys on good news, to the sells on bad.
    PIN = alpha mu / (alpha mu + epsilon_buy + epsilon_sell). The likelihood is factored as in Easley, Hvidkjaer and
    O'Hara (2010) and Lin and Ke (2011), so that large counts do not overflow; starts as in Yan and Zhang (2012).

    Args:
        buys, sells: numbers of trades by the taker's side, one a time interval, shape (n,).

    Returns:
        Rates are per interval. All nan with fewer than `MIN_INTERVALS` intervals, or without a buy or a sell.

    Raises:
        ValueError: the shapes differ, a count is negative or not finite; or no start led to a maximum.
    """
    from scipy.optimize import minimize

    if buys.shape != sells.shape:
        raise ValueError(f"{buys.size} intervals of buys, {sells.size} of sells")
    if not (
        np.isfinite(buys).all() and np.isfinite(sells).all() and (buys >= 0).all() and (sells >= 0).all()
    ):
        raise ValueError("counts are finite and not negative")
    mean_b, mean_s = (float(np.mean(x)) if x.size else 0.0 for x in (buys, sells))
    if buys.size < MIN_INTERVALS or min(mean_b, mean_s) == 0:
        return dict(_PIN_NULL)

    best = None
    for alpha in (0.1, 0.3, 0.5, 0.7):
        for share in (0.2, 0.5, 0.8):
            # the news that this alpha would need to explain the mean of the side with more of it
            eps_b = share * mean_b
            mu = (mean_b - eps_b) / (alpha * 0.5)
            eps_s = max(mean_s - alpha * 0.5 * mu, 0.1 * mean_s)
            start = np.array([math.log(alpha / (1 - alpha)), 0.0, *np.log([mu, eps_b, eps_s])])
            bounds = [(-12.0, 12.0)] * 2 + [
                (math.log(m) - 14, math.log(m) + 6) for m in (mean_b, mean_b, mean_s)
            ]
            found = minimize(
                _pin_loss,
                start,
                args=(buys, sells),
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                options={"maxiter": 500, "ftol": 1e-14, "gtol": 1e-9},
            )
            if math.isfinite(found.fun) and (best is None or found.fun < best.fun):
                best = found
    if best is None:
        raise ValueError("no start led to a maximum of the likelihood")
    alpha, delta = (float(x) for x in 1 / (1 + np.exp(-best.x[:2])))
    mu, eps_b, eps_s = (float(x) for x in np.exp(best.x[2:]))
    return {
        "pin": alpha * mu / (alpha * mu + eps_b + eps_s),
        "alpha": alpha,
        "delta": delta,
        "mu": mu,
        "epsilon_buy": eps_b,
        "epsilon_sell": eps_s,
    }


# ---- Hawkes process ------------------------------------------------------------------------------------


def _excitation(gaps: Floats, decays: Floats) -> Floats:
    """sum over j < i of exp(-decay (t_i - t_j)), shape (decays, events): A_i = e_i (1 + A_{i-1}), by doubling: after
    step s, A_i sums the last 2^s events and `faded` is how much of an earlier one is left."""
    faded = np.exp(-np.outer(decays, gaps))
    excitation = faded.copy()
    step = 1
    while step < gaps.size:
        excitation[:, step:] += faded[:, step:] * excitation[:, :-step]
        faded[:, step:] *= faded[:, :-step]
        step *= 2
    return excitation


def _profile(times: Floats, decays: Floats, steps: int) -> tuple[Floats, Floats]:
    """For each decay the branching ratio that maximises the likelihood, and that log-likelihood; shape (decays,).

    At a maximum the expected number of events equals the observed one, which gives the baseline; what is left is
    concave in the branching ratio: its derivative is bisected."""
    gaps, span = np.diff(times), times[-1] - times[0]
    n = gaps.size
    kernel = decays[:, None] * _excitation(gaps, decays)
    reached = np.sum(-np.expm1(-np.outer(decays, times[-1] - times)), axis=1)[:, None]
    slope = kernel - reached / span
    low, high = np.zeros((decays.size, 1)), n / reached * (1 - 1e-9)
    for _ in range(steps):
        middle = (low + high) / 2
        rising = np.sum(slope / (n / span + middle * slope), axis=1, keepdims=True) > 0
        low, high = np.where(rising, middle, low), np.where(rising, high, middle)
    ratio = np.where(low == 0, 0, (low + high) / 2)
    return ratio[:, 0], np.sum(np.log(n / span + ratio * slope), axis=1) - n


@udf(
    arguments={"times": "Array(Float64)"},
    returns={"branching_ratio": "Float64", "baseline": "Float64", "decay": "Float64"},
)
def mp_hawkes(times: Floats) -> dict[str, float]:
    """A Hawkes (1971) process with an exponential kernel, by maximum likelihood (Ozaki 1979).

    Intensity: baseline + branching_ratio * decay * sum over earlier events of exp(-decay * age). The branching ratio
    is the mean number of events that an event sets off itself: 0 for Poisson arrivals, near 1 where almost all activity
    answers activity. Memories from a tenth of the sample down to a thousandth of the mean gap are looked at: on a
    grid of decays, then on a finer one around the best.

    Args:
        times: strictly increasing, s, shape (n,). The first event opens the sample.

    Returns:
        baseline and decay in 1/s. All nan with fewer than `MIN_ARRIVALS` events.

    Raises:
        ValueError: times do not increase, or are not finite.
    """
    if times.size < MIN_ARRIVALS:
        return dict(_HAWKES_NULL)
    if not (np.isfinite(times).all() and (np.diff(times) > 0).all()):
        raise ValueError("times are finite and strictly increasing")
    span = float(times[-1] - times[0])
    grid = np.geomspace(10 / span, 1000 * (times.size - 1) / span, 25)
    best = int(np.argmax(_profile(times, grid, steps=14)[1]))
    finer = np.geomspace(grid[max(best - 1, 0)], grid[min(best + 1, grid.size - 1)], 17)
    ratios, log_likelihoods = _profile(times, finer, steps=40)
    best = int(np.argmax(log_likelihoods))
    ratio, decay = float(ratios[best]), float(finer[best])
    reached = float(np.sum(-np.expm1(-decay * (times[-1] - times))))
    return {
        "branching_ratio": ratio,
        "baseline": (times.size - 1 - ratio * reached) / span,
        "decay": decay,
    }
