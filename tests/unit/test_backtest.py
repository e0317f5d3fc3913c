from __future__ import annotations

import empyrical
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from python_udfs.errors import UserError
from python_udfs.training.backtest import (
    YEAR_S,
    Holdings,
    annual_return,
    backtest,
    calmar_ratio,
    capacity,
    deflated_sharpe,
    hold_to_label_end,
    hold_to_next_decision,
    holding_return,
    max_drawdown,
    sharpe_ratio,
    sortino_ratio,
    target_position,
)
from python_udfs.training.significance import data_snooping
from tests.oracles import evaluation as oracle

S = 1_000_000


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def test_a_return_per_second_becomes_that_of_the_horizon() -> None:
    as_of, known = ints(0, 0), ints(5 * S, S // 10)
    assert holding_return(floats(2, 2), as_of, known, per_second=True).tolist() == [10, 2]
    assert holding_return(floats(2, 2), as_of, known, per_second=False).tolist() == [2, 2]


def test_a_score_asks_for_a_position() -> None:
    score = floats(-0.9, -0.1, 0, 0.1, 0.3, np.nan)
    assert target_position(score, 0.1).tolist() == [-1, 0, 0, 0, 1, 0]
    assert target_position(score, 0.0, scale=0.6).tolist() == pytest.approx([-1, -1 / 6, 0, 1 / 6, 0.5, 0])


def test_a_position_is_held_to_the_labels_end_and_decisions_meanwhile_are_not_acted_upon() -> None:
    held = hold_to_label_end(
        position=floats(1, -1, -1, 1, 1),
        as_of=ints(0, 5, 5, 10, 30) * S,
        exit_at=ints(10, 15, 25, 20, 40) * S,
        returns=floats(0.01, 0.5, -0.02, 0.03, np.nan),
        instrument=ints(0, 0, 1, 0, 0),
    )
    assert held.row.tolist() == [0, 3, 2]
    assert held.position.tolist() == [1, 1, -1]
    # row 3 takes over at the very instant: nothing is traded between
    assert held.traded_open.tolist() == [1, 0, 1]
    assert held.traded_close.tolist() == [0, 1, 1]


def test_turning_around_trades_twice_the_position() -> None:
    held = hold_to_label_end(floats(1, -0.5), ints(0, 10) * S, ints(10, 20) * S, floats(0.1, 0.1), ints(0, 0))
    assert (held.traded_open.tolist(), held.traded_close.tolist()) == ([1, 1.5], [0, 0.5])


def test_a_position_is_held_to_the_next_decision_of_its_instrument() -> None:
    held = hold_to_next_decision(
        position=floats(1, 1, -1, 0, 1, 1),
        as_of=ints(0, 1, 4, 6, 7, 9) * S,
        price=floats(100, 50, 110, np.nan, 55, 99),
        instrument=ints(0, 1, 0, 0, 1, 0),
    )
    assert held.row.tolist() == [0, 2, 1]
    assert held.gross == pytest.approx([0.1, -0.1, 0.1]), "the row without a price decides nothing"
    assert held.traded_open.tolist() == [1, 2, 1]
    assert held.traded_close.tolist() == [0, 1, 1]


def test_a_backtest_by_hand() -> None:
    held = hold_to_label_end(
        floats(1, -1), ints(0, 70) * S, ints(50, 100) * S, floats(0.01, 0.002), ints(0, 1)
    )
    b = backtest(held, start=0, end=180 * S, instruments=2, fee_bps=4, slippage_bps=floats(1, 2), period_s=60)
    assert b.returns == pytest.approx([(0.01 - 2 * 0.0005) / 2, (-0.002 - 2 * 0.0006) / 2, 0])
    assert (b.trades, b.periods, b.elapsed_s) == (2, 3, 180)
    assert b.gross == pytest.approx(0.004)
    assert b.cost == pytest.approx(0.0011)
    assert b.net == pytest.approx(b.returns.sum())
    assert b.turnover == pytest.approx(2)
    assert b.turnover_per_day == pytest.approx(2 * 480)
    assert b.edge_bps == pytest.approx(14.5)
    assert b.win_rate == 0.5
    assert b.exposure == pytest.approx((50 + 30) / 2 / 180)
    assert b.sharpe == pytest.approx((b.sharpe_period or 0) * np.sqrt(YEAR_S / 60))


def test_idle_time_counts() -> None:
    """The same trades over twice the time are worth less a year: trades are not minutes."""
    rng = np.random.default_rng(1)
    as_of = np.arange(200) * 60 * S
    held = hold_to_label_end(
        np.ones(200), as_of, as_of + 30 * S, rng.normal(0.001, 0.002, 200), np.zeros(200, dtype=np.int64)
    )
    busy = backtest(held, start=0, end=200 * 60 * S, fee_bps=0)
    idle = backtest(held, start=0, end=400 * 60 * S, fee_bps=0)
    assert (busy.net, busy.trades) == (idle.net, idle.trades)
    assert busy.sharpe is not None and idle.sharpe is not None
    assert idle.sharpe < 0.8 * busy.sharpe
    assert idle.turnover_per_day == pytest.approx(busy.turnover_per_day / 2)


def test_the_period_decides_little_when_returns_have_no_memory() -> None:
    rng = np.random.default_rng(2)
    n = 20_000
    as_of = np.arange(n) * 30 * S
    held = hold_to_label_end(
        np.ones(n), as_of, as_of + 20 * S, rng.normal(0.0012, 0.003, n), np.zeros(n, dtype=np.int64)
    )
    sharpes = [backtest(held, start=0, end=n * 30 * S, period_s=p).sharpe or 0 for p in (60, 300, 1800)]
    assert sharpes == pytest.approx([sharpes[0]] * 3, rel=0.15)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-0.3, 0.3), min_size=2, max_size=60), st.sampled_from([12, 252, 525_960]))
