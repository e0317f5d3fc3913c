"""The buckets in the database equal a plain state machine, row for row, in all modes, however they are built."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from python_udfs.settings import Settings
from tests.oracles import clock
from tests.oracles.clock import HOUR_US, SECOND_US, Bucket, Config, Trade
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
CLOCK = "stg_trades stg_orderbooks stg_watermarks bucket_config bucket_tapes unified_buckets bucket_trades"


def _market(seed: int) -> tuple[list[Trade], list[int], Config, int | None]:
    """A random instrument: bursts and gaps, ties, huge and tiny trades, late and duplicated rows, hour and day boundaries."""
    r = random.Random(seed)
    mode = ("volume", "count", "hybrid", "event")[seed % 4]
    t = START - r.choice([0, 3, 40]) * SECOND_US
    trades: list[Trade] = []
    step = r.choice([1_000, 50_000, 1_000_000])
    for i in range(r.choice([1, 2, 30, 300, 700])):
        t += r.choice(
            [
                0,
                0,
                1,
                step,
                r.randrange(1, 3 * step),
                *([61 * SECOND_US, HOUR_US + 1] if r.random() < 0.01 else []),
            ]
        )
        if r.random() < 0.02:  # land exactly on an hour
            t = -(-t // HOUR_US) * HOUR_US
        late = r.random() < 0.03
        quantity = r.choice([1, 10**8, r.randrange(1, 3 * 10**8), 50 * 10**8 if r.random() < 0.05 else 10**7])
        trades.append(
            Trade(
                t,
                i + 1,
                str(i + 1),
                quantity,
                t + (r.randrange(1, 10**7) if late else 0),
                100 * 10**8,
                r.choice(["buy", "sell"]),
            )
        )
    books = sorted(
        {t.timestamp + r.choice([-1, 0, 1, r.randrange(-(10**6), 10**6)]) for t in trades for _ in range(2)}
    )
    config = Config(
        mode=mode,  # type: ignore[arg-type]
        t_max_us=r.choice([1, 5, 60]) * SECOND_US,
        q_bucket_e8=r.choice([10**8, 5 * 10**8, 12_345_678_901]),
        t_target_us=r.choice([1, 2, 30]) * SECOND_US,
        n_trades=r.choice([1, 2, 7, 50]),
        n_min=r.choice([1, 3, 20]),
        n_updates=r.choice([1, 2, 9]),
    )
    watermark = r.choice([None, t, t + 1, t + 100 * SECOND_US, t + 3 * HOUR_US])
    return trades, books, config, watermark


def _defaults(instrument: Instrument, c: Config, anchor: str) -> tuple[Any, ...]:
    from decimal import Decimal

    seconds = Decimal(1_000_000)
    q = Decimal(c.q_bucket_e8).scaleb(-8)
    return (
        *instrument,
        c.mode,
        anchor,
        c.t_target_us / seconds,
        c.t_max_us / seconds,
        q,
        q,
        q,
        c.n_trades,
        c.n_min,
        c.n_updates,
        24,
        10**6,
        "",
    )


def built_buckets(instrument: Instrument) -> list[Bucket]:
    """The database's rows as the oracle's."""
    rows = query(
        f"select bucket_id, {us('bucket_ts_start')} as s, {us('bucket_ts_end')} as e, cut_trigger, trade_count, "
        "toInt64(volume * 100000000) as v, toString(first_trade_seq) as f, toString(last_trade_seq) as l, sequence, "
        "toUnixTimestamp(anchor_ts) as anchor from unified_buckets where (exchange, market_type, symbol) = "
        "(%(x)s, %(m)s, %(y)s) order by bucket_id",
        x=instrument[0],
        m=instrument[1],
        y=instrument[2],
    )
    return [
        Bucket(
            r["bucket_id"],
            r["s"],
            r["e"],
            r["cut_trigger"],
            r["trade_count"],
            r["v"],
            r["f"],
            r["l"],
            r["sequence"],
            r["anchor"] * SECOND_US,
            0,
        )
        for r in rows
    ]


COUNT = 160


@pytest.fixture(scope="module")
def cases() -> dict[Instrument, tuple[list[Trade], list[int], Config, int | None, int]]:
    symbols = [f"S{i}" for i in range(COUNT - 3)] + ["O'NEIL-USD", "BTC/USDT", "back\\slash"]
    return {
        ("alpha", "spot", symbol): (*_market(i), HOUR_US if i % 8 < 6 else clock.DAY_US)
        for i, symbol in enumerate(symbols)
    }


@pytest.fixture(scope="module")
def configured(module_store: Settings, cases: Any) -> Settings:
    dbt("seed")
    execute(
        "insert into bucket_defaults values",
        [_defaults(k, c, "hour" if a == HOUR_US else "day") for k, (_, _, c, _, a) in cases.items()],
        layer="features",
    )
    return module_store


def _expected(case: tuple[list[Trade], list[int], Config, int | None, int]) -> list[Bucket]:
    trades, books, config, watermark, anchor = case
    return clock.buckets(trades, config, anchor_us=anchor, book_times=books, watermark=watermark)


def _assert_equal(cases: Any) -> None:
    triggers: set[str] = set()
    for instrument, case in cases.items():
        expected = _expected(case)
        built = built_buckets(instrument)
        assert built == expected, f"{instrument} {case[2]}"
        triggers |= {b.cut_trigger for b in built}
    assert triggers == {"volume", "count", "hybrid", "event", "time", "anchor"}


def test_increments_then_at_once_then_ranged(configured: Settings, cases: Any) -> None:
    # Many small increments, in arrival order of event time, the watermarks last.
    times = sorted(t.timestamp for trades, *_ in cases.values() for t in trades)
    edges = [times[0], *(times[len(times) * k // 5] for k in range(1, 5)), times[-1] + 1]
    for instrument, (_, books, *_rest) in cases.items():
        insert_books(
            [(b, i, 10**10, 10**10 + 10**6, 10**8, 10**8, b) for i, b in enumerate(books)], instrument
        )
    for low, high in itertools.pairwise(edges):
        for instrument, (trades, *_rest) in cases.items():
            insert_trades([t for t in trades if low <= t.timestamp < high], instrument)
        dbt("run", select=CLOCK)
    for instrument, (*_rest, watermark, _anchor) in cases.items():
        if watermark is not None:
            insert_watermark(instrument, "trades", watermark)
    dbt("run", select=CLOCK)
    _assert_equal(cases)
    by_increments = table_hash("bucket_tapes")

    # At once.
    dbt("run", select=CLOCK, full_refresh=True)
    _assert_equal(cases)
    assert table_hash("bucket_tapes") == by_increments

    # Any day alone, also with a damaged table: whole partitions are replaced.
    execute(
        "alter table bucket_tapes delete where sequence % 3 = 0 settings mutations_sync = 1", layer="features"
    )
    days = [r["d"] for r in query("select distinct toString(toDate(bucket_ts_start)) as d from bucket_tapes")]
    for day in sorted(days):
        dbt("run", select=CLOCK, start=day, end=day)
    assert table_hash("bucket_tapes") == by_increments

    # A run without news changes nothing.
    dbt("run", select=CLOCK)
    assert table_hash("bucket_tapes") == by_increments
