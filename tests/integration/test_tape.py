"""Every tape-reading feature equals its oracle, and its tables come out the same however they are built."""

from __future__ import annotations

import itertools
import json
import random
from bisect import bisect_left

import numpy as np
import pytest

from python_udfs import db
from python_udfs.settings import Settings, settings
from tests.oracles import clock, features, tape
from tests.oracles.clock import HOUR_US, SECOND_US, Config, Trade
from tests.support import Instrument, dbt, execute, insert_trades, insert_watermark, query, table_hash

E8 = 10**8
CENT = E8 // 100
MIDNIGHT = 1_767_571_200 * SECOND_US  # 2026-01-05 00:00:00 UTC
CONFIG = Config(mode="volume", t_max_us=5 * SECOND_US, q_bucket_e8=20 * E8)
MODELS = ("tape_runs", "aggressor_classes", "absorption", "book_steps", "liquidity_vacuum", "spoofing")
FEATURES = tuple(m for m in MODELS if m != "book_steps")

Levels = tuple[tuple[int, int], ...]
Book = tuple[int, int, Levels, Levels, int]  # timestamp, id, bids, asks, known_at
# first price, trades, has a book. From 200 on bins are ten times as wide.
CASES: dict[Instrument, tuple[int, int, bool]] = {
    ("alpha", "spot", "AAAUSDT"): (100, 2500, True),
    ("alpha", "linear", "O'B/USDT"): (200, 1500, True),
    ("beta", "spot", "AAAUSDT"): (100, 300, False),
    ("beta", "spot", "BBBUSDT"): (100, 1, True),
}
Data = dict[Instrument, tuple[list[Trade], list[Book]]]