def test_ratios_agree_with_empyrical(values: list[float], per_year: int) -> None:
    returns = np.array([v if abs(v) > 1e-6 else 0.0 for v in values])
    assert max_drawdown(returns) == pytest.approx(empyrical.max_drawdown(returns), abs=1e-12)
    if np.ptp(returns) < 1e-6:
        return
    assert sharpe_ratio(returns, per_year) == pytest.approx(
        empyrical.sharpe_ratio(returns, annualization=per_year), rel=1e-6
    )
    if (returns < 0).any():
        assert sortino_ratio(returns, per_year) == pytest.approx(
            empyrical.sortino_ratio(returns, annualization=per_year), rel=1e-6
        )
    with np.errstate(over="ignore"):
        theirs = empyrical.cagr(returns, annualization=per_year)
    ours = annual_return(returns, per_year)
    assert ours == pytest.approx(theirs, rel=1e-6) if np.isfinite(theirs) else ours is None
    if ours is not None and max_drawdown(returns) < -1e-6:
        assert calmar_ratio(returns, per_year) == pytest.approx(
            empyrical.calmar_ratio(returns, annualization=per_year), rel=1e-6
        )


def test_what_never_varies_or_loses_has_no_ratio() -> None:
    for returns in (np.zeros(5), np.full(5, 0.01), floats(0.01), floats()):
        assert sharpe_ratio(returns, 252) is None
        assert sortino_ratio(returns, 252) is None
        assert calmar_ratio(returns, 252) is None
        assert max_drawdown(returns) == 0
        assert deflated_sharpe(returns, floats(0.1)) is None
    assert annual_return(floats(), 252) is None
    assert annual_return(floats(0.1, -1.0, 0.2), 252) == -1
    assert max_drawdown(floats(0.1, -1.5, 0.2)) == -1


def test_nothing_held() -> None:
    none = hold_to_label_end(
        np.zeros(3), ints(0, 1, 2), ints(1, 2, 3), np.zeros(3), np.zeros(3, dtype=np.int64)
    )
    b = backtest(none, start=0, end=600 * S)
    assert (b.trades, b.periods, b.net, b.turnover, b.max_drawdown) == (0, 10, 0, 0, 0)
    assert (b.sharpe, b.sortino, b.calmar, b.edge_bps, b.win_rate) == (None,) * 5
    moment = backtest(none, start=5, end=5)
    assert (moment.periods, moment.exposure, moment.turnover_per_day) == (1, 0, 0)


@pytest.mark.parametrize(
    "options",
    [{"instruments": 0}, {"period_s": 0}, {"fee_bps": -1}, {"slippage_bps": floats(1, -1)}, {"end": -1}],
)
def test_options_out_of_range(options: dict[str, object]) -> None:
    empty = Holdings(*(ints(),) * 4, *(floats(),) * 4)
    with pytest.raises(UserError, match="a backtest needs"):
        backtest(empty, **{"start": 0, "end": S, **options})  # type: ignore[arg-type]


def test_a_position_outside_of_the_tested_time() -> None:
    held = hold_to_label_end(floats(1), ints(0), ints(10 * S), floats(0.1), ints(0))
    with pytest.raises(UserError, match="outside of the tested time"):
        backtest(held, start=0, end=9 * S)


def test_deflated_sharpe_by_its_formula() -> None:
    rng = np.random.default_rng(3)
    returns = rng.standard_t(5, size=400) * 0.01 + 0.0012
    trials = rng.normal(0, 0.05, size=25)
    assert deflated_sharpe(returns, trials) == pytest.approx(oracle.deflated_sharpe(returns, trials))
    one, many = deflated_sharpe(returns, trials[:1]), deflated_sharpe(returns, np.tile(trials, 20))
    assert one is not None and many is not None
    assert one > (deflated_sharpe(returns, trials) or 0) > many
    assert deflated_sharpe(returns, np.append(trials[:-1], np.nan)) == deflated_sharpe(
        returns, np.append(trials[:-1], 0.0)
    )
    assert deflated_sharpe(returns, floats()) is None


def test_capacity_is_where_impact_eats_the_edge() -> None:
    edge, volatility, volume = 1.7, 310.0, 2.5e8

    def left(notional: float) -> float:
        return edge - 0.8 * volatility * np.sqrt(notional / volume)

    assert capacity(edge, volatility, volume, 0.8) == pytest.approx(brentq(left, 1, volume))
    assert capacity(-1.0, volatility, volume) == capacity(None, volatility, volume) == 0
    assert (
        capacity(edge, 0, volume) is capacity(edge, np.nan, volume) is capacity(edge, volatility, 0) is None
    )


def test_scores_that_know_something_earn_and_shuffled_ones_pay_the_fees() -> None:
    rng = np.random.default_rng(4)
    n = 4000
    as_of = np.arange(n) // 4 * 20 * S
    instrument = np.arange(n) % 4
    signal = rng.normal(size=n)
    returns = 0.0015 * signal + rng.normal(0, 0.004, n)

    def of(score: np.ndarray) -> np.ndarray:
        held = hold_to_label_end(target_position(score, 0.5), as_of, as_of + 20 * S, returns, instrument)
        return backtest(held, start=0, end=int(as_of[-1]) + 20 * S, instruments=4).returns

    told, lucky = of(signal), np.column_stack([of(rng.permutation(signal)) for _ in range(8)])
    assert (sharpe_ratio(told, 1) or 0) > 0.3
    assert (lucky.mean(axis=0) < 0).all()
    assert (data_snooping(lucky).spa or 0) > 0.5
    assert data_snooping(np.column_stack([lucky, told])).spa == 0
