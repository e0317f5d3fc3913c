"""Labels, their paths, fills and weights: every column equals its oracle; weights and balances add up."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from python_udfs.settings import Settings
from tests.oracles import clock, features, labels
from tests.oracles.clock import HOUR_US, SECOND_US, Bucket, Config, Trade
from tests.support import (
    Instrument,
    dbt,
    execute,
    insert_books,
    insert_trades,
    insert_watermark,
    query,
    us,
)

START = 1_767_571_200 * SECOND_US  # 2026-01-05 00:00:00 UTC
CONFIG = Config(mode="volume", t_max_us=12 * SECOND_US, q_bucket_e8=4 * 10**8)
E8 = 10**8
BookRow = tuple[int, int, int, int, int, int, int]
Built = dict[Instrument, tuple[list[Trade], list[BookRow]]]
AAA, WATERMARKED = ("alpha", "spot", "AAAUSDT"), ("binance", "inverse", "BTCUSD_PERP")
BOOKLESS, ONE, STILL = ("beta", "spot", "O'N/EUR"), ("beta", "spot", "ONE"), ("beta", "linear", "STILL")
CASES: dict[Instrument, tuple[int, int]] = {  # trades; how far the mid steps, in ticks
    AAA: (900, 3),
    WATERMARKED: (250, 1),
    BOOKLESS: (60, 0),
    ONE: (1, 1),
    STILL: (120, 0),
}
TABLES = ("bucket_labels", "path_labels", "label_weights", "fill_markouts")
BALANCE = ("label_balance", "label_effective_sample_size")


def _trades(r: random.Random, n: int) -> list[Trade]:
    """Ties, over midnight and the hour, with half an hour missing; 1 in 50 comes late."""
    t, price, out = START - 200 * SECOND_US, 100 * E8, []
    for i in range(n):
        t += r.choice(
            [0, 0, 1000, r.randrange(1, 4 * SECOND_US), *([HOUR_US // 2] if r.random() < 0.003 else [])]
        )
        price = max(E8, price + r.choice([-2, -1, 0, 0, 1, 2]) * E8 // 100)
        late = r.random() < 0.02
        quantity = r.randrange(1, 2 * E8)
        out.append(
            Trade(t, i + 1, str(i + 1), quantity, t + late * 7 * SECOND_US, price, r.choice(["buy", "sell"]))
        )
    return out


def _books(r: random.Random, trades: list[Trade], step: int) -> list[BookRow]:
    """Around the trades' prices: one-sided, late, silent for too long, in the trades' instants."""
    ordered = sorted(trades, key=lambda x: x.timestamp)
    times = {t.timestamp for t in trades if r.random() < 0.2}
    t = ordered[0].timestamp - 3 * SECOND_US
    while t < ordered[-1].timestamp + 320 * SECOND_US:
        t += r.choice([1000, r.randrange(1, 2 * SECOND_US), SECOND_US - t % SECOND_US])
        times.add(t)
    out: list[BookRow] = []
    at, silent_until = 0, 0
    for u, t in enumerate(sorted(times), 1):
        while at + 1 < len(ordered) and ordered[at + 1].timestamp <= t:
            at += 1
        if t < silent_until:
            continue
        if r.random() < 0.004:
            silent_until = t + 25 * SECOND_US
        bid = ordered[at].price_e8 - r.randrange(0, 3) * E8 // 100 if step else 100 * E8
        bid += r.randrange(-step, step + 1) * E8 // 100
        ask = bid + (r.choice([1, 1, 2, 5, 5]) if step else 2) * E8 // 100
        late = r.choice([0] * 40 + [400_000, 3_000_000, 11_000_000])
        empty = r.random() < 0.003
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


def _closed(trades: list[Trade]) -> int:
    """The trade feed's watermark."""
    return trades[-1].timestamp + 100 * SECOND_US


def _book_watermark(instrument: Instrument, trades: list[Trade]) -> int | None:
    return trades[-1].timestamp + HOUR_US if instrument == WATERMARKED else None


