"""Trade flow and toxicity: every column equals its oracle, built in steps; rebuilt days and a full refresh give the same bits."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from python_udfs.functions.flow import mp_hawkes, mp_pin
from python_udfs.settings import Settings
from tests.oracles import clock, features, flow
from tests.oracles.clock import DAY_US, HOUR_US, SECOND_US, Config, Trade
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

START = 1_767_571_200 * SECOND_US  # 2026-01-05 00:00:00 UTC
E8 = 10**8
BookRow = tuple[int, int, int, int, int, int, int]
Built = dict[Instrument, tuple[list[Trade], list[BookRow]]]

VOLUME = Config(mode="volume", t_max_us=5 * SECOND_US, q_bucket_e8=5 * E8)
# a bar of 0.3 is less than one trade: more bars in a bucket than VPIN looks back on
COUNT = Config(mode="count", t_max_us=300 * SECOND_US, n_trades=60)
AAA, INVERSE = ("alpha", "spot", "AAAUSDT"), ("binance", "inverse", "BTCUSD_PERP")
BOOKLESS, ONE, DAYS = ("beta", "spot", "O'N/EUR"), ("beta", "spot", "ONE"), ("gamma", "linear", "DAYS")
CASES: dict[Instrument, tuple[Config, int, int]] = {  # clock, bar of VPIN, contract value
    AAA: (VOLUME, 5 * E8, 1),
    INVERSE: (VOLUME, 5 * E8, 100),
    BOOKLESS: (COUNT, 3 * E8 // 10, 1),
    ONE: (VOLUME, 5 * E8, 1),
    DAYS: (VOLUME, 5 * E8, 1),
}
FEATURES = {
    "traded_spreads": 11,
    "arrivals": 4,
    "impact_regressions": 2,
    "flow_toxicity": 2,
}
INPUTS = ("tape_quotes", "settled_trades", "hawkes_fits", "vpin_bars", "pin_daily")
SELECT = "+" + " +".join([*FEATURES, "markouts"])


def _trades(r: random.Random, n: int, start: int) -> list[Trade]:
    """In bursts, in ties, over midnight and the hour; 1 in 50 comes late."""
    t, price, out = start, 100 * E8, []
    for i in range(n):
        t += r.choice(
            [0, 0, 1000, r.randrange(1, 900) * 1000, *([HOUR_US // 2] if r.random() < 0.003 else [])]
        )
        price = max(E8, price + r.choice([-2, -1, 0, 0, 0, 1, 2]) * E8 // 100)
        late = r.random() < 0.02
        quantity = r.randrange(1, 2 * E8)
        out.append(
            Trade(t, i + 1, str(i + 1), quantity, t + late * 7 * SECOND_US, price, r.choice(["buy", "sell"]))
        )
    return out


def _days(r: random.Random) -> list[Trade]:
    """Two days of news and quiet, most of a third, four days of silence, and then some."""
    out: list[Trade] = []
    for interval in range(-12 * 12, 2 * 288 + 200):
        at = START + interval * flow.PIN_INTERVAL_US
        news = r.random() < 0.4
        sides = ["buy"] * r.randrange(0, 3) + ["sell"] * r.randrange(0, 4)
        sides += [r.choice(["buy", "sell"])] * (r.randrange(4, 9) if news else 0)
        times = sorted(at + r.randrange(0, flow.PIN_INTERVAL_US) for _ in sides)
        r.shuffle(sides)
        out += [
            Trade(t, i, str(i), r.randrange(1, 2 * E8), t, 100 * E8, side)
            for i, (t, side) in enumerate(zip(times, sides, strict=True), len(out) + 1)
        ]
    after = out[-1].timestamp + 4 * DAY_US
    n = len(out)
    return out + [
        Trade(
            after + i * 40 * SECOND_US,
            n + i + 1,
            str(n + i + 1),
            E8,
            after + i * 40 * SECOND_US,
            100 * E8,
            "buy",
        )
        for i in range(30)
    ]


def _books(r: random.Random, trades: list[Trade]) -> list[BookRow]:
    """Around the trades' prices, often in the very microsecond of a trade; late and one-sided rows, silences too long."""
    times = {t.timestamp for t in trades if r.random() < 0.2}
    t, last = trades[0].timestamp - 3 * SECOND_US, trades[-1].timestamp
    while t < last + 20 * SECOND_US:
        t += r.choice([1000, r.randrange(1, 1_500_000)])
        times.add(t)
    out: list[BookRow] = []
    ordered = sorted(trades, key=lambda x: x.timestamp)
    at = 0
    # 20 s of every 140 s are silent: trades in them meet a book that is too old
    for u, t in enumerate(sorted(t for t in times if t // (20 * SECOND_US) % 7 != 3), 1):
        while at + 1 < len(ordered) and ordered[at + 1].timestamp <= t:
            at += 1
        bid = ordered[at].price_e8 - r.choice([0, 1, 1, 2]) * E8 // 100
        ask = bid + r.choice([1, 1, 2, 5]) * E8 // 100
        late = r.choice([0] * 20 + [400_000, 3_000_000, 11_000_000])
        empty = r.random() < 0.01
        quantities = (0 if empty else r.randrange(1, 9 * E8), r.randrange(1, 9 * E8))
        out.append((t, u, 0 if empty else bid, ask, *quantities, t + late))
    return out


def _end(trades: list[Trade]) -> int:
    """The trade feed's last watermark."""
    return trades[-1].timestamp + HOUR_US


@pytest.fixture(scope="module")
def built(module_store: Settings) -> Built:
    """Appended in four steps, in the order of knowledge."""
    r = random.Random(7)
    data: Built = {}
    for instrument, (n, start, has_book) in {
        AAA: (1500, START - 40 * SECOND_US, True),
        INVERSE: (500, START + HOUR_US - 60 * SECOND_US, True),
        BOOKLESS: (400, START - 20 * SECOND_US, False),
        ONE: (1, START, True),
    }.items():
        trades = _trades(r, n, start)
        data[instrument] = (trades, _books(r, trades) if has_book else [])
    data[DAYS] = (_days(r), [])
    dbt("seed")
    execute("truncate table bucket_defaults", layer="features")
    execute(
        "insert into bucket_defaults values",
        [
            ("*", "*", "*", "volume", "hour", 30, 5, 5, 5, 5, 50, 20, 50, 24, 10**6, ""),
            ("beta", "spot", "O'N/EUR", "count", "hour", 30, 300, 0.3, 0.3, 0.3, 60, 20, 50, 24, 10**6, ""),
        ],
        layer="features",
    )
    known = sorted(k for t, b in data.values() for k in [*(x.known_at for x in t), *(x[6] for x in b)])
    # the first step ends inside an hour, the second after a day has closed
    edges = [0, known[len(known) // 4] + 1, START + DAY_US + HOUR_US, 2**60]
    for low, high in itertools.pairwise(edges):
        for instrument, (trades, books) in data.items():
            arrived = [t for t in trades if low <= t.known_at < high]
            r.shuffle(arrived)
            insert_trades(arrived, instrument)
            insert_trades(arrived[:5], instrument)
            insert_books([b for b in books if low <= b[6] < high], instrument)
            insert_watermark(instrument, "trades", min(high, _end(trades)))
        dbt("run", select=SELECT)
    return data


def _expected(instrument: Instrument, trades: list[Trade], books: list[BookRow]) -> dict[str, np.ndarray]:
    config, bar_e8, contract_value = CASES[instrument]
    buckets = clock.buckets(trades, config, watermark=_end(trades))
    ordered = clock.on_time(trades)
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
    states = features.book_states(rows)
    mid_close = features.top_of_book(*features.bounds(buckets), states)["mid_close"]
    return {
        **flow.spreads(buckets, ordered, states),
        **flow.arrivals(buckets, ordered, mp_hawkes),
        **flow.impact(buckets, ordered, mid_close, market_type=instrument[1], contract_value=contract_value),
        "vpin_exact": flow.vpin_exact(buckets, ordered, bar_e8),
        "pin": flow.pin(buckets, ordered, mp_pin, watermark=_end(trades)),
        **flow.markouts(buckets, ordered, states),
    }


@pytest.mark.parametrize("instrument", CASES, ids="-".join)
def test_equal_to_the_oracle(built: Built, instrument: Instrument) -> None:
    # as in the UDF's process: on vectors of five numbers the threads of BLAS only wait for each other
    with threadpool_limits(1):
        expected = _expected(instrument, *built[instrument])
    x, m, y = instrument
    seen = set()
    for table in (*FEATURES, "markouts"):
        listed = query(
            "select name, type from system.columns where database = currentDatabase() and table = %(t)s and position > 6",
            t=table,
        )
        selected = [
            f"toFloat64({us(c['name']) if 'DateTime' in c['type'] else c['name']}) as {c['name']}"
            for c in listed
        ]
        rows = query(
            f"select {', '.join(selected)} from {table} "
            "where (exchange, market_type, symbol) = (%(x)s, %(m)s, %(y)s) order by bucket_id",
            x=x,
            m=m,
            y=y,
        )
        for name in (c["name"] for c in listed):
            got = np.array([np.nan if r[name] is None else r[name] for r in rows])
            want = expected[name]
            np.testing.assert_array_equal(np.isnan(got), np.isnan(want), err_msg=f"{name}: NULL or not")
            # slopes of changes of the mid by a tick or two lose digits to cancellation, as in test_features
            tolerance = 1e-6 if "lambda" in name else 1e-9
            # spreads in bps are differences of prices that nearly cancel: 1e-11 is the rounding of a price
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=1e-11, err_msg=name)
            seen.add(name)
    assert seen == set(expected)


def test_the_cases_reach_the_edges(built: Built) -> None:
    """The comparison means something only if values and NULLs, splits, late mids and old days really occur."""
    [row] = query(
        """
        select
            countIf(effective_spread_bps < 0) as negative, countIf(effective_spread_bps is null) as unquoted,
            countIf(price_improvement_share between 0.01 and 0.99) as improved,
            countIf(realized_spread_30s_bps is null and realized_spread_1s_bps is not null) as waiting,
            countIf(roll_spread_bps is null) as trending, countIf(roll_spread_bps > 0) as bouncing
        from traded_spreads where exchange = 'alpha'
        """
    )
    assert all(row.values()), row
    [row] = query(
        "select countIf(arrayExists(bid -> bid is null, tape_bid) and arrayExists(bid -> bid is not null, tape_bid)) as mixed "
        "from tape_quotes"
    )
    assert row["mixed"] > 5
    [row] = query(
        """
        select countIf(closed_bars = 0) as none, countIf(closed_bars > 1) as several, countIf(closed_bars > 50) as many
        from vpin_bars
        """
    )
    assert all(row.values()), row
    [row] = query(
        """
        select
            countIf(pin > 0) as said, countIf(pin is null) as unsaid,
            countIf(pin is null and bucket_ts_end > toDateTime64('2026-01-10 00:00:00', 6, 'UTC')) as old
        from flow_toxicity where exchange = 'gamma'
        """
    )
    assert all(row.values()), row
    [row] = query(
        "select count() as days, countIf(pin is null) as short, countIf(udf_error is not null) as wrong from pin_daily"
    )
    assert row["days"] >= 6
    assert row["short"] > 0
    assert row["wrong"] == 0
    [row] = query(
        "select countIf(branching_ratio is null) as few, countIf(branching_ratio > 0.05) as excited, "
        "countIf(udf_error is not null) as wrong from hawkes_fits"
    )
    assert row["few"] > 0
    assert row["excited"] > 0
    assert row["wrong"] == 0
    [row] = query(
        "select countIf(label_ret_markout_30s is null and label_ret_markout_5s is not null) as unknown, "
        "countIf(label_ret_buy_markout_5s is null and label_ret_sell_markout_5s is not null) as one_sided from markouts"
    )
    assert all(row.values()), row


def test_ranged_rebuilds_and_a_full_refresh_give_the_same_bytes(built: Built) -> None:
    tables = (*FEATURES, *INPUTS)
    appended = {t: table_hash(t) for t in tables}
    assert all(h["n"] > 0 for h in appended.values())
    models = " ".join(tables)
    for date in ("2026-01-04", "2026-01-06"):
        dbt("run", select=models, start=date, end=date)
    assert {t: table_hash(t) for t in tables} == appended
    dbt("run", select=models, full_refresh=True)
    assert {t: table_hash(t) for t in tables} == appended
