"""Every cross-market feature equals its oracle: 1e-9, and 1e-6 where logs of nearly equal prices are subtracted."""

from __future__ import annotations

import csv
import itertools
import math
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from python_udfs import db
from python_udfs.functions.price_discovery import mp_information_share
from python_udfs.settings import REPOSITORY, Settings
from tests.oracles import clock, cross_market, features
from tests.oracles.clock import MINUTE_US, SECOND_US, Config, Trade
from tests.oracles.cross_market import Key, Venue
from tests.support import dbt, execute, insert_books, insert_trades, insert_watermark, query, table_hash, us

MIDNIGHT = 1_767_571_200 * SECOND_US  # 2026-01-05 00:00:00 UTC
START, END = MIDNIGHT - 9 * MINUTE_US, MIDNIGHT + 21 * MINUTE_US
E8 = 10**8
CONFIG = Config(mode="volume", t_max_us=5 * SECOND_US, q_bucket_e8=9 * E8)
SETTINGS = cross_market.Settings(
    run_s=120, window_s=240, step_ms=500, steps=3, lookback_s=600, book_max_lag_us=10 * SECOND_US
)
PERIOD_S, LAGS = 600, 2
VARS: dict[str, Any] = {
    "t_max_s": 5,
    "cross_run_s": SETTINGS.run_s,
    "cross_window_s": SETTINGS.window_s,
    "lead_lag_step_ms": SETTINGS.step_ms,
    "lead_lag_steps": SETTINGS.steps,
    "partner_lookback_s": SETTINGS.lookback_s,
    "information_share_period_s": PERIOD_S,
    "information_share_lags": LAGS,
}
TABLES = (
    *(
        "venue_minutes",
        "partner_runs",
        "pair_lead_lag",
        "pair_spreads",
        "pair_information_shares",
        "bucket_partners",
    ),
    *("venue_activity", "cross_consistency", "price_discovery", "cross_spread"),
)
BookRow = tuple[int, int, int, int, int, int, int]


@dataclass(frozen=True)
class Case:
    """An instrument: how far it trails the common price, when it is silent (minutes from START), what else is odd."""

    key: Key
    base: str
    delay_us: int = 0
    silences: tuple[tuple[float, float], ...] = ()
    without_trades: tuple[float, float] = (0.0, 0.0)
    offset_bps: float = 0.0
    trades_every_us: int = 700_000
    has_book: bool = True
    first_minute: float = 0.0
    contract_value: int = 1


CASES = (
    Case(("alpha", "linear", "AAAUSDT"), "AAA"),
    Case(("alpha", "spot", "AAAUSDT"), "AAA", 1_000_000, ((12.0, 12.7), (18.0, 24.5))),
    Case(("beta", "linear", "AAAUSDT"), "AAA", 500_000, (), (14.9, 16.1), trades_every_us=1_500_000),
    # another price, and it comes later
    Case(("beta", "spot", "AAAUSDT"), "AAA", offset_bps=180.0, trades_every_us=900_000, first_minute=4.3),
    Case(("alpha", "spot", "BBBUSDT"), "BBB", has_book=False),
    Case(("alpha", "linear", "BBBUSDT"), "BBB"),
    # of a base asset of its own
    Case(("binance", "inverse", "BTCUSD_PERP"), "BTC", contract_value=100),
)


@dataclass
class Market:
    """What went in, and the oracle's view of it."""

    trades: dict[Key, list[Trade]] = field(default_factory=dict)
    books: dict[Key, list[BookRow]] = field(default_factory=dict)
    funding: dict[Key, list[tuple[int, int, float, int]]] = field(default_factory=dict)
    venues: dict[Key, Venue] = field(default_factory=dict)


