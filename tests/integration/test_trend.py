"""Trend states equal a state machine walked in Python and the jump model of its own library; the rules step in for it."""

from __future__ import annotations

import random
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest

from python_udfs.functions.trend import mp_trend_states
from python_udfs.settings import Settings
from tests.integration.test_volatility_heatmap import CASES, START, _books, _trades
from tests.oracles import trend
from tests.oracles.clock import HOUR_US
from tests.support import Instrument, dbt, execute, insert_books, insert_trades, insert_watermark, query, us

SHORT: Final = 5
LONG: Final = 12
MEMORY: Final = 6
FIT: Final = 120
LEAST: Final = 40
DECODE: Final = 30
STEPS: Final = 3
SCORED: Final = 60
VARS: Final[dict[str, Any]] = {
    "trend_long_buckets": LONG,
    "trend_memory_buckets": MEMORY,
    "trend_fit_buckets": FIT,
    "trend_fit_min_buckets": LEAST,
    "trend_decode_buckets": DECODE,
    "trend_score_buckets": SCORED,
    "trend_score_min_buckets": 10,
}
Rows = dict[str, npt.NDArray[np.float64]]


@pytest.fixture(scope="module")
def built(module_store: Settings) -> None:
    r = random.Random(11)
    for instrument, case in CASES.items():
        trades = _trades(r, case)
        insert_trades(r.sample(trades, len(trades)), instrument)
        insert_books(_books(r, trades, case), instrument)
        insert_watermark(instrument, "trades", trades[-1].timestamp + HOUR_US)
    dbt("seed")
    execute("truncate table bucket_defaults", layer="features")
    execute(
        "insert into bucket_defaults values",
        [("*", "*", "*", "volume", "hour", 30, 5, 4, 4, 4, 50, 20, 50, 24, 10**6, "")],
        layer="features",
    )
    dbt("run", select="+trend_states +trend_quality", **VARS)


def _rows(instrument: Instrument) -> Rows:
    rows = query(
        f"select m.mid_close, {us('m.bucket_ts_end')} as end, r.trend_short, r.trend_long, r.trend_rule_state, "
        "j.trend_jump_state, j.trend_fit_age_s, s.trend_rule_score_bps, s.trend_jump_score_bps, "
        "s.trend_is_jump, s.trend_state "
        "from bucket_moves as m inner join trend_moves as r using (exchange, market_type, symbol, bucket_id) "
        "inner join trend_jump as j using (exchange, market_type, symbol, bucket_id) "
        "inner join trend_states as s using (exchange, market_type, symbol, bucket_id) "
        "where (exchange, market_type, symbol) = (%(x)s, %(m)s, %(y)s) order by bucket_id",
        **dict(zip("xmy", instrument, strict=True)),
    )
    return {
        name.split(".")[-1]: np.array(
            [np.nan if row[name] is None else row[name] for row in rows], dtype=float
        )
        for name in rows[0]
    }


def _floats(states: list[int | None]) -> npt.NDArray[np.float64]:
    return np.array([np.nan if s is None else s for s in states])


