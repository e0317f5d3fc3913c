"""What scores would have earned: positions on the clock they had, after fees, slippage and impact.

Time is real time. Returns are summed into periods of one length over the whole test, idle ones included, and
annualised by how many such periods a year has: never by the number of trades or rows.

References: W. Sharpe (1994), The Sharpe ratio; F. Sortino and L. Price (1994); T. Young (1991), Calmar ratio;
D. Bailey and M. López de Prado (2014), The deflated Sharpe ratio; B. Tóth et al. (2011), Anomalous price impact
(the square root).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import purgedcv

from python_udfs.errors import UserError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

YEAR_S: Final = 365.25 * 86400  # these markets never close


@dataclass(frozen=True, slots=True)
class Holdings:
    """Positions held, m of them, by instrument and then time; those of one instrument do not overlap.

    A position is a share of the instrument's capital, in [-1, 1].
    """

    row: Ints  # [m] the decision behind it
    instrument: Ints  # [m]
    opened: Ints  # [m] µs
    closed: Ints  # [m] µs
    position: Floats  # [m]
    gross: Floats  # [m] what the market moved from opened to closed, a fraction
    traded_open: Floats  # [m] change of position at `opened`
    traded_close: Floats  # [m] at `closed`: 0 where the next position takes over at that instant


def holding_return(
    returns: Floats, as_of: Ints, known_at: Ints, *, per_second: bool, floor_s: float = 1.0
) -> Floats:
    """[n] the return over the whole horizon: labels per second were divided by its length, never below the floor."""
    seconds = np.maximum((known_at - as_of) / 1e6, floor_s)
    return np.asarray(returns * seconds if per_second else returns, dtype=np.float64)


def target_position(score: Floats, threshold: float = 0.0, scale: float | None = None) -> Floats:
    """[n] the position a score asks for: none up to |threshold|, then a full one, or score / scale up to a full one.

    A score that is not finite asks for none.
    """
    known = np.where(np.isfinite(score), score, 0.0)
    size = np.sign(known) if scale is None else np.clip(known / scale, -1, 1)
    return np.asarray(np.where(np.abs(known) > threshold, size, 0.0), dtype=np.float64)


def hold_to_label_end(
    position: Floats, as_of: Ints, exit_at: Ints, returns: Floats, instrument: Ints
) -> Holdings:
    """Opens at as_of what the row asks for and holds it until exit_at. Decisions meanwhile are not acted upon.

    Args:
        position: [n] asked for, see `target_position`.
        as_of, exit_at: [n] µs, as_of ascending; exit_at is where the label's return ends.
        returns: [n] fraction from as_of to exit_at, see `holding_return`; not finite: no label, no trade.
        instrument: [n] ids.
    """
    taken: list[int] = []
    wanted = (position != 0) & np.isfinite(returns) & (exit_at > as_of)
    for name in np.unique(instrument):
        free_at = np.iinfo(np.int64).min
        for row in np.flatnonzero((instrument == name) & wanted).tolist():
            if as_of[row] >= free_at:
                taken.append(row)
                free_at = int(exit_at[row])
    rows = np.array(taken, dtype=np.int64)
    return _holdings(
        rows,
        instrument=instrument[rows],
        opened=as_of[rows],
        closed=exit_at[rows],
        position=position[rows],
        gross=returns[rows],
    )


def hold_to_next_decision(position: Floats, as_of: Ints, price: Floats, instrument: Ints) -> Holdings:
    """Moves to what each row asks for and holds it until the instrument's next row.

    Args:
        position: [n] asked for, see `target_position`. An instrument's last row closes, whatever it asks for.
        as_of: [n] µs, ascending.
        price: [n] mid at as_of; where it is unknown (not finite or <= 0) the row is no decision.
        instrument: [n] ids.
    """
    known = np.flatnonzero(np.isfinite(price) & (price > 0))
    order = known[np.argsort(instrument[known], kind="stable")]
    here, there = order[:-1], order[1:]
    held = (instrument[here] == instrument[there]) & (as_of[there] > as_of[here]) & (position[here] != 0)
    here, there = here[held], there[held]
    return _holdings(
        here,
        instrument=instrument[here],
        opened=as_of[here],
        closed=as_of[there],
        position=position[here],
        gross=price[there] / price[here] - 1,
    )


def _holdings(
    row: Ints, *, instrument: Ints, opened: Ints, closed: Ints, position: Floats, gross: Floats
) -> Holdings:
    follows = (instrument[1:] == instrument[:-1]) & (opened[1:] == closed[:-1])
    before = np.concatenate([[0.0], np.where(follows, position[:-1], 0.0)])[: len(row)]
    left = np.concatenate([np.where(follows, 0.0, position[:-1]), position[-1:]])
    return Holdings(row, instrument, opened, closed, position, gross, np.abs(position - before), np.abs(left))


@dataclass(frozen=True, slots=True)
class Backtest:
    """None where it is not defined: fewer than two periods, returns that never vary, no loss to divide by."""

    trades: int  # positions held
    elapsed_s: float
    periods: int
    period_s: float
    gross: float  # sum of the portfolio's returns before costs, a fraction of its capital
    cost: float  # fees and slippage, likewise
    net: float
    exposure: float  # mean absolute position over the elapsed time
    turnover: float  # traded, in multiples of the capital
    turnover_per_day: float
    edge_bps: float | None  # net per unit traded: what impact may take before nothing is left
    win_rate: float | None  # share of positions that earned more than their costs
    sharpe_period: float | None  # not annualised
    sharpe: float | None
    sortino: float | None
    calmar: float | None
    annual_return: float | None  # compounded; None where a year of it is beyond a float
    max_drawdown: float  # of the compounded capital, <= 0
    returns: Floats  # [periods] net, of the portfolio


def backtest(
    held: Holdings,
    *,
    start: int,
    end: int,
    instruments: int = 1,
    fee_bps: float = 4.0,
    slippage_bps: float | Floats = 1.0,
    period_s: float = 60.0,
) -> Backtest:
    """Profit and risk of a portfolio that gives each instrument the same capital.

    A position's return is booked in the period in which it is closed, its costs in which they are paid.

    Args:
        held: see `hold_to_label_end` and `hold_to_next_decision`.
        start, end: µs, the whole time that was tested, positions or not: first as_of to last exit.
        instruments: how many share the capital, those that never trade included.
        fee_bps: of what is traded, one way.
        slippage_bps: the same, half a spread for a taker; one value or [n], by decision (`held.row`).
        period_s: seconds of a period; the last may be cut short and counts as a whole.

    Raises:
        UserError: an option is out of range, or a position lies outside of [start, end].
    """
    if instruments < 1 or period_s <= 0 or fee_bps < 0 or np.any(np.asarray(slippage_bps) < 0) or end < start:
        raise UserError("a backtest needs an instrument, a period, costs >= 0 and an end after its start")
    if len(held.row) and (held.opened.min() < start or held.closed.max() > end):
        raise UserError(
            "a position lies outside of the tested time: let it span the first as_of to the last exit"
        )
    width = round(period_s * 1e6)
    periods = max(1, -(-(end - start) // width))
    slippage = np.asarray(slippage_bps, dtype=np.float64)
    rate = (fee_bps + (slippage[held.row] if slippage.ndim else slippage)) / 1e4
    opening, closing = held.traded_open * rate, held.traded_close * rate
    profit = held.position * held.gross

    def by_period(at: Ints, amounts: Floats) -> Floats:
        of = np.minimum((at - start) // width, periods - 1)
        return np.bincount(of, amounts, minlength=periods) / instruments

    returns = by_period(held.closed, profit - closing) - by_period(held.opened, opening)
    gross, cost = float(profit.sum()) / instruments, float((opening + closing).sum()) / instruments
    turnover = float((held.traded_open + held.traded_close).sum()) / instruments
    elapsed_s = (end - start) / 1e6
    own = np.abs(held.position) * (held.closed - held.opened) / 1e6
    per_year = YEAR_S / period_s
    return Backtest(
        trades=len(held.row),
        elapsed_s=elapsed_s,
        periods=periods,
        period_s=period_s,
        gross=gross,
        cost=cost,
        net=gross - cost,
        exposure=float(own.sum()) / instruments / elapsed_s if elapsed_s else 0.0,
        turnover=turnover,
        turnover_per_day=turnover / elapsed_s * 86400 if elapsed_s else 0.0,
        edge_bps=(gross - cost) / turnover * 1e4 if turnover else None,
        win_rate=float((profit > opening + closing).mean()) if len(held.row) else None,
        sharpe_period=sharpe_ratio(returns, 1),
        sharpe=sharpe_ratio(returns, per_year),
        sortino=sortino_ratio(returns, per_year),
        calmar=calmar_ratio(returns, per_year),
        annual_return=annual_return(returns, per_year),
        max_drawdown=max_drawdown(returns),
        returns=returns,
    )


def sharpe_ratio(returns: Floats, per_year: float) -> float | None:
    """Mean over sample deviation of the periods' returns [t], times the root of the periods in a year."""
    if len(returns) < 2 or np.ptp(returns) == 0:
        return None
    return float(returns.mean() / returns.std(ddof=1) * np.sqrt(per_year))


