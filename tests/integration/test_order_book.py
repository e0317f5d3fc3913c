"""Every feature of the order book's levels equals its oracle, on books with all that a feed can do to them."""

from __future__ import annotations

import bisect
import itertools
import json
import random
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest

from python_udfs import db
from python_udfs.settings import Settings, settings
from tests.oracles import clock, features, order_book
from tests.oracles.clock import HOUR_US, SECOND_US, Config, Trade
from tests.oracles.order_book import Book, Level
from tests.support import Instrument, dbt, execute, insert_trades, insert_watermark, query, table_hash, us

START = 1_767_571_200 * SECOND_US  # 2026-01-05 00:00:00 UTC
CONFIG = Config(mode="volume", t_max_us=5 * SECOND_US, q_bucket_e8=5 * 10**8)
E8 = 10**8
TICK = E8 // 10
MID = 1200 * E8  # where a tick's multiples are no floats, and 5 bps are six ticks
MODELS = ("book_depth", "book_shape", "impact_cost", "book_dynamics")
SELECT = " ".join(f"+{m}" for m in MODELS)
# trades, contract value (seeds/instruments.csv; 1 where it is not listed), levels a side, size of a level in units, has a book
CASES: dict[Instrument, tuple[int, Fraction, int, int, bool]] = {
    ("alpha", "spot", "AAAUSDT"): (400, Fraction(1), 20, 1, True),
    ("okx", "linear", "BTC-USDT-SWAP"): (300, Fraction(1, 100), 24, 900, True),
    ("binance", "inverse", "BTCUSD_PERP"): (300, Fraction(100), 20, 70, True),
    ("gamma", "spot", "O'K/USD"): (200, Fraction(1), 12, 1000, True),
    ("gamma", "spot", "ONE"): (150, Fraction(1), 1, 1, True),
    ("beta", "spot", "AAAUSDT"): (100, Fraction(1), 20, 10, False),
    ("beta", "spot", "BBBUSDT"): (1, Fraction(1), 20, 10, True),
}
Market = tuple[list[Trade], list[Book]]


def _trades(r: random.Random, n: int) -> list[Trade]:
    """From 40 s before midnight: ties, late trades, and gaps of an hour."""
    t, price, out = START - 40 * SECOND_US, 100 * E8, []
    for i in range(1, n + 1):
        t += r.choice([0, 0, 1000, r.randrange(1, 900_000), *([HOUR_US] if r.random() < 0.004 else [])])
        price += r.choice([-1, 0, 0, 1]) * TICK
        late = 7 * SECOND_US if r.random() < 0.02 else 0
        out.append(Trade(t, i, str(i), r.randrange(1, 2 * E8), t + late, price, r.choice(["buy", "sell"])))
    return out


