"""Macro and derivative features equal their oracle: NULLs exactly, values to 1e-9, z-scores to 1e-8.

They are built in steps, as raw rows become known; a rebuild by days or of everything gives the same bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pytest

from python_udfs.settings import Settings
from tests.leakage import market
from tests.oracles import macro
from tests.oracles.clock import HOUR_US, SECOND_US
from tests.oracles.features import Columns
from tests.oracles.macro import Liquidation, SlowRow
from tests.support import (
    Instrument,
    dbt,
    execute,
    insert_books,
    insert_trades,
    insert_watermark,
    query,
    table_hash,
    us,
)

# Short memories, so that a market of some hours forgets, goes stale and gets stuck.
HISTORY: Final = 15
VARS: Final = {
    "slow_history": HISTORY,
    "funding_max_lag_s": 600,
    "funding_shock_window_s": 120,
    "funding_shock_threshold": 0.0001,
    "open_interest_max_lag_s": 500,
    "open_interest_max_unchanged_s": 300,
    "lsr_max_lag_s": 500,
    "lsr_max_unchanged_s": 400,
    "volatility_index_max_lag_s": 600,
    "realized_volatility_buckets": 40,
    "regime_buckets": 120,
    "liquidation_buckets": 6,
    "liquidation_max_lag_s": 900,
}
FAMILIES: Final = (
    *("funding", "open_interest", "long_short_bias", "squeeze", "implied_volatility", "liquidation_panic"),
    *("volatility_regime", "derivative_regime", "session"),
)
# Mean and deviation of up to 120 values, and their difference: some digits are lost in it.
LOOSER: Final = ("_z", "squeeze_score")

# Which instrument has slow rows of its own, and whose an instrument looks at.
LINEAR: Final[Instrument] = ("alpha", "linear", "AAAUSDT")
ELSEWHERE: Final[Instrument] = ("beta", "linear", "AAAUSDT")
INVERSE: Final[Instrument] = ("binance", "inverse", "BTCUSD_PERP")
PUBLISHING: Final = (LINEAR, ELSEWHERE, INVERSE)
LOOKS_AT: Final[dict[Instrument, Instrument | None]] = {
    LINEAR: LINEAR,
    ("alpha", "spot", "AAAUSDT"): LINEAR,
    ELSEWHERE: ELSEWHERE,
    INVERSE: INVERSE,
    ("bitstamp", "spot", "BTCUSD"): None,
}
ASSET: Final = {"AAAUSDT": "AAA", "BTCUSD_PERP": "BTC", "BTCUSD": "BTC"}
CONTRACT_VALUE: Final = 100


@dataclass
class Market:
    """What was published: rows of each kind by instrument (volatility indices: by asset)."""

    slow: dict[tuple[str, Instrument | str], list[SlowRow]] = field(default_factory=dict)
    liquidations: dict[Instrument, list[Liquidation]] = field(default_factory=dict)


def _time(t: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=t)


def _stamps(r: random.Random, longest_s: int) -> list[tuple[int, int]]:
    """Event and knowledge times: ties, gaps of 20 minutes, rows that come late or together."""
    t, out = market.START - 300 * SECOND_US, []
    while t < market.END:
        t += r.choice([0, SECOND_US, r.randrange(1, longest_s * SECOND_US)])
        if r.random() < 0.01:
            t += 20 * 60 * SECOND_US
        late = r.choice([0, 0, 0, 5, 60, 400]) * SECOND_US
        known_at = t + late
        if r.random() < 0.1:
            known_at += -known_at % (60 * SECOND_US)
        out.append((t, known_at))
    # a stamp may come twice, but not with the same rest of the key
    return sorted(set(out))


def _rows(
    r: random.Random, longest_s: int, value: Callable[[float], Decimal], blank: float
) -> list[tuple[int, int, Decimal]]:
    """A walk that stands still now and then; `blank`: the share of rows that say zero."""
    x, out, seen = 0.0, [], set()
    for t, known_at in _stamps(r, longest_s):
        if t in seen:
            continue
        seen.add(t)
        x += r.choice([0, 0, r.gauss(0, 1)]) if r.random() < 0.9 else 0
        out.append((t, known_at, Decimal(0) if r.random() < blank else value(x)))
    return out


def _slow(r: random.Random, of: Instrument, made: Market) -> None:
    x, m, y = of
    key = (x, m, y)
    place = "exchange, market_type, symbol, timestamp, known_at, data_source"

    rows = []
    for t, known_at, rate in _rows(r, 60, lambda v: round(Decimal(v) / 30000, 8), 0):
        # now and then the rate of the settlement after the next comes along, at the same moment
        for ahead in [0, 1] if r.random() < 0.1 else [0]:
            settles = -(-t // HOUR_US) * HOUR_US + ahead * HOUR_US
            after = settles + HOUR_US if r.random() < 0.7 else 0
            shown = rate + ahead * Decimal("0.001")
            rows.append(
                (
                    *key,
                    _time(t),
                    _time(known_at),
                    "generator",
                    shown,
                    _time(settles),
                    _time(after) if after else None,
                )
            )
            made.slow.setdefault(("funding_rates", of), []).append(
                SlowRow(t, known_at, float(shown), settles, (settles, after))
            )
    execute(
        f"insert into funding_rates ({place}, funding_rate, funding_time, next_funding_time) values", rows
    )

    rows = []
    for t, known_at, coins in _rows(r, 60, lambda v: round(Decimal(1000 * np.exp(0.01 * v)), 3), 0.05):
        rows.append((*key, _time(t), _time(known_at), "generator", coins))
        made.slow.setdefault(("open_interests", of), []).append(SlowRow(t, known_at, float(coins) or np.nan))
    execute(f"insert into open_interests ({place}, open_interest) values", rows)

    for kind, who in (("lsr_all_accounts", "account"), ("lsr_top_positions", "position")):
        rows = []
        for t, known_at, long in _rows(r, 60, lambda v: round(Decimal(1 / (1 + np.exp(-v / 9))), 4), 0.05):
            for period, seconds in [("1h", 3600), ("5m", 300)] if r.random() < 0.1 else [("5m", 300)]:
                shown = long if seconds == 300 or not long else Decimal("0.5")
                short = 1 - shown if shown else Decimal(0)
                rows.append((*key, _time(t), _time(known_at), "generator", shown, short, period))
                bias = float(shown) - float(short) if shown else np.nan
                made.slow.setdefault((kind, of), []).append(SlowRow(t, known_at, bias, seconds))
        execute(f"insert into {kind} ({place}, long_{who}_ratio, short_{who}_ratio, period) values", rows)

    if of != ELSEWHERE:  # one index per asset
        rows = []
        for t, known_at, points in _rows(r, 60, lambda v: round(Decimal(50 + 5 * v), 2) or Decimal(50), 0.05):
            for days in [30, 60] if r.random() < 0.1 else [30]:
                shown = points + (days - 30 if points else 0)
                maturity = (_time(market.START) + timedelta(days=days)).date()
                rows.append((*key, _time(t), _time(known_at), "generator", shown, ASSET[y], maturity))
                made.slow.setdefault(("volatility_indices", ASSET[y]), []).append(
                    SlowRow(t, known_at, float(shown) or np.nan, days)
                )
        execute(
            f"insert into volatility_indices ({place}, index_value, underlying_asset, maturity_date) values",
            rows,
        )

    rows = []
    for t, known_at in _stamps(r, 200):
        if t < market.START + HOUR_US // 2 and of == INVERSE:
            continue  # there is a time before the first
        side = r.choice(["buy", "sell"])
        price, quantity = Decimal(r.randrange(9000, 11000)) / 100, Decimal(r.randrange(1, 5000)) / 1000
        rows.append((*key, _time(t), _time(known_at), "generator", side, price, quantity, _time(t)))
        worth = float(quantity) * (CONTRACT_VALUE if m == "inverse" else float(price))
        made.liquidations.setdefault(of, []).append(Liquidation(t, known_at, worth, side))
    execute(f"insert into liquidations ({place}, side, price, quantity, liquidation_time) values", rows)


@pytest.fixture(scope="module")
def built(module_store: Settings) -> Market:
    r = random.Random(17)
    made = Market()
    for instrument in LOOKS_AT:
        trades = market.trades(r)
        insert_trades(trades, instrument)
        insert_books(market.books(r, trades[0].timestamp, trades[-1].timestamp), instrument)
        if instrument in PUBLISHING:
            _slow(r, instrument, made)
    dbt("seed")
    execute("truncate table bucket_defaults", layer="features")
    execute(
        "insert into bucket_defaults values",
        [("*", "*", "*", "volume", "hour", 30, 40, 8, 8, 8, 50, 20, 50, 24, 10**6, "")],
        layer="features",
    )
    kinds = ("trades", "orderbooks", *{kind for kind, _ in made.slow}, "liquidations")
    for kind in kinds:
        execute(f"create table all_{kind} as {kind}")
        execute(f"insert into all_{kind} select * from {kind}")
        execute(f"truncate table {kind}")
    edges = [0, market.START + HOUR_US * 4 // 5, market.END + HOUR_US]
    for low, high in pairwise(edges):
        known = f"{us('known_at')} >= {low} and {us('known_at')} < {high}"
        for kind in kinds:
            execute(f"insert into {kind} select * from all_{kind} where {known}")
        for instrument in LOOKS_AT:
            insert_watermark(instrument, "trades", high)
        _run()
    return made


def _run(*, full_refresh: bool = False, **variables: object) -> None:
    dbt("run", select="+" + " +".join(FAMILIES), full_refresh=full_refresh, **VARS, **variables)


def _table(name: str, of: Instrument) -> list[dict[str, Any]]:
    x, m, y = of
    return query(
        f"select * from {name} where (exchange, market_type, symbol) = (%(x)s, %(m)s, %(y)s) order by bucket_id",
        x=x,
        m=m,
        y=y,
    )


def _numbers(rows: list[dict[str, Any]], column: str) -> np.ndarray:
    return np.array([np.nan if row[column] is None else float(row[column]) for row in rows])


def _expected(made: Market, of: Instrument) -> Columns:
    """Every number of every family, from the raw rows and from the base features (which have their own oracle)."""
    x, m, y = of
    [times] = query(
        f"select groupArray(s) as starts, groupArray(e) as ends from (select {us('bucket_ts_start')} as s, {us('bucket_ts_end')} as e "
        "from unified_buckets where (exchange, market_type, symbol) = (%(x)s, %(m)s, %(y)s) order by bucket_id)",
        x=x,
        m=m,
        y=y,
    )
    starts, ends = (np.array(times[c], dtype=np.int64) for c in ("starts", "ends"))
    book, flow = _table("top_of_book", of), _table("trade_flow", of)
    mid, imbalance = _numbers(book, "mid_close"), _numbers(book, "tob_imbalance_close")
    contract = LOOKS_AT[of]

    def series(kind: str, key: Instrument | str | None, *, is_log: bool = False) -> list[macro.State]:
        rows = made.slow.get((kind, key), []) if key else []
        return macro.states(rows, history=HISTORY, is_log=is_log)

    ratios = {"max_lag_s": VARS["lsr_max_lag_s"], "max_unchanged_s": VARS["lsr_max_unchanged_s"]}
    out = macro.funding(
        ends,
        series("funding_rates", contract),
        imbalance,
        max_lag_s=VARS["funding_max_lag_s"],
        shock_window_s=VARS["funding_shock_window_s"],
        shock_threshold=VARS["funding_shock_threshold"],
    )
    out |= macro.open_interest(
        ends,
        series("open_interests", contract, is_log=True),
        max_lag_s=VARS["open_interest_max_lag_s"],
        max_unchanged_s=VARS["open_interest_max_unchanged_s"],
    )
    out |= macro.long_short_bias(
        ends, series("lsr_all_accounts", contract), series("lsr_top_positions", contract), **ratios
    )
    out |= macro.squeeze(
        imbalance, _numbers(book, "spread_bps_close"), out["open_interest_change_z"], window=50
    )
    out |= macro.implied_volatility(
        ends,
        mid,
        series("volatility_indices", ASSET[y]),
        window=int(VARS["realized_volatility_buckets"]),
        max_lag_s=VARS["volatility_index_max_lag_s"],
    )
    others = [k for k in PUBLISHING if k[0] != x and ASSET[k[2]] == ASSET[y]] if contract else []
    out |= macro.liquidation_panic(
        starts,
        ends,
        _numbers(flow, "notional"),
        mid,
        made.liquidations[contract] if contract else [],
        [event for k in others for event in made.liquidations[k]],
        buckets=int(VARS["liquidation_buckets"]),
        max_lag_s=VARS["liquidation_max_lag_s"],
    )
    out |= macro.volatility_regime(
        ends,
        mid,
        _numbers(flow, "trade_count"),
        window=50,
        memory=int(VARS["regime_buckets"]),
        high=0.8,
        low=0.2,
    )
    out |= macro.derivative_regime(out["funding_rate"], out["open_interest_rank"], threshold=1e-4, high=0.7)
    return out


KEYS = ("exchange", "market_type", "symbol", "bucket_id", "bucket_ts_start", "bucket_ts_end")


@pytest.mark.parametrize("instrument", LOOKS_AT, ids="-".join)
def test_equal_to_the_oracle(built: Market, instrument: Instrument) -> None:
    expected = _expected(built, instrument)
    buckets = _table("unified_buckets", instrument)
    for family in FAMILIES:
        rows = _table(family, instrument)
        assert [r["bucket_id"] for r in rows] == [r["bucket_id"] for r in buckets], family
        if family == "session":
            ends = np.array([round(r["bucket_ts_end"].timestamp() * 1e6) for r in rows], dtype=np.int64)
            names, weekend = macro.session(ends)
            assert [r["trading_session"] for r in rows] == names
            assert [r["is_weekend"] for r in rows] == weekend.tolist()
            continue
        for column in [c for c in rows[0] if c not in KEYS]:
            got, want = _numbers(rows, column), expected[column]
            np.testing.assert_array_equal(
                np.isnan(got),
                np.isnan(want),
                err_msg=f"{column}: NULL where the oracle has a value or the reverse",
            )
            # the absolute floor is that of a difference of nearly equal numbers
            tolerance = 1e-8 if column.endswith(LOOSER) else 1e-9
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=1e-11, err_msg=column)


def test_the_cases_reach_the_edges(built: Market) -> None:
    """The comparison means something only if each feature has values, NULLs and, where it has a sign, both."""
    for family in FAMILIES[:-1]:
        columns = [c for c in _table(family, LINEAR)[0] if c not in KEYS]
        [counts] = query(
            "select "
            + ", ".join(f"[count({c}), countIf({c} is null), uniqExact({c})] as {c}" for c in columns)
            + f" from {family} where symbol != 'BTCUSD'"
        )
        for column, (values, nulls, different) in counts.items():
            assert values > 50, column
            assert nulls > 0, column
            assert different > (1 if column.endswith(("_sign", "_regime")) else 5), (column, different)
    [row] = query(
        "select countIf(funding_shock_sign = 1) as up, countIf(funding_shock_sign = -1) as down from funding"
    )
    assert row["up"] > 5 and row["down"] > 5
    [row] = query(
        "select countIf(liquidation_venue_delay_s > 0) as a, countIf(liquidation_venue_delay_s < 0) as b from liquidation_panic"
    )
    assert row["a"] > 5 and row["b"] > 5


def test_rebuilds_give_the_same_bytes(built: Market) -> None:
    tables = ("slow_series", *FAMILIES)
    by_steps = {t: table_hash(t) for t in tables}
    assert all(h["n"] > 0 for h in by_steps.values())
    _run(start="2026-01-05", end="2026-01-05")
    assert {t: table_hash(t) for t in tables} == by_steps
    _run(full_refresh=True)
    assert {t: table_hash(t) for t in tables} == by_steps