@pytest.fixture(scope="module")
def built(module_store: Settings) -> Built:
    r = random.Random(5)
    data: Built = {}
    for instrument, (n, step) in CASES.items():
        trades = _trades(r, n)
        books = _books(r, trades, step) if instrument != BOOKLESS else []
        if instrument == WATERMARKED:  # the book ends early; its watermark does not
            books = [b for b in books if b[0] < trades[-1].timestamp - 20 * SECOND_US]
        insert_trades(trades, instrument)
        insert_books(books, instrument)
        insert_watermark(instrument, "trades", _closed(trades))
        if (watermark := _book_watermark(instrument, trades)) is not None:
            insert_watermark(instrument, "orderbooks", watermark)
        data[instrument] = (trades, books)
    dbt("seed")
    execute("truncate table bucket_defaults", layer="features")
    execute(
        "insert into bucket_defaults values",
        [("*", "*", "*", "volume", "hour", 30, 12, 4, 4, 4, 50, 20, 50, 24, 10**6, "")],
        layer="features",
    )
    dbt("run", select=" ".join(f"+{name}" for name in (*TABLES, *BALANCE)))
    return data


def _states(books: list[BookRow]) -> features.BookStates:
    columns = np.array(books, dtype=np.int64).reshape(-1, 7).T
    return features.book_states(
        features.BookRows(
            known_at=columns[6],
            timestamp=columns[0],
            last_update_id=columns[1],
            bid_price=columns[2] / E8,
            bid_quantity=columns[4] / E8,
            ask_price=columns[3] / E8,
            ask_quantity=columns[5] / E8,
        )
    )


def _expected(
    instrument: Instrument, trades: list[Trade], books: list[BookRow]
) -> dict[str, features.Columns]:
    watermark = _book_watermark(instrument, trades)
    buckets: list[Bucket] = clock.buckets(trades, CONFIG, watermark=_closed(trades))
    starts, ends = features.bounds(buckets)
    states = _states(books)
    book = features.top_of_book(starts, ends, states)
    mid_close, one = book["mid_close"], np.ones(len(ends))
    rv = features.rolling(mid_close, one, one, one)["rv"]
    cost = (book["spread_bps_close"] + 2 * features.TAKER_FEE_BPS) / 1e4
    first = features.labels(
        ends, mid_close, rv, states, orderbooks_watermark=(watermark or 1) - 1, cost=cost
    ) | labels.returns(ends, mid_close)
    variance = first["variance_per_second"]
    way = labels.paths(ends, mid_close, variance, states, watermark)
    return {
        "bucket_labels": first,
        "path_labels": way,
        "label_weights": labels.weights(ends, mid_close, variance, first | way, _closed(trades)),
        "fill_markouts": labels.fills(buckets, clock.on_time(trades), states, _closed(trades), watermark),
    }


def _read(table: str, instrument: Instrument) -> dict[str, np.ndarray]:
    listed = query(
        "select name, type from system.columns where database = currentDatabase() and table = %(t)s and position > 6",
        t=table,
    )

    def value(name: str, kind: str) -> str:
        if "String" in kind:
            return f"if({name} is null, null, indexOf({list(labels.SHAPES)}, {name}) - 1)"
        return us(name) if "DateTime" in kind else name

    selected = [f"toFloat64({value(c['name'], c['type'])}) as {c['name']}" for c in listed]
    x, m, y = instrument
    rows = query(
        f"select {', '.join(selected)} from {table} "
        "where (exchange, market_type, symbol) = (%(x)s, %(m)s, %(y)s) order by bucket_id",
        x=x,
        m=m,
        y=y,
    )
    names = [c["name"] for c in listed]
    return {name: np.array([np.nan if r[name] is None else r[name] for r in rows]) for name in names}


@pytest.mark.parametrize("instrument", CASES, ids="-".join)
def test_equal_to_the_oracle(built: Built, instrument: Instrument) -> None:
    expected = _expected(instrument, *built[instrument])
    for table in TABLES:
        for name, got in _read(table, instrument).items():
            want = np.asarray(expected[table][name], dtype=float)
            np.testing.assert_array_equal(
                np.isnan(got), np.isnan(want), err_msg=f"{table}.{name}: NULL or not"
            )
            # differences of nearly equal mids: the absolute floor is a rounding of the mid itself
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12, err_msg=f"{table}.{name}")
        assert {c for c in expected[table] if c.startswith("label_")} <= set(_read(table, instrument))