def sortino_ratio(returns: Floats, per_year: float) -> float | None:
    """Mean over the root mean square of the losses [t], times the root of the periods in a year."""
    loss = float(np.sqrt((np.minimum(returns, 0) ** 2).mean())) if len(returns) >= 2 else 0.0
    return float(returns.mean() / loss * np.sqrt(per_year)) if loss > 0 else None


def annual_return(returns: Floats, per_year: float) -> float | None:
    """The compounded return [t] as a yearly one; -1 where the capital was lost."""
    if not len(returns):
        return None
    if (returns <= -1).any():
        return -1.0
    with np.errstate(over="ignore"):
        yearly = float(np.expm1(np.log1p(returns).sum() / len(returns) * per_year))
    return yearly if np.isfinite(yearly) else None


def max_drawdown(returns: Floats) -> float:
    """The deepest fall of the compounded capital [t] from its highest point before, <= 0."""
    capital = np.concatenate([[1.0], np.cumprod(1 + np.maximum(returns, -1))])
    return float((capital / np.maximum.accumulate(capital) - 1).min())


def calmar_ratio(returns: Floats, per_year: float) -> float | None:
    """Yearly return over the deepest drawdown [t]."""
    fall, yearly = max_drawdown(returns), annual_return(returns, per_year)
    return yearly / -fall if fall < 0 and yearly is not None else None


