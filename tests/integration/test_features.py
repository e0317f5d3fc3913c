"""Every feature and label in the database equals its oracle: 1e-9 for sums, 1e-6 for regressions."""

from __future__ import annotations

import itertools
import random
from typing import Final

import numpy as np
import pytest

from python_udfs.settings import Settings
from tests.oracles import clock, features, labels
from tests.oracles.clock import HOUR_US, SECOND_US, Config, Trade
from tests.support import (
    APPENDED,
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

START = 1_767_571_200 * SECOND_US  # 2026-01-05 00:00:00 UTC
CONFIG = Config(mode="volume", t_max_us=5 * SECOND_US, q_bucket_e8=5 * 10**8)
E8 = 10**8
BookRow = tuple[int, int, int, int, int, int, int]


def _trades(r: random.Random, n: int) -> list[Trade]:
    t, price, out = START - 40 * SECOND_US, 100 * E8, []
    for i in range(n):
        t += r.choice([0, 0, 1000, r.randrange(1, 900_000), *([HOUR_US // 2] if r.random() < 0.003 else [])])
        price = max(E8, price + r.choice([-1, 0, 0, 1]) * E8 // 100)
        late = r.random() < 0.02
        out.append(
            Trade(
                t,
                i + 1,
                str(i + 1),
                r.randrange(1, 2 * E8),
                t + late * 7_000_000,
                price,
                r.choice(["buy", "sell"]),
            )
        )
    return out


def _books(r: random.Random, first: int, last: int) -> list[BookRow]:
    """Updates with ties, late and stale-on-arrival rows, empty sides, silences longer than the allowed age."""
    t, u, out, bid = first - 3 * SECOND_US, 0, [], 100 * E8
    while t < last + 20 * SECOND_US:
        t += r.choice([0, 1000, r.randrange(1, 1_500_000), *([25 * SECOND_US] if r.random() < 0.01 else [])])
        u += 1
        bid += r.choice([-1, 0, 0, 0, 1]) * E8 // 100
        ask = bid + r.choice([1, 1, 2, 5]) * E8 // 100
        late = r.choice([0] * 20 + [400_000, 3_000_000, 11_000_000])
        empty = r.random() < 0.01
        out.append(
            (
                t,
                u,
                0 if empty else bid,
                ask,
                0 if empty else r.randrange(1, 9 * E8),
                r.randrange(1, 9 * E8),
                t + late,
            )
        )
    return out


CASES: dict[Instrument, tuple[int, int, bool]] = {  # trades, contract value, has a book
    ("alpha", "spot", "AAAUSDT"): (1500, 1, True),
    ("alpha", "linear", "BBBUSDT"): (700, 1, True),
    ("binance", "inverse", "BTCUSD_PERP"): (400, 100, True),
    ("beta", "spot", "AAAUSDT"): (300, 1, False),
    ("beta", "spot", "BBBUSDT"): (1, 1, True),
}
Built = dict[Instrument, tuple[list[Trade], list[BookRow]]]


@pytest.fixture(scope="module")
def built(module_store: Settings) -> Built:
    r = random.Random(7)
    data: Built = {}
    for instrument, (n, _, has_book) in CASES.items():
        trades = _trades(r, n)
        books = _books(r, trades[0].timestamp, trades[-1].timestamp) if has_book else []
        insert_trades(trades, instrument)
        insert_books(books, instrument)
        insert_watermark(instrument, "trades", trades[-1].timestamp + HOUR_US)
        data[instrument] = (trades, books)
    dbt("seed")
    execute("truncate table bucket_defaults", layer="features")
    execute(
        "insert into bucket_defaults values",
        [("*", "*", "*", "volume", "hour", 30, 5, 5, 5, 5, 50, 20, 50, 24, 10**6, "")],
        layer="features",
    )
    dbt("run")
    return data


def _expected(instrument: Instrument, trades: list[Trade], books: list[BookRow]) -> dict[str, np.ndarray]:
    buckets = clock.buckets(trades, CONFIG, watermark=trades[-1].timestamp + HOUR_US)
    columns = np.array(books, dtype=np.int64).reshape(-1, 7).T
    rows = features.BookRows(
        known_at=columns[6],
        timestamp=columns[0],
        last_update_id=columns[1],
        bid_price=columns[2] / E8,
        bid_quantity=columns[4] / E8,
        ask_price=columns[3] / E8,
        ask_quantity=columns[5] / E8,
    )
    out = features.everything(
        buckets, clock.on_time(trades), rows, market_type=instrument[1], contract_value=CASES[instrument][1]
    )
    ends, closed_to = features.bounds(buckets)[1], trades[-1].timestamp + HOUR_US
    variance, states = out["variance_per_second"], features.book_states(rows)
    out |= labels.returns(ends, out["mid_close"])
    out |= labels.paths(ends, out["mid_close"], variance, states)
    out |= labels.weights(ends, out["mid_close"], variance, out, closed_to)
    out["microprice_gap_bps"] = (out["microprice_close"] / out["mid_close"] - 1) * 1e4
    return out


REGRESSIONS = {"kyle_lambda"}


@pytest.mark.parametrize("instrument", CASES, ids="-".join)
def test_equal_to_the_oracle(built: Built, instrument: Instrument) -> None:
    expected = _expected(instrument, *built[instrument])
    x, m, y = instrument
    columns = {
        r["name"]: r["type"]
        for r in query(
            "select name, type from system.columns where database = currentDatabase() and table = 'training_set'"
        )
    }
    # what came with version 2 has oracles of its own, in other modules
    version_1 = query(
        "select name from system.columns where database = currentDatabase() and table = 'feature_vector_v1'"
    )
    here = {r["name"] for r in version_1} | {
        c for c in columns if c.startswith(("label_", "expected_duration_"))
    }
    names = [
        c
        for c in columns
        if c in here
        and c not in ("exchange", "market_type", "symbol", "bucket_id", "bucket_ts_start", "bucket_ts_end")
    ]
    missing = set(names) - set(expected)
    assert not missing, f"no oracle for {missing}"
    selected = [
        f"toFloat64({us(c)}) as {c}" if "DateTime" in columns[c] else f"toFloat64({c}) as {c}" for c in names
    ]
    rows = query(
        f"select {', '.join(selected)} from training_set where (exchange, market_type, symbol) = (%(x)s, %(m)s, %(y)s) order by bucket_id",
        x=x,
        m=m,
        y=y,
    )
    assert len(rows) == len(expected["volume"])
    for name in names:
        got = np.array([np.nan if r[name] is None else r[name] for r in rows])
        want = np.asarray(expected[name], dtype=float)
        np.testing.assert_array_equal(
            np.isnan(got), np.isnan(want), err_msg=f"{name}: NULL where the oracle has a value or the reverse"
        )
        tolerance = 1e-6 if name in REGRESSIONS else 1e-9
        # differences of nearly equal mids: the absolute floor is a rounding of the mid itself
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=1e-12, err_msg=name)


def test_the_cases_reach_the_edges(built: Built) -> None:
    """The comparison means something only if values and NULLs, late books and gaps really occur."""
    [row] = query(
        "select countIf(kyle_lambda is not null) as k, countIf(mid_close is null) as dead, countIf(label_cls_60s = 1) as up, "
        "countIf(label_cls_3 = -1) as down, countIf(book_update_count = 0) as quiet, countIf(duration_s = 0) as instant, "
        "countIf(label_ret_300s is null) as unknown from training_set"
    )
    assert all(row.values()), row


# a bucket every two seconds, and few of them for the hourly fit of trends: before midnight there are seconds
SHORT: Final = {
    "t_max_s": 5,
    "t_target_s": 2,
    "trend_short_buckets": 2,
    "trend_long_buckets": 3,
    "trend_fit_min_buckets": 5,
}


def test_increments_and_ranged_rebuilds_give_the_same_bytes(store: Settings) -> None:
    """Every table appended in steps, in order of knowledge, equals the table built at once, and any day rebuilt alone."""
    r = random.Random(11)
    day = 86_400 * SECOND_US
    data: Built = {}
    for instrument, (n, _, has_book) in list(CASES.items())[:4]:
        # 23:59:20 on: the first buckets lie before midnight, the rest after it
        trades = _trades(r, n // 2)
        data[instrument] = (trades, _books(r, trades[0].timestamp, trades[-1].timestamp) if has_book else [])
    dbt("seed")
    known = sorted(
        k for trades, books in data.values() for k in [*(t.known_at for t in trades), *(b[6] for b in books)]
    )
    edges = [0, *(known[len(known) * i // 4] for i in range(1, 4)), known[-1] + day]
    for low, high in itertools.pairwise(edges):
        for instrument, (trades, books) in data.items():
            insert_trades([t for t in trades if low <= t.known_at < high], instrument)
            insert_books([b for b in books if low <= b[6] < high], instrument)
            insert_watermark(instrument, "trades", high)
        dbt("run", **SHORT)
    by_increments = {t: table_hash(t) for t in APPENDED}
    empty = sorted(t for t, h in by_increments.items() if not h["n"])
    # a market of minutes has no run of the lead-lag and no slow series
    assert set(empty) <= {"pair_lead_lag", "slow_series"}, empty
    for date in ("2026-01-04", "2026-01-05"):
        dbt("run", **SHORT, start=date, end=date)
    assert {t: table_hash(t) for t in APPENDED} == by_increments
    # An instrument that comes late with older data than all the others
    shift = 700 * day
    older = _trades(r, 200)
    books = _books(r, older[0].timestamp, older[-1].timestamp)
    late_comer = ("beta", "spot", "BBBUSDT")
    insert_trades(
        [t._replace(timestamp=t.timestamp - shift, known_at=t.known_at - shift) for t in older], late_comer
    )
    insert_books([(b[0] - shift, *b[1:6], b[6] - shift) for b in books], late_comer)
    dbt("run", **SHORT)
    by_increments = {t: table_hash(t) for t in APPENDED}
    [row] = query(
        "select count() as n from feature_vector_v1 where exchange = 'beta' and symbol = 'BBBUSDT' and mid_close > 0"
    )
    assert row["n"] > 2
    dbt("run", full_refresh=True, **SHORT)
    assert {t: table_hash(t) for t in APPENDED} == by_increments
