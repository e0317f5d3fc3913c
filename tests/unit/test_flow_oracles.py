"""The oracles of trade flow against third-party packages, numbers worked out by hand, and processes of known statistics."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from tests.oracles import clock, flow, libraries
from tests.oracles.clock import HOUR_US, SECOND_US, Config, Trade
from tests.oracles.features import BookRows, book_states

H = 1_700_002_800 * SECOND_US
NO_BOOK = book_states(
    BookRows(*(np.zeros(0, dtype=np.int64) for _ in range(3)), *(np.zeros(0) for _ in range(4)))
)
WIDE = Config("count", HOUR_US, n_trades=10**6)


def _trades(prices: list[float], sides: str, gap_us: int = 1000) -> list[Trade]:
    return [
        Trade(
            H + i * gap_us, i, str(i), 10**8, H + i * gap_us, round(p * 10**8), "buy" if s == "b" else "sell"
        )
        for i, (p, s) in enumerate(zip(prices, sides, strict=True), 1)
    ]


def test_bars_split_trades_as_ob_analytics_does() -> None:
    r = random.Random(1)
    trades = [
        Trade(H + i, i, "", r.randrange(1, 500), H + i, 10**8, r.choice(["buy", "sell"])) for i in range(300)
    ]
    for bar in (7, 100, 999, 10**6):
        ours = [imbalance for _, imbalance in flow.volume_bars(trades, bar)]
        np.testing.assert_allclose(ours, libraries.equal_volume_imbalances(trades, bar), atol=1e-6)


def test_a_trade_is_split_at_the_end_of_a_bar() -> None:
    trades = [
        Trade(H, i, "", q, H, 1, side) for i, (q, side) in enumerate([(3, "buy"), (4, "sell"), (9, "buy")])
    ]
    # 3 bought and 2 sold; 2 sold and 3 bought; 5 bought; 1 left over
    assert flow.volume_bars(trades, 5) == [(1, 1), (2, 1), (2, 5)]


def test_spreads_are_those_of_orderflow_metrics() -> None:
    """A book every second, a trade half way: bought at 101 under a mid of 100, and so on."""
    mids, prices, sides = [100.0, 102.0, 99.0, 99.0, 103.0], [101.0, 101.5, 98.0, 99.0], "bbsb"
    at = np.array([H + i * SECOND_US for i in range(len(mids))])
    bids, asks = np.array(mids) - 0.5, np.array(mids) + 0.5
    one = np.ones(len(mids))
    states = book_states(BookRows(at, at, np.arange(len(mids)), bids, one, asks, one))
    trades = [
        t._replace(timestamp=t.timestamp + SECOND_US // 2, known_at=t.known_at + SECOND_US // 2)
        for t in _trades(prices, sides, SECOND_US)
    ]
    trades = [t._replace(timestamp=t.timestamp - SECOND_US, known_at=t.known_at - SECOND_US) for t in trades]
    buckets = clock.buckets(trades, WIDE, watermark=H + 2 * HOUR_US)
    out = flow.spreads(buckets, trades, states)
    effective, realized, impact = libraries.spread_parts(
        prices, mids[:-1], mids[1:], [s == "b" for s in sides]
    )
    base = np.array(mids[:-1])
    assert out["effective_spread_bps"][0] == pytest.approx(1e4 * np.mean(effective / base))
    assert out["quoted_spread_traded_bps"][0] == pytest.approx(1e4 * np.mean(1 / base))
    # bought at 101.5 under an ask of 102.5, and at 99 under 99.5
    assert out["price_improvement_share"][0] == 0.5
    assert out["realized_spread_1s_bps"][0] == pytest.approx(1e4 * np.mean(realized / base))
    assert out["price_impact_1s_bps"][0] == pytest.approx(1e4 * np.mean(impact / base))
    # a mid of 103 is all that is known for 5 s
    later = 2 * np.array([1, 1, -1, 1]) * (103 - base) / base
    assert out["price_impact_5s_bps"][0] == pytest.approx(1e4 * np.mean(later))
    assert math.isnan(out["price_impact_30s_bps"][0])


def test_roll_finds_the_spread_of_a_bounce() -> None:
    r = random.Random(2)
    value, prices = 1000.0, []
    for _ in range(4000):
        value += r.gauss(0, 0.02)
        prices.append(value + r.choice([-0.05, 0.05]))
    trades = _trades(prices, "b" * len(prices))
    buckets = clock.buckets(trades, WIDE, watermark=H + 2 * HOUR_US)
    found = flow.spreads(buckets, trades, NO_BOOK)["roll_spread_bps"][0] * prices[-1] / 1e4
    assert found == pytest.approx(0.1, rel=0.05)
    assert found == pytest.approx(libraries.roll_spread(prices), rel=0.01)


def test_fano_is_1_for_poisson_and_the_size_of_a_burst_for_bursts() -> None:
    r = np.random.default_rng(3)
    for burst in (1, 4):
        times = np.sort(np.repeat(r.integers(0, 1000 * SECOND_US, 4000), burst))
        trades = [Trade(H + int(t), i, str(i), 10**8, H + int(t), 10**8, "buy") for i, t in enumerate(times)]
        # cut by time: a bucket that a number of trades ends holds that number, by no chance
        buckets = clock.buckets(
            trades, Config("count", 30 * SECOND_US, n_trades=10**6), watermark=H + 2 * HOUR_US
        )
        out = flow.arrivals(buckets, clock.on_time(trades), lambda _: {"branching_ratio": 0.0})
        for name in ("fano_100ms", "fano_1s"):
            assert out[name][-1] == pytest.approx(burst, rel=0.15), (name, burst)
        assert out["trade_intensity"][-1] == pytest.approx(4 * burst, rel=0.1)