def test_the_cases_reach_the_edges(built: Built) -> None:
    """The comparison means something only if every outcome really occurs."""
    [row] = query(
        """
        select
            countIf(label_barrier_60s = 1) as up, countIf(label_barrier_60s = -1) as down, countIf(label_barrier_60s = 0) as neither,
            countIf(label_barrier_60s is null and label_known_at_barrier_60s is not null) as unseen,
            countIf(label_known_at_barrier_300s is null) as waiting,
            countIf(label_barrier_60s is not null and label_ret_path_60s is null) as touched_before_the_hole,
            countIf(label_shape_10s = 'flat') as flat, countIf(label_shape_10s = 'monotone') as monotone,
            countIf(label_shape_10s = 'v') as v, countIf(label_shape_10s = 'inverted_v') as inverted_v,
            countIf(label_shape_10s = 'choppy') as choppy
        from path_labels
        """
    )
    assert not [k for k, v in row.items() if not v]
    [row] = query(
        """
        select
            countIf(label_wait_s_buy_fill < 1) as at_once, countIf(label_wait_s_sell_fill > 10) as patient,
            countIf(label_wait_s_buy_fill is null and label_known_at_buy_fill is not null) as unfilled,
            countIf(label_known_at_buy_fill is null) as unquoted,
            countIf(label_ret_buy_fill is null and label_wait_s_buy_fill is not null) as unpriced
        from fill_markouts
        """
    )
    assert not [k for k, v in row.items() if not v]
    [row] = query(
        """
        select
            countIf(label_cls_1 = 0 and abs(label_ret_raw_1) > 0) as unpaid, countIf(label_cls_10 = 1) as up,
            countIf(label_ret_wins_1 != label_ret_ps_1) as cut_off, countIf(label_ret_wins_3 = label_ret_ps_3) as kept
        from bucket_labels
        """
    )
    assert not [k for k, v in row.items() if not v]
    [row] = query(
        """
        select
            countIf(label_overlap_5s = 0) as alone, countIf(label_overlap_300s > 20) as crowded,
            countIf(label_uniqueness_300s is null and bucket_ts_end < '2026-01-05 00:00:00') as unopened,
            countIf(label_uniqueness_5s = 1) as unique
        from label_weights
        """
    )
    assert not [k for k, v in row.items() if not v]


def test_shapes_by_hand() -> None:
    assert labels.shape([0, 1, 2, 3]) == "monotone"
    assert labels.shape([0, -1, -2, -1, 0]) == "v"
    assert labels.shape([0, 2, 4, 3, 2.5]) == "inverted_v"
    assert labels.shape([0, 1, 0, 1, 0, 1, 0]) == "choppy"
    assert labels.shape([0, 0, 0]) == "flat"
    # the second leg is a quarter of the first: hardly a turn, but 3 of 5 is monotone
    assert labels.shape([0, -4, -3]) == "monotone"


@pytest.mark.parametrize("h", [5, 60])
def test_uniqueness_adds_up(built: Built, h: int) -> None:
    """Over a whole feed the weights times their spans are the time in which at least one label was open."""
    columns = _read("label_weights", AAA)
    rows = query(
        f"select {us('bucket_ts_end')} as e from label_weights where symbol = 'AAAUSDT' order by bucket_id"
    )
    weight, known = columns[f"label_uniqueness_{h}s"], columns[f"label_known_at_{h}s"]
    covered, reached = 0.0, 0.0
    for start, end, w in zip([r["e"] for r in rows], known, weight, strict=True):
        if not math.isnan(w):
            covered += end - max(start, reached)
            reached = end
    assert covered > 100 * SECOND_US
    assert math.isclose(np.nansum(weight) * h * SECOND_US, covered, rel_tol=1e-9)