def _market(seed: int) -> Market:
    r = random.Random(seed)
    market = Market()
    # the common price, in ticks of 0.01, each 100 ms; it rests now and then
    walk, price = [], 10_000
    for i in range((END - START) // 100_000 + 200):
        price += 0 if 9000 < i < 9400 else r.choice([-2, -1, 0, 0, 0, 1, 2])
        walk.append(price)
    for case in CASES:

        def at(t: int, case: Case = case) -> int:
            ticks = walk[max(0, (t - START - case.delay_us) // 100_000)]
            return round(ticks * (1 + case.offset_bps / 1e4)) * E8 // 100

        def is_silent(t: int, case: Case = case) -> bool:
            return any(a <= (t - START) / MINUTE_US < b for a, b in case.silences)

        first = START + int(case.first_minute * MINUTE_US)
        trades, books = [], []
        t, i = first, 0
        while t < END:
            # whole tenths of a second make ties, between markets and with lags
            t += r.choice([0, 100_000, 500_000, r.randrange(1, 2 * case.trades_every_us)])
            i += 1
            late = r.random() < 0.01
            quiet = case.without_trades[0] <= (t - START) / MINUTE_US < case.without_trades[1]
            if not is_silent(t) and not quiet:
                quantity, side = r.randrange(1, 2 * E8), r.choice(["buy", "sell"])
                known = t + late * 7_000_000
                trades.append(Trade(t, i, str(i), quantity, known, at(t) + r.choice([0, E8 // 100]), side))
        t, u = first - 2 * SECOND_US, 0
        while case.has_book and t < END:
            t += r.choice(
                [
                    0,
                    100_000,
                    500_000,
                    1000,
                    r.randrange(1, 900_000),
                    *([14 * SECOND_US] * (r.random() < 0.004)),
                ]
            )
            u += 1
            bid = at(max(t, START)) - E8 // 100 * r.choice([1, 1, 1, 3])
            late = r.choice([0] * 40 + [400_000, 3_000_000, 11_000_000])
            empty = r.random() < 0.01
            quantities = (0 if empty else r.randrange(1, 9 * E8), r.randrange(1, 9 * E8))
            if not is_silent(t):
                books.append((t, u, 0 if empty else bid, bid + E8 // 50, *quantities, t + late))
        market.trades[case.key], market.books[case.key] = trades, books
        if case.key[1] != "spot":
            market.funding[case.key] = [
                # a rate each 100 s, known 20 s later; it settles at midnight, and then two hours on
                (
                    t,
                    t + 20 * SECOND_US,
                    r.randrange(-50, 50) / 1e6,
                    MIDNIGHT if t < MIDNIGHT else MIDNIGHT + 7200 * SECOND_US,
                )
                for t in range(START, START + 16 * MINUTE_US, 100 * SECOND_US)
            ]
        market.venues[case.key] = _venue(case, trades, books)
    return market


def _venue(case: Case, trades: list[Trade], books: list[BookRow]) -> Venue:
    watermark = END + SECOND_US
    c = np.array(books, dtype=np.int64).reshape(-1, 7).T
    rows = features.BookRows(
        known_at=c[6],
        timestamp=c[0],
        last_update_id=c[1],
        bid_price=c[2] / E8,
        bid_quantity=c[4] / E8,
        ask_price=c[3] / E8,
        ask_quantity=c[5] / E8,
    )
    ordered = clock.on_time(trades)
    buckets = clock.buckets(trades, CONFIG, watermark=watermark)
    flow = features.trade_flow(buckets, ordered, market_type=case.key[1], contract_value=case.contract_value)
    return Venue(
        case.key, case.base, ordered, features.book_states(rows), buckets, flow["notional"], watermark
    )


def _insert(market: Market, low: int = 0, high: int = 2**62) -> None:
    """What becomes known in [low, high); the feeds are complete up to high."""
    for key in market.trades:
        insert_trades([t for t in market.trades[key] if low <= t.known_at < high], key)
        insert_books([b for b in market.books[key] if low <= b[6] < high], key)
        insert_watermark(key, "trades", min(high, END + SECOND_US))
        rates = [f for f in market.funding.get(key, []) if low <= f[1] < high]
        if rates:
            values = ", ".join(f"({t}, {k}, {rate:.8f}, {settles})" for t, k, rate, settles in rates)
            execute(
                "insert into funding_rates (exchange, market_type, symbol, timestamp, known_at, funding_rate, funding_time, "
                f"next_funding_time, data_source) select {', '.join(map(db.quote, key))}, fromUnixTimestamp64Micro(c1, 'UTC'), "
                "fromUnixTimestamp64Micro(c2, 'UTC'), toDecimal64(toString(c3), 8), fromUnixTimestamp64Micro(c4, 'UTC'), "
                f"fromUnixTimestamp64Micro(c4, 'UTC'), 'generator' from values('c1 Int64, c2 Int64, c3 Decimal(18, 8), c4 Int64', {values})"
            )


def _seed() -> None:
    dbt("seed")
    execute("truncate table bucket_defaults", layer="features")
    execute(
        "insert into bucket_defaults values",
        [("*", "*", "*", "volume", "hour", 30, 5, 9, 9, 9, 50, 20, 50, 24, 10**6, "")],
        layer="features",
    )


@pytest.fixture(scope="module")
def built(module_store: Settings) -> Market:
    market = _market(3)
    _seed()
    _insert(market)
    dbt("run", select="+path:dbt_project/models/features/cross_market", **VARS)
    return market


def _limits() -> dict[str, float]:
    with (REPOSITORY / "seeds" / "pair_consistency_thresholds.csv").open() as file:
        return {row["check_name"]: float(row["limit_value"]) for row in csv.DictReader(file)}


@dataclass
class Expected:
    """The oracle's answers, worked out once per pair and run."""

    market: Market
    told: dict[Key, set[int]] = field(default_factory=dict)
    chosen: dict[int, dict[Key, tuple[Key | None, Key | None]]] = field(default_factory=dict)
    pairs: dict[tuple[Key, Key, int], dict[str, float] | None] = field(default_factory=dict)
    leads: dict[tuple[Key, Key, int], dict[str, Any] | None] = field(default_factory=dict)
    shares: dict[tuple[Key, Key, int], dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.told = {key: v.minutes(SETTINGS) for key, v in self.market.venues.items()}

    def is_complete(self, key: Key, run: int) -> bool:
        return set(range(run - (SETTINGS.window_s - 60) * SECOND_US, run + 1, MINUTE_US)) <= self.told[key]

    def partner(self, key: Key, at: int) -> tuple[int, Key | None, Key | None] | None:
        """The last run with a row by `at`, at most two runs ago, and its partners."""
        run_us = SETTINGS.run_s * SECOND_US
        for run in range(at // run_us * run_us, at - 2 * run_us - 1, -run_us):
            if run not in self.chosen:
                self.chosen[run] = cross_market.partners(list(self.market.venues.values()), run, SETTINGS)
            if key in self.chosen[run]:
                return run, *self.chosen[run][key]
        return None

    def pair(self, this: Key, other: Key, run: int) -> dict[str, float] | None:
        if (this, other, run) not in self.pairs:
            whole = self.is_complete(this, run) and self.is_complete(other, run)
            venues = self.market.venues
            self.pairs[this, other, run] = (
                cross_market.spreads(venues[this], venues[other], run, SETTINGS) if whole else None
            )
        return self.pairs[this, other, run]

    def lead(self, this: Key, other: Key, run: int) -> dict[str, Any] | None:
        if (this, other, run) not in self.leads:
            whole = self.is_complete(this, run) and self.is_complete(other, run)
            self.leads[this, other, run] = self._lead(this, other, run) if whole else None
        return self.leads[this, other, run]

    def _lead(self, this: Key, other: Key, run: int) -> dict[str, Any] | None:
        a, b = self.market.venues[this], self.market.venues[other]
        first = run - SETTINGS.window_s * SECOND_US
        ticks = [v.ticks(first, run) for v in (a, b)]
        if min(len(ticks[0][0]), len(ticks[1][0])) < 2:
            return None
        on_grid = cross_market.lagged_correlations(
            *(cross_market.grid(v, run, SETTINGS, SETTINGS.step_ms) for v in (a, b)),
            SETTINGS.steps,
            SETTINGS.window_s * 100 // SETTINGS.step_ms,
        )
        hy = cross_market.hayashi_yoshida(
            ticks[0], ticks[1], SETTINGS.step_ms * 1000, SETTINGS.steps, SETTINGS.book_max_lag_us
        )
        k = SETTINGS.steps
        lag, value = cross_market.peak(on_grid, k, SETTINGS.step_ms)
        hy_lag, hy_value = cross_market.peak(hy, k, SETTINGS.step_ms)
        backward = math.fsum(hy[:k] ** 2)
        return {
            "correlations": on_grid,
            "hy_correlations": hy,
            "lead_lag_ms": lag,
            "lead_lag_correlation": value,
            "cross_correlation": on_grid[k],
            "hy_lead_lag_ms": hy_lag,
            "hy_correlation": hy_value,
            "hy_lead_lag_ratio": math.fsum(hy[k + 1 :] ** 2) / backward if backward > 0 else math.nan,
        }

    def share(self, this: Key, other: Key, end: int) -> dict[str, float]:
        """Of the period that ends at `end`; all NULL where there is none."""
        names = {
            "information_share_low": "low",
            "information_share_high": "high",
            "component_share": "component",
        }
        if (this, other, end) not in self.shares:
            found = self._share(this, other, end)
            self.shares[this, other, end] = {n: found.get(k, math.nan) for n, k in names.items()}
        return self.shares[this, other, end]

    def _share(self, this: Key, other: Key, end: int) -> dict[str, float]:
        minutes = sorted(
            m
            for m in self.told[this] & self.told[other]
            if end - PERIOD_S * SECOND_US < m <= end < END + SECOND_US
        )
        mids: tuple[list[float], list[float]] = ([], [])
        for i, m in enumerate(minutes):
            for key, into in zip((this, other), mids, strict=True):
                if i and m - minutes[i - 1] > MINUTE_US:
                    into.append(math.nan)
                into += [
                    self.market.venues[key].mid_at(t, SETTINGS) for t in range(m - MINUTE_US, m, SECOND_US)
                ]
        try:
            return mp_information_share(np.array(mids[0]), np.array(mids[1]), LAGS)
        except ValueError:
            return {}

    def everything(self, key: Key) -> dict[str, list[Any]]:
        """All features of one instrument, a value per bucket."""
        venue, limits = self.market.venues[key], _limits()
        rows: list[dict[str, Any]] = []
        spreads: list[float] = []
        references: list[Key | None] = []
        for bucket in venue.buckets:
            at = bucket.bucket_ts_end
            row: dict[str, Any] = {}
            own = cross_market.last_minute(venue, self.told[key], at)
            row |= own or dict.fromkeys(cross_market.minute(venue, START), math.nan)
            mid = venue.mid_at(at, SETTINGS)
            found = self.partner(key, at)
            run, reference, leg = found or (0, None, None)
            verdicts, mids = [], []
            for other in (reference, leg):
                if other is None:
                    verdicts.append("no_partner")
                    mids.append(math.nan)
                    continue
                mids.append(self.market.venues[other].mid_at(at, SETTINGS))
                theirs = cross_market.last_minute(self.market.venues[other], self.told[other], at)
                verdicts.append(
                    cross_market.verdict((mid, mids[-1]), own, theirs, self.pair(key, other, run), limits)
                )
                if other is reference:
                    row["reference_minute_trades"] = theirs["minute_trades"] if theirs else math.nan
                    row["reference_minute_book_updates"] = (
                        theirs["minute_book_updates"] if theirs else math.nan
                    )
                    state = self.market.venues[other].state_at(at)
                    known = self.market.venues[other].states.rows.timestamp
                    row["reference_book_age_ms"] = (
                        math.nan if math.isnan(mids[-1]) else (at - int(known[state])) / 1000
                    )
            row["cross_verdict"], row["basis_verdict"] = verdicts
            row["cross_is_on"], row["basis_is_on"] = (float(v == "on") for v in verdicts)
            pair = self.pair(key, reference, run) if reference else None
            if pair:
                row |= {n: pair[n] for n in ("price_difference_mean_bps", "price_difference_p99_bps")}
            spreads.append(math.log(mid / mids[0]) * 1e4)
            references.append(reference)
            if verdicts[0] == "on" and pair and reference:
                period = at // (PERIOD_S * SECOND_US) * PERIOD_S * SECOND_US
                row |= self.lead(key, reference, run) or {}
                row |= self.share(key, reference, period)
                residual = (math.log(mid) - pair["intercept"] - pair["slope"] * math.log(mids[0])) * 1e4
                row |= {
                    "cross_spread_bps": spreads[-1],
                    "cross_spread_z": cross_market.rolling_z(
                        np.array(spreads), references, len(spreads) - 1, SETTINGS.rolling
                    ),
                    "hedge_ratio": pair["slope"],
                    "cointegration_residual_bps": residual,
                    "cointegration_residual_z": residual / pair["residual_sd_bps"],
                    "cointegration_half_life_s": pair["half_life_s"],
                    "cross_spread_hurst": pair["hurst"],
                }
            if verdicts[1] == "on" and leg:
                row |= self._basis(key, leg, mid, mids[1], at)
            rows.append(row)
        names = {n for row in rows for n in row}
        return {n: [row.get(n, math.nan) for row in rows] for n in names}

    def _basis(self, key: Key, leg: Key, mid: float, leg_mid: float, at: int) -> dict[str, float]:
        perpetual, spot = (leg_mid, mid) if key[1] == "spot" else (mid, leg_mid)
        basis = (perpetual / spot - 1) * 1e4
        known = [f for f in self.market.funding[leg if key[1] == "spot" else key] if f[1] <= at]
        implied = math.nan
        if known and known[-1][3] >= at:
            implied = known[-1][2] * (known[-1][3] - at) / (28_800 * SECOND_US) * 1e4
        return {
            "basis_bps": basis,
            "funding_implied_basis_bps": implied,
            "basis_deviation_bps": basis - implied,
        }


@pytest.fixture(scope="module")
def expected(built: Market) -> Expected:
    return Expected(built)


PUBLIC = ("venue_activity", "cross_consistency", "price_discovery", "cross_spread")
TEXT = {"cross_verdict", "basis_verdict"}
# Differences of logs: a price has 16 digits, and what is left of them is about a ten-thousandth.
LOGS = {
    *("lead_lag_correlation", "cross_correlation", "hy_correlation", "hy_lead_lag_ratio", "hedge_ratio"),
    *(
        "cointegration_residual_bps",
        "cointegration_residual_z",
        "cointegration_half_life_s",
        "cross_spread_hurst",
    ),
    *("cross_spread_bps", "cross_spread_z", "basis_bps", "basis_deviation_bps"),
    *("information_share_low", "information_share_high", "component_share"),
}
KEYS = ("exchange", "market_type", "symbol", "bucket_id", "bucket_ts_start", "bucket_ts_end", "udf_error")


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(c.key))
def test_equal_to_the_oracle(built: Market, expected: Expected, case: Case) -> None:
    wanted = expected.everything(case.key)
    for table in PUBLIC:
        rows = query(
            f"select * from {table} where (exchange, market_type, symbol) = (%(x)s, %(m)s, %(y)s) order by bucket_id",
            **dict(zip("xmy", case.key, strict=True)),
        )
        assert len(rows) == len(built.venues[case.key].buckets)
        for name in set(rows[0]) - set(KEYS):
            want = wanted.get(name, [math.nan] * len(rows))
            if name in TEXT:
                assert [r[name] for r in rows] == want, name
                continue
            got = np.array([math.nan if r[name] is None else r[name] for r in rows], dtype=float)
            np.testing.assert_array_equal(
                np.isnan(got), np.isnan(np.array(want, dtype=float)), err_msg=f"{name}: NULLs"
            )
            loose = name in LOGS
            np.testing.assert_allclose(
                got, want, rtol=1e-6 if loose else 1e-9, atol=1e-7 if loose else 1e-12, err_msg=name
            )


def test_every_lag_of_every_pair_equals_the_oracle(built: Market, expected: Expected) -> None:
    """Every second run, to save time: the double sum over all tick intervals is the slow way."""
    rows = query(f"select *, {us('known_at')} as run from pair_lead_lag order by known_at")
    for r in rows:
        this = (r["exchange"], r["market_type"], r["symbol"])
        other = (r["other_exchange"], r["other_market_type"], r["other_symbol"])
        if this > other or r["run"] // (SETTINGS.run_s * SECOND_US) % 2:
            continue
        want = expected.lead(this, other, r["run"])
        assert want is not None, r
        for name in ("correlations", "hy_correlations"):
            np.testing.assert_allclose(
                r[name], want[name], rtol=1e-6, atol=1e-9, err_msg=f"{this} {other} {name}"
            )
    mirrored = query(
        "select count() as n from pair_lead_lag as a inner join pair_lead_lag as b on a.known_at = b.known_at "
        "and (a.exchange, a.market_type, a.symbol) = (b.other_exchange, b.other_market_type, b.other_symbol) "
        "and (b.exchange, b.market_type, b.symbol) = (a.other_exchange, a.other_market_type, a.other_symbol) "
        "where arrayMap(x -> toString(x), a.correlations) = arrayMap(x -> toString(x), arrayReverse(b.correlations)) "
        "and arrayMap(x -> toString(x), a.hy_correlations) = arrayMap(x -> toString(x), arrayReverse(b.hy_correlations))"
    )
    assert mirrored[0]["n"] == len(rows) > 100


def test_the_cases_reach_the_edges(built: Market) -> None:
    """The comparison means something only if every verdict occurs, and values and NULLs beside each other."""
    found = {
        r["v"]
        for r in query(
            "select distinct arrayJoin([cross_verdict, basis_verdict]) as v from cross_consistency"
        )
    }
    assert found >= {"on", "no_partner", "no_book", "few_trades", "no_prices", "price_difference"}
    columns = {
        t: [c for c in query(f"select * from {t} limit 1")[0] if c not in (*KEYS, *TEXT)] for t in PUBLIC
    }
    for table, names in columns.items():
        for name in names:
            [row] = query(
                f"select countIf({name} is not null) as known, countIf({name} is null) as unknown, "
                f"uniqExact({name}) as n from {table}"
            )
            assert row["known"] > 50 and row["n"] > 1, (name, row)
    changes = query(
        "select exchange, market_type, uniqExact(reference_exchange, reference_market_type) as n from bucket_partners "
        "where reference_symbol != '' group by all"
    )
    assert max(r["n"] for r in changes) > 1, "no reference changes"


def test_increments_and_ranged_rebuilds_give_the_same_bytes(store: Settings) -> None:
    market = _market(5)
    _seed()
    select = "+path:dbt_project/models/features/cross_market"
    edges = [0, START + 7 * MINUTE_US, MIDNIGHT + 90 * SECOND_US, MIDNIGHT + 12 * MINUTE_US, 2**62]
    for low, high in itertools.pairwise(edges):
        _insert(market, low, high)
        dbt("run", select=select, **VARS)
    appended = {t: table_hash(t) for t in TABLES}
    assert all(h["n"] > 0 for h in appended.values())
    for date in ("2026-01-04", "2026-01-05"):
        dbt("run", select=select, start=date, end=date, **VARS)
    assert {t: table_hash(t) for t in TABLES} == appended
    dbt("run", select=select, full_refresh=True, **VARS)
    assert {t: table_hash(t) for t in TABLES} == appended