def deflated_sharpe(returns: Floats, trial_sharpes: Floats) -> float | None:
    """Probability that the true Sharpe ratio beats the best that so many trials would show by luck.

    Args:
        returns: [t] of the chosen configuration.
        trial_sharpes: [k] per period (`Backtest.sharpe_period`) of all that were tried, the chosen one included; one that
            never traded (not finite) counts with 0.
    """
    # with three returns skewness has no unbiased kurtosis beside it
    if len(returns) < 4 or np.ptp(returns) == 0 or not len(trial_sharpes):
        return None
    trials = np.where(np.isfinite(trial_sharpes), trial_sharpes, 0.0)
    spread = float(trials.var(ddof=1)) if len(trials) > 1 else 0.0
    try:
        return float(purgedcv.deflated_sharpe_ratio(returns, len(trials), spread))
    except ValueError:  # moments too extreme for the normal approximation
        return None


def capacity(
    edge_bps: float | None, volatility_bps: float, volume: float, coefficient: float = 1.0
) -> float | None:
    """The size of one trade at which its square-root impact takes the whole edge.

    Impact of trading Q is coefficient * volatility * sqrt(Q / volume): so Q = volume * (edge / (coefficient *
    volatility))^2. Half of that edge is left at a quarter of it; profit is highest at 4/9 of it.

    Args:
        edge_bps: net of fees and slippage, per unit traded (`Backtest.edge_bps`).
        volatility_bps, volume: of one same stretch of time, say a day: deviation of the return and what was traded.
        coefficient: about 1 in most markets.

    Returns:
        In the unit of `volume`; 0 without an edge, None where volatility or volume is unknown or zero.
    """
    if not (np.isfinite(volatility_bps) and volatility_bps > 0 and np.isfinite(volume) and volume > 0):
        return None
    return volume * (edge_bps / (coefficient * volatility_bps)) ** 2 if edge_bps and edge_bps > 0 else 0.0