def _side(r: random.Random, best: int, sign: int, standing: dict[int, int]) -> Levels:
    """Eight levels that keep their size most of the time; walls come and go."""
    levels = []
    for k in range(8):
        price = best + sign * k * CENT
        if price not in standing or r.random() < 0.05:
            standing[price] = r.randrange(E8 // 10, 3 * E8)
            if k > 1 and r.random() < 0.03:
                standing[price] *= 60
        levels.append((price, standing[price]))
    if r.random() < 0.04:  # much of it goes, at once
        levels = [(p, q // 5) for p, q in levels]
    return tuple(levels)


def _market(
    r: random.Random, start: int, first_price: int, n: int, has_book: bool
) -> tuple[list[Trade], list[Book]]:
    """Trades at the best prices and through them, in bursts and rhythms; ties, a gap of an hour, late rows, equal
    sizes, empty sides (the raw table refuses crossed books)."""
    t, bid, trades, books = start, first_price * E8, [], []
    standing: dict[str, dict[int, int]] = {"bid": {}, "ask": {}}
    buying, thin = True, 1.0
    while len(trades) < n:
        t += r.choice([0, 1, 1000, r.randrange(1, 90_000), r.randrange(1, 300_000)])
        if r.random() < 0.002:
            t += r.choice([12 * SECOND_US, 25 * SECOND_US])
        if n > 1000 and len(trades) == n // 2:
            t += HOUR_US
        bid += r.choice([-1, 0, 0, 0, 0, 0, 1]) * CENT
        ask = bid + r.choice([1, 1, 1, 2]) * CENT
        thin = r.choice([1.0, 1.0, 1.0, 0.75]) * thin if thin > 0.2 else 1.0  # and step by step
        sides = [_side(r, bid, -1, standing["bid"]), _side(r, ask, 1, standing["ask"])]
        sides = [tuple((p, max(1, int(q * thin))) for p, q in levels) for levels in sides]
        if r.random() < 0.01:
            sides[r.randrange(2)] = ()
        late = r.choice([0] * 20 + [400_000, 3_000_000, 11_000_000])
        books.append((t, len(books) + 1, sides[0], sides[1], t + late))
        if r.random() < 0.3:
            buying = not buying
        if r.random() < 0.6:
            gap = r.choice([0, 700, 20_000])
            size = r.choice([E8, E8 // 2, r.randrange(1, E8), r.randrange(1, E8), 4 * E8])
            for k in range(r.choice([1, 1, 2, 5])):
                t += gap
                price = ask + (k // 2) * CENT if buying else bid - (k // 2) * CENT
                i = len(trades) + 1
                late = r.random() < 0.02
                trades.append(
                    Trade(t, i, str(i), size, t + late * 7_000_000, price, "buy" if buying else "sell")
                )
    return trades[:n], books if has_book else []


def _insert_books(books: list[Book], instrument: Instrument) -> None:
    """Raw states, with their levels as the venues' JSON."""

    def text(levels: Levels) -> str:
        return json.dumps([[f"{p // E8}.{p % E8:08d}", f"{q // E8}.{q % E8:08d}"] for p, q in levels])

    wire = [
        (t, u, *((bids or ((0, 0),))[0]), *((asks or ((0, 0),))[0]), text(bids), text(asks), known)
        for t, u, bids, asks, known in books
    ]
    if not wire:
        return
    decimal = "reinterpret({}, 'Decimal(18, 8)')".format
    with db.connect(settings().database("hot")) as c:
        c.execute(
            "create temporary table wire "
            "(t Int64, u UInt64, b Int64, bq Int64, a Int64, aq Int64, bids String, asks String, k Int64)"
        )
        c.execute("insert into wire values", wire)
        c.execute(
            "insert into orderbooks (exchange, market_type, symbol, timestamp, last_update_id, bids_count, asks_count, "
            "best_bid_price, best_ask_price, best_bid_quantity, best_ask_quantity, bids, asks, known_at, data_source) "
            f"select {', '.join(map(db.quote, instrument))}, fromUnixTimestamp64Micro(t, 'UTC'), u, 8, 8, "
            f"{decimal('b')}, {decimal('a')}, {decimal('bq')}, {decimal('aq')}, bids, asks, "
            "fromUnixTimestamp64Micro(k, 'UTC'), 'generator' from wire"
        )


def _seed() -> None:
    """Reference data: buckets of 20, of 5 s at most."""
    dbt("seed")
    execute("truncate table bucket_defaults", layer="features")
    execute(
        "insert into bucket_defaults values",
        [("*", "*", "*", "volume", "hour", 30, 5, 20, 20, 20, 50, 20, 50, 24, 10**6, "")],
        layer="features",
    )


def _data(seed: int, start: int, share: float = 1) -> Data:
    r = random.Random(seed)
    return {
        x: _market(r, start, price, max(1, int(n * share)), has_book)
        for x, (price, n, has_book) in CASES.items()
    }


def _load(data: Data, low: int, high: int) -> None:
    """What becomes known in [low, high)."""
    for instrument, (trades, books) in data.items():
        insert_trades([t for t in trades if low <= t.known_at < high], instrument)
        _insert_books([b for b in books if low <= b[4] < high], instrument)
        insert_watermark(instrument, "trades", min(high, trades[-1].timestamp + 3 * HOUR_US))


@pytest.fixture(scope="module")
def built(module_store: Settings) -> Data:
    data = _data(3, MIDNIGHT - 100 * SECOND_US)
    _load(data, 0, MIDNIGHT * 2)
    _seed()
    dbt("run", select="+tape_runs +aggressor_classes +absorption +liquidity_vacuum +spoofing")
    return data


def _expected(instrument: Instrument, trades: list[Trade], books: list[Book]) -> dict[str, features.Columns]:
    buckets = clock.buckets(trades, CONFIG, watermark=trades[-1].timestamp + 3 * HOUR_US)
    ordered = clock.on_time(trades)
    starts, ends = features.bounds(buckets)

    def best(levels: Levels, part: int) -> float:
        return levels[0][part] / E8 if levels else 0.0

    rows = features.BookRows(
        known_at=np.array([b[4] for b in books], dtype=np.int64),
        timestamp=np.array([b[0] for b in books], dtype=np.int64),
        last_update_id=np.array([b[1] for b in books], dtype=np.int64),
        bid_price=np.array([best(b[2], 0) for b in books]),
        bid_quantity=np.array([best(b[2], 1) for b in books]),
        ask_price=np.array([best(b[3], 0) for b in books]),
        ask_quantity=np.array([best(b[3], 1) for b in books]),
    )
    kept = features.book_states(rows)
    levels = {b[1]: (b[2], b[3]) for b in books}
    states = [
        tape.State(int(known), *levels[int(u)])
        for known, u in zip(kept.rows.known_at, kept.rows.last_update_id, strict=True)
    ]
    mid = features.top_of_book(starts, ends, kept)["mid_close"]
    steps = tape.book_steps(buckets, ordered, states)
    tick = CENT if instrument[2] in ("AAAUSDT", "BBBUSDT") else 0
    absorbed = tape.absorption(buckets, ordered, tick_e8=tick)
    return {
        "tape_runs": tape.tape_runs(buckets, ordered),
        "aggressor_classes": tape.aggressor_classes(buckets, ordered),
        "absorption": absorbed,
        "liquidity_vacuum": tape.liquidity_vacuum(buckets, steps, list(mid)),
        "spoofing": tape.spoofing(buckets, ordered, steps, list(mid), list(absorbed["usual_volume_per_s"])),
    }


@pytest.mark.parametrize("instrument", CASES, ids="-".join)
def test_equal_to_the_oracle(built: Data, instrument: Instrument) -> None:
    x, m, y = instrument
    for model, expected in _expected(instrument, *built[instrument]).items():
        names = [
            row["name"]
            for row in query(
                "select name from system.columns where database = currentDatabase() and table = %(t)s and name not in "
                "('exchange', 'market_type', 'symbol', 'bucket_id', 'bucket_ts_start', 'bucket_ts_end') order by position",
                t=model,
            )
        ]
        assert set(names) == set(expected), model
        rows = query(
            f"select {', '.join(f'toFloat64({n}) as {n}' for n in names)} from {model} "
            "where (exchange, market_type, symbol) = (%(x)s, %(m)s, %(y)s) order by bucket_id",
            x=x,
            m=m,
            y=y,
        )
        for name in names:
            got = np.array([np.nan if row[name] is None else row[name] for row in rows])
            np.testing.assert_array_equal(np.isnan(got), np.isnan(expected[name]), err_msg=f"{name}: NULL")
            # differences of nearly equal prices: the absolute floor is a rounding of their quotient
            np.testing.assert_allclose(got, expected[name], rtol=1e-9, atol=1e-11, err_msg=name)


def test_every_bucket_has_its_row(built: Data) -> None:
    [row] = query("select count() as n from unified_buckets")
    for model in FEATURES:
        assert query(f"select count() as n from {model}")[0] == row


def test_the_cases_reach_the_edges(built: Data) -> None:
    """The comparison means something only if values, NULLs and zeros really occur."""
    [row] = query(
        "select countIf(round_lot_share > 0) as round, countIf(algo_share > 0) as algo, countIf(block_share > 0) as block, "
        "countIf(retail_share > 0) as retail, countIf(order_gap_cv is null) as few, countIf(sweep_levels_sell > 1) as swept, "
        "countIf(micro_momentum_50_bps is null) as young, countIf(absorption_price is null) as nothing, "
        "countIf(absorption_side = 1) as bids, countIf(absorption_side = -1) as asks, countIf(absorption_score is null) as unknown, "
        "countIf(depth_vanish_count_bid > 0) as vanished, countIf(depth_pull_count_ask > 0) as pulled, "
        "countIf(iceberg_count_bid > 0) as iceberg, countIf(depth_fall_max_ask is null) as blind, "
        "countIf(wall_pull_count_bid > 0) as bid_walls, countIf(wall_pull_count_ask > 0) as ask_walls, "
        "countIf(spoof_score_bid > 0) as bid_scores, countIf(spoof_score_ask > 0 and wall_pull_count_ask = 0) as later_prints "
        "from tape_runs inner join aggressor_classes using (exchange, market_type, symbol, bucket_id) "
        "inner join absorption using (exchange, market_type, symbol, bucket_id) "
        "inner join liquidity_vacuum using (exchange, market_type, symbol, bucket_id) "
        "inner join spoofing using (exchange, market_type, symbol, bucket_id)"
    )
    assert all(row.values()), row


def test_walls_that_span_buckets(built: Data) -> None:
    """A wall that goes up in one bucket and is pulled in another counts in the other, whichever way it is built."""
    [row] = query(
        "select count() as n from book_steps as gone inner join book_steps as up "
        "on gone.exchange = up.exchange and gone.market_type = up.market_type and gone.symbol = up.symbol "
        "where hasAny(arrayMap(w -> w.1, up.ask_walls_up), gone.ask_walls_gone) and up.bucket_id < gone.bucket_id "
        "and up.known_at >= gone.known_at - toIntervalSecond(60)"
    )
    assert row["n"] > 0


def test_increments_and_ranged_rebuilds_give_the_same_bytes(store: Settings) -> None:
    """Built in steps, by days and at once; a bucket before midnight lends its walls and volumes to those after it."""
    data = _data(5, MIDNIGHT - 40 * SECOND_US, 0.3)
    _seed()
    known = sorted(
        k for trades, books in data.values() for k in [*(t.known_at for t in trades), *(b[4] for b in books)]
    )
    around = bisect_left(known, MIDNIGHT)
    assert 0 < around < len(known)
    select = "+tape_runs +aggressor_classes +absorption +liquidity_vacuum +spoofing"
    edges = [0, known[len(known) // 3], known[len(known) * 2 // 3], known[-1] + 3 * HOUR_US]
    for low, high in itertools.pairwise(edges):
        _load(data, low, high)
        dbt("run", select=select)
    by_increments = {t: table_hash(t) for t in MODELS}
    assert all(h["n"] > 0 for h in by_increments.values())
    dbt("run", select=select, start="2026-01-05", end="2026-01-05")
    assert {t: table_hash(t) for t in MODELS} == by_increments
    dbt("run", select=select, full_refresh=True)
    assert {t: table_hash(t) for t in MODELS} == by_increments