def _side(
    r: random.Random, best: int, n: int, unit: int, sizes: dict[int, int], *, sign: int
) -> tuple[Level, ...]:
    """n levels from `best` on. sizes: what rests at a price; some of it changes."""
    price, levels = best, []
    for _ in range(n):
        if price not in sizes or r.random() < 0.15:
            sizes[price] = r.choice([unit * E8, r.randrange(1, 2 * unit * 100) * E8 // 100])
        levels.append((price, sizes[price]))
        # where a level is missing depends on the price: the same in the next book
        price += sign * TICK * (3 if price // TICK % 4 == 0 else 1)
    return tuple(levels)


def _books(r: random.Random, traded: list[int], levels: int, unit: int) -> Iterator[Book]:
    """Evolving books, few where nothing trades: ties, late and stale-on-arrival ones, silences; one-sided, empty and short ones, zero
    quantities, and levels that say something else than the best prices. traded: times of the trades."""
    t, u, mid = traded[0] - 3 * SECOND_US, 0, MID
    sizes: tuple[dict[int, int], dict[int, int]] = ({}, {})
    while t < traded[-1] + 20 * SECOND_US:
        t += r.choice(
            [
                0,
                1000,
                r.randrange(1, 1_000_000),
                *([r.randrange(9, 16) * SECOND_US] if r.random() < 0.08 else []),
            ]
        )
        following = traded[min(bisect.bisect_left(traded, t), len(traded) - 1)]
        if following - t > 60 * SECOND_US:
            t = following - 14 * SECOND_US
        u += 1
        mid += r.choice([-1, 0, 0, 0, 1]) * TICK
        n = r.choice([levels] * 12 + [0, 3, 7, levels])
        bids = _side(r, mid - r.choice([0, 0, 1]) * TICK, n, unit, sizes[0], sign=-1)
        asks = _side(r, mid + r.choice([1, 1, 2, 4]) * TICK, r.choice([n] * 9 + [0]), unit, sizes[1], sign=1)
        if r.random() < 0.1:
            # all equal: quantiles fall on a level's border, sums of floats beside it
            bids = tuple((price, unit * E8 * 7 // 100) for price, _ in bids)
        best_bid, best_ask = (side[0] if side else (0, 0) for side in (bids, asks))
        odd = r.random()
        if odd < 0.02 and len(bids) > 2:
            bids = (*bids[:1], (bids[1][0], 0), *bids[2:])
        elif odd < 0.03:
            best_ask = (best_ask[0], 0)
        elif odd < 0.04 and bids and asks:
            bids, asks = asks, bids
        elif odd < 0.05 and best_bid[0]:
            best_bid = (best_bid[0] - 9 * TICK, best_bid[1])
        late = r.choice([0] * 20 + [400_000, 3_000_000, 11_000_000])
        yield Book(t, u, t + late, bids, asks, best_bid, best_ask)


def _insert(books: list[Book], instrument: Instrument) -> None:
    def text(levels: tuple[Level, ...]) -> str:
        return json.dumps([[f"{v // E8}.{v % E8:08d}" for v in level] for level in levels])

    rows = [
        (b.timestamp, b.update_id, *b.best_bid, *b.best_ask, text(b.bids), text(b.asks), b.known_at)
        for b in books
    ]
    decimal = "reinterpret({}, 'Decimal(18, 8)')".format
    with db.connect(settings().database("hot")) as c:
        c.execute(
            "create temporary table wire (t Int64, u UInt64, b Int64, bq Int64, a Int64, aq Int64, bids String, asks String, k Int64)"
        )
        c.execute("insert into wire values", rows)
        c.execute(
            "insert into orderbooks (exchange, market_type, symbol, timestamp, last_update_id, bids_count, asks_count, best_bid_price, "
            "best_bid_quantity, best_ask_price, best_ask_quantity, bids, asks, known_at, data_source) "
            f"select {', '.join(map(db.quote, instrument))}, fromUnixTimestamp64Micro(t, 'UTC'), u, 0, 0, {decimal('b')}, {decimal('bq')}, "
            f"{decimal('a')}, {decimal('aq')}, bids, asks, fromUnixTimestamp64Micro(k, 'UTC'), 'generator' from wire"
        )


def _load(instrument: Instrument, market: Market, low: int, high: int) -> None:
    """What becomes known in [low, high)."""
    trades, books = market
    insert_trades([t for t in trades if low <= t.known_at < high], instrument)
    _insert([b for b in books if low <= b.known_at < high], instrument)
    insert_watermark(instrument, "trades", high)


@pytest.fixture(scope="module")
def built(module_store: Settings) -> dict[Instrument, Market]:
    """Built in three appends, in order of knowledge."""
    r = random.Random(5)
    data: dict[Instrument, Market] = {}
    for instrument, (n, _, levels, unit, has_book) in CASES.items():
        trades = _trades(r, n)
        books = list(_books(r, [t.timestamp for t in trades], levels, unit)) if has_book else []
        data[instrument] = (trades, books)
    dbt("seed")
    execute("truncate table bucket_defaults", layer="features")
    execute(
        "insert into bucket_defaults values",
        [("*", "*", "*", "volume", "hour", 30, 5, 5, 5, 5, 50, 20, 50, 24, 10**6, "")],
        layer="features",
    )
    end = max(trades[-1].timestamp for trades, _ in data.values()) + HOUR_US
    for low, high in itertools.pairwise([0, START - 7 * SECOND_US, START + 31 * SECOND_US, end]):
        for instrument, market in data.items():
            _load(instrument, market, low, high)
        dbt("run", select=SELECT)
    return data


def _columns(model: str) -> list[str]:
    rows = query(
        "select name from system.columns where database = currentDatabase() and table = %(t)s and position > 6",
        t=model,
    )
    return [r["name"] for r in rows]


@pytest.mark.parametrize("instrument", CASES, ids="-".join)
def test_equal_to_the_oracle(built: dict[Instrument, Market], instrument: Instrument) -> None:
    trades, books = built[instrument]
    end = max(trades[-1].timestamp for trades, _ in built.values()) + HOUR_US
    buckets = clock.buckets(trades, CONFIG, watermark=end)
    flow = features.trade_flow(buckets, clock.on_time(trades), market_type=instrument[1])
    expected = order_book.everything(
        *features.bounds(buckets),
        books,
        flow["buy_volume"],
        flow["sell_volume"],
        market_type=instrument[1],
        contract_value=CASES[instrument][1],
    )
    seen = set()
    for model in MODELS:
        names = _columns(model)
        rows = query(
            f"select {', '.join(names)} from {model} where (exchange, market_type, symbol) = (%(x)s, %(m)s, %(y)s) order by bucket_id",
            **dict(zip("xmy", instrument, strict=True)),
        )
        assert len(rows) == len(buckets)
        for name in names:
            got = np.array([np.nan if r[name] is None else r[name] for r in rows], dtype=float)
            want = expected.get(name, np.full(len(buckets), np.nan))
            np.testing.assert_array_equal(
                np.isnan(got), np.isnan(want), err_msg=f"{name}: NULL on one side only"
            )
            # regressions divide differences by differences; elsewhere the floor is the rounding of a price over mid, in bps
            rtol = 1e-6 if any(word in name for word in ("slope", "curvature", "impact")) else 1e-9
            np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-9, err_msg=name)
            seen.add(name)
    assert set(expected) <= seen


def test_the_cases_reach_the_edges(built: dict[Instrument, Market]) -> None:
    """Each feature has values and NULLs, and what a rule is for happens."""
    for model in MODELS:
        names = _columns(model)
        rows = query(f"select {', '.join(f'(count({n}), count()) as {n}' for n in names)} from {model}")[0]
        assert [n for n in names if not 0 < rows[n][0] < rows[n][1]] == []
    [row] = query(
        "select countIf(bid_cancel_rate = 0 and bid_add_rate > bid_net_rate) as traded, countIf(book_stability is null and bid_add_rate = 0) as quiet, "
        "countIf(book_refresh_rate > 0 and bid_add_rate is null) as unconnected, countIf(best_bid_time_share < 1) as moved, "
        "countIf(best_bid_time_share = 1) as stayed from book_dynamics"
    )
    assert all(row.values()), row
    [row] = query(
        f"select countIf(length(bid_prices) = 20) as cut, countIf(length(bid_prices) between 1 and 4) as short, "
        f"countIf({us('bucket_ts_start')} < {START}) as before_midnight, countIf(mid is null) as dead from closing_book"
    )
    assert all(row.values()), row


def test_appends_ranged_rebuilds_and_a_full_refresh_give_the_same_bytes(
    built: dict[Instrument, Market],
) -> None:
    tables = ("closing_book", *MODELS)
    appended = {t: table_hash(t) for t in tables}
    for day in ("2026-01-05", "2026-01-04"):
        dbt("run", select=SELECT, start=day, end=day)
    assert {t: table_hash(t) for t in tables} == appended
    dbt("run", select=SELECT, full_refresh=True)
    assert {t: table_hash(t) for t in tables} == appended