@pytest.mark.parametrize("instrument", CASES, ids="-".join)
def test_equal_to_the_oracles(built: None, instrument: Instrument) -> None:
    rows = _rows(instrument)
    short, long = (trend.straightness(rows["mid_close"], n) for n in (SHORT, LONG))
    # a rounding beside sqrt(n)
    np.testing.assert_allclose(rows["trend_short"], short, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(rows["trend_long"], long, rtol=1e-9, atol=1e-9)
    rules = _floats(trend.rule_states(long, 1.5, 0.5, MEMORY))
    np.testing.assert_array_equal(rows["trend_rule_state"], rules)
    hours = rows["end"].astype(np.int64) // HOUR_US
    jumps = _floats(
        trend.jump_states(
            np.column_stack([short, long]),
            hours,
            fit=FIT,
            least=LEAST,
            decode=DECODE,
            penalty=3,
            neutral=0.5,
            margin=0.25,
        )
    )
    np.testing.assert_array_equal(rows["trend_jump_state"], jumps)

    moved = np.full(len(long), np.nan)
    moved[STEPS:] = np.log(rows["mid_close"][STEPS:] / rows["mid_close"][:-STEPS]) * 10_000
    earned = {}
    for name, states in (("rule", rules), ("jump", jumps)):
        earned[name] = np.full(len(long), np.nan)
        earned[name][STEPS:] = states[:-STEPS] * moved[STEPS:]
    both = ~np.isnan(earned["rule"]) & ~np.isnan(earned["jump"])
    for i in range(len(long)):
        seen = np.flatnonzero(both[max(0, i - SCORED + 1) : i + 1]) + max(0, i - SCORED + 1)
        for name in ("rule", "jump"):
            want = earned[name][seen].mean() if len(seen) >= 10 else np.nan
            np.testing.assert_allclose(rows[f"trend_{name}_score_bps"][i], want, rtol=1e-9, atol=1e-9)
    better = rows["trend_jump_score_bps"] >= rows["trend_rule_score_bps"]
    uses_jump = ~np.isnan(jumps) & better
    np.testing.assert_array_equal(rows["trend_is_jump"], uses_jump)
    np.testing.assert_array_equal(rows["trend_state"], np.where(uses_jump, jumps, rules))


def test_every_way_is_seen(built: None) -> None:
    rows = _rows(next(iter(CASES)))
    for column in ("trend_rule_state", "trend_jump_state", "trend_state"):
        assert {-1, 0, 1} <= set(rows[column])
    there = ~np.isnan(rows["trend_jump_state"])
    assert there.any() and (~there & ~np.isnan(rows["trend_rule_state"])).any()
    # the jump model when it is no worse, the rules when it is or is missing
    assert {0.0, 1.0} == set(rows["trend_is_jump"][there])


def test_a_stale_model_gives_way_to_the_rules(built: None) -> None:
    dbt("run", select="trend_jump trend_states", full_refresh=True, **VARS, trend_fit_max_age_s=0.001)
    try:
        rows = _rows(next(iter(CASES)))
        first = ~np.isnan(rows["trend_jump_state"])
        # only the very bucket that a fit ends with
        assert 0 < first.sum() <= 3 and (rows["trend_fit_age_s"][first] == 0).all()
        np.testing.assert_array_equal(rows["trend_state"], rows["trend_rule_state"])
    finally:
        dbt("run", select="trend_jump trend_states", full_refresh=True, **VARS)


def test_quality_counts_runs(built: None) -> None:
    instrument = next(iter(CASES))
    rows = _rows(instrument)
    day = rows["end"].astype(np.int64) // (24 * HOUR_US)
    states = rows["trend_state"][(day == START // (24 * HOUR_US)) & ~np.isnan(rows["trend_state"])]
    cuts = np.flatnonzero(np.diff(states)) + 1
    dwells = np.sort(np.diff(np.concatenate([[0], cuts, [len(states)]])))
    [got] = query(
        "select * from trend_quality where (exchange, market_type, symbol, trend_model) = (%(x)s, %(m)s, %(y)s, 'chosen') "
        "and utc_day = '2026-01-05'",
        **dict(zip("xmy", instrument, strict=True)),
    )
    assert got["buckets"] == len(states)
    assert got["flips_per_100"] == pytest.approx(100 * len(cuts) / len(states))
    assert got["mean_dwell_buckets"] == pytest.approx(dwells.mean())
    assert got["p90_dwell_buckets"] == dwells[int(np.ceil(0.9 * len(dwells))) - 1]
    assert got["up_share"] == pytest.approx((states == 1).mean())


def test_centres_are_named_by_where_they_lie() -> None:
    r = np.random.default_rng(3)
    long = np.concatenate([r.normal(m, 0.2, 60) for m in (2.0, 0.0, -2.0, 2.0)])
    fit = mp_trend_states(long / 2, long, 3.0, 0.5)
    assert fit["state"].tolist() == [-1, 0, 1]
    np.testing.assert_allclose(fit["long"], [-2, 0, 2], atol=0.1)
    # the same market moved up: the lowest centre is no longer a downtrend
    assert mp_trend_states(long / 2, long + 2.2, 3.0, 0.5)["state"].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("short", "long", "penalty"),
    [
        ([1.0, 2.0], [1.0, 2.0], 1.0),
        ([1.0] * 4, [1.0] * 3, 1.0),
        ([np.nan] * 4, [1.0] * 4, 1.0),
        ([1.0] * 4, [1.0] * 4, -1.0),
    ],
)
def test_bad_stretches_are_refused(short: list[float], long: list[float], penalty: float) -> None:
    with pytest.raises(ValueError, match="must"):
        mp_trend_states(np.array(short), np.array(long), penalty, 0.5)
