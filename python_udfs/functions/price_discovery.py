"""Where the price is discovered: two prices of one asset as a vector error correction model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from python_udfs.functions.registry import Floats, udf

MIN_ROWS_PER_COEFFICIENT = 10


@dataclass(frozen=True, slots=True)
class ErrorCorrection:
    """A fitted model of two log prices: d p_t = intercept + alpha z_{t-1} + sum_k gamma_k d p_{t-k} + e_t.

    alpha: shape (2,), how fast each price corrects z = b1 p1 + b2 p2. gamma: (2, 2 * lags), the matrices gamma_k
    side by side. covariance: (2, 2), of the residuals. rows: how many instants it was fitted on.
    """

    alpha: Floats
    gamma: Floats
    covariance: Floats
    rows: int


def error_correction(prices: Floats, lags: int, vector: tuple[float, float] = (1.0, -1.0)) -> ErrorCorrection:
    """Least squares, equation by equation, given the cointegrating vector; shape of prices: (2, n), nan: unknown.

    An instant counts where it and the `lags + 1` before it are known in both series.

    Raises:
        ValueError: fewer than ten instants per coefficient, or prices that do not vary.
    """
    moves = np.diff(prices, axis=1)
    z = vector[0] * prices[0] + vector[1] * prices[1]
    n = moves.shape[1]
    columns = [np.ones(max(n - lags, 0)), z[lags : lags + max(n - lags, 0)]]
    for k in range(1, lags + 1):
        columns += [moves[0, lags - k : n - k], moves[1, lags - k : n - k]]
    target = moves[:, lags:]
    if n - lags < 1:
        raise ValueError(f"{n + 1} instants are fewer than {lags} lags need")
    design = np.column_stack(columns)
    known = np.isfinite(design).all(axis=1) & np.isfinite(target).all(axis=0)
    design, target = design[known], target[:, known]
    rows, coefficients = design.shape
    if rows < MIN_ROWS_PER_COEFFICIENT * coefficients:
        raise ValueError(f"{rows} known instants are too few for {coefficients} coefficients")
    fitted, _, rank, _ = np.linalg.lstsq(design, target.T, rcond=None)
    if rank < coefficients:
        raise ValueError("the prices do not vary enough")
    residuals = target - fitted.T @ design.T
    return ErrorCorrection(fitted[1], fitted[2:].T, residuals @ residuals.T / rows, rows)


@udf(
    arguments={"this": "Array(Float64)", "other": "Array(Float64)", "lags": "Int64"},
    returns={"low": "Float64", "high": "Float64", "component": "Float64"},
)
def mp_information_share(this: Floats, other: Floats, lags: int) -> dict[str, float]:
    """The share of one market in the discovery of a price that two have in common.

    `low` and `high`: the bounds of Hasbrouck's (1995) information share of `this`, one for each order of the
    Cholesky factor: (w F)_1^2 / (w C w') with C the covariance of the residuals, F F' = C. `component`: the
    Gonzalo-Granger (1995) share w_1, where w = (alpha_2, -alpha_1) / (alpha_2 - alpha_1) is orthogonal to the
    speeds of adjustment (Baillie et al. 2002); below 0 or above 1 where a price moves away from the other.

    Args:
        this, other: prices on one regular grid, shape (n,), nan: unknown.
        lags: of the price changes in the model.

    Raises:
        ValueError: a price that is not above 0, too few instants, no variance, or prices that do not pull
            each other back.
    """
    if len(this) != len(other) or lags < 0:
        raise ValueError("the series differ in length, or lags is negative")
    prices = np.array([this, other], dtype=np.float64)
    if (prices <= 0).any():
        raise ValueError("a price is not above 0")
    model = error_correction(np.log(prices), lags)
    pull = model.alpha[1] - model.alpha[0]
    if not pull > 0:
        raise ValueError("the prices do not pull each other back")
    weight = np.array([model.alpha[1], -model.alpha[0]]) / pull
    total = weight @ model.covariance @ weight
    (c11, c12), (_, c22) = model.covariance
    if not (total > 0 and c11 > 0 and c22 > 0):
        raise ValueError("the prices do not vary enough")
    first = (weight[0] * c11 + weight[1] * c12) ** 2 / c11 / total  # all that is common counts as this one's
    last = weight[0] ** 2 * max(c11 - c12 * c12 / c22, 0.0) / total
    # rounded to what does not depend on how a library adds up
    low, high = sorted((round(float(first), 9), round(float(last), 9)))
    return {"low": low, "high": high, "component": round(float(weight[0]), 9)}
