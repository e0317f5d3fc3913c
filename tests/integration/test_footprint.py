"""Bins, shapes, candidates, clusters and levels equal their oracles; steps, a ranged rebuild and one go give the same bytes."""

from __future__ import annotations

import itertools
import random
from dataclasses import asdict

import numpy as np
import pytest

from python_udfs.settings import Settings
from tests.oracles import clock, features, footprint
from tests.oracles.clock import DAY_US, HOUR_US, MINUTE_US, SECOND_US, Config, Trade
from tests.oracles.features import BookRows, Columns
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
CONFIG = Config(mode="volume", t_max_us=60 * SECOND_US, q_bucket_e8=40 * 10**8)
E8 = 10**8
BookRow = tuple[int, int, int, int, int, int, int]
MODELS = "+footprint +footprint_levels stale_candidates footprint_candidates"
TABLES = (
    *("footprint_bins", "footprint", "footprint_bin_minutes", "footprint_windows", "footprint_clusters"),
    "footprint_levels",
)

# seconds between trades, hours of them, price, tick (0: the instrument is not in the seed), has a book
CASES: dict[Instrument, tuple[float, float, int, int, bool]] = {
    # a tick is a bin
    ("alpha", "spot", "AAAUSDT"): (3, 7, 100 * E8, E8 // 100, True),
    # 26 hours: longer than the longest window; 10 ticks are a bin, 5 below a price of 1,000
    ("alpha", "linear", "BBBUSDT"): (25, 26, 1_000 * E8, E8 // 100, True),
    # no tick known, and the width of a bin changes at a price of 2
    ("gamma", "spot", "B/T's"): (9, 3, 2 * E8, 0, True),
    # lively: minutes wider than an absorption allows; no book
    ("beta", "spot", "AAAUSDT"): (2, 2, 100 * E8, E8 // 100, False),
    ("beta", "spot", "BBBUSDT"): (1, 0, 100 * E8, E8 // 100, True),
}
Built = dict[Instrument, tuple[list[Trade], list[BookRow]]]
Clusters = dict[Instrument, dict[int, list[footprint.Cluster]]]


def _trades(r: random.Random, instrument: Instrument) -> list[Trade]:
    """From 40 s before midnight: ties, one-sided spells at a price, blocks, silences of 70 minutes, late and tiny trades."""
    every, hours, price, tick, _ = CASES[instrument]
    step = max(tick or price // 20_000, price // 12_000 // (tick or 1) * (tick or 1))
    t, out, held_until, side = START - 40 * SECOND_US, [], 0, "buy"
    while not out or t < START + hours * HOUR_US:
        t += r.choice([0, 0, 1000, r.randrange(1, int(4 * every * SECOND_US))])
        if r.random() < 0.0006:
            t += 70 * MINUTE_US
        if r.random() < 0.004:
            held_until, side = t + r.randrange(30, 300) * SECOND_US, r.choice(["buy", "sell"])
        held = t < held_until
        if not held:
            price = max(E8, price + r.choice([-1, 0, 0, 1]) * step)
            side = r.choice(["buy", "sell"])
        block = 60 if r.random() < 0.002 else 3 if held else 1
        late = 7 * SECOND_US if r.random() < 0.02 else 0
        quantity = (
            r.choice([1, r.randrange(1, 2 * E8)]) if r.random() < 0.05 else r.randrange(1, 20) * E8 // 10
        )
        n = len(out) + 1
        out.append(Trade(t, n, str(n), quantity * block, t + late, price, side))
    return out


def _books(r: random.Random, trades: list[Trade]) -> list[BookRow]:
    """A state at most of the trades' prices; some come late, some have no bid."""
    out = []
    for u, t in enumerate(trades, 1):
        if r.random() < 0.6:
            bid = 0 if r.random() < 0.02 else t.price_e8 - r.randrange(1, 4) * 10**5
            late = r.choice([0] * 9 + [400_000])
            quantity = r.randrange(1, 9 * E8) if bid else 0
            ask = (
                t.timestamp,
                u,
                bid,
                t.price_e8 + 10**5,
                quantity,
                r.randrange(1, 9 * E8),
                t.timestamp + late,
            )
            out.append(ask)
    return out


def _market(seed: int) -> Built:
    r = random.Random(seed)
    data: Built = {}
    for instrument, case in CASES.items():
        trades = _trades(r, instrument)
        data[instrument] = (trades, _books(r, trades) if case[-1] else [])
    return data


def _seed() -> None:
    dbt("seed")
    execute("truncate table bucket_defaults", layer="features")
    execute(
        "insert into bucket_defaults values",
        [("*", "*", "*", "volume", "hour", 30, 60, 40, 40, 40, 50, 20, 50, 24, 10**6, "")],
        layer="features",
    )


@pytest.fixture(scope="module")
def built(module_store: Settings) -> Built:
    data = _market(5)
    for instrument, (trades, books) in data.items():
        insert_trades(trades, instrument)
        insert_books(books, instrument)
        insert_watermark(instrument, "trades", trades[-1].timestamp + HOUR_US)
    _seed()
    dbt("run", select=MODELS)
    return data


def _clock(trades: list[Trade]) -> tuple[list[clock.Bucket], list[Trade]]:
    return clock.buckets(trades, CONFIG, watermark=trades[-1].timestamp + HOUR_US), clock.on_time(trades)


@pytest.fixture(scope="module")
def expected_runs(built: Built) -> dict[Instrument, footprint.Runs]:
    return {
        instrument: footprint.runs(
            clock.on_time(trades), tick_e8=CASES[instrument][3], watermark=trades[-1].timestamp + HOUR_US
        )
        for instrument, (trades, _) in built.items()
    }


@pytest.fixture(scope="module")
def expected_clusters(expected_runs: dict[Instrument, footprint.Runs]) -> Clusters:
    return {
        instrument: {run: footprint.clusters(windows) for run, windows in runs.items()}
        for instrument, runs in expected_runs.items()
    }


def _stored(table: str, instrument: Instrument, columns: str, order: str) -> list[dict[str, object]]:
    x, m, y = instrument
    return query(
        f"select {columns} from {table} where (exchange, market_type, symbol) = (%(x)s, %(m)s, %(y)s) order by {order}",
        x=x,
        m=m,
        y=y,
    )


def _compare(table: str, instrument: Instrument, expected: Columns) -> None:
    rows = _stored(table, instrument, ", ".join(f"toFloat64({c}) as {c}" for c in expected), "bucket_id")
    assert len(rows) == len(next(iter(expected.values())))
    for name, want in expected.items():
        got = np.array([np.nan if r[name] is None else r[name] for r in rows])
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want), err_msg=f"{name}: NULL or not")
        # a distance of nearly equal prices: the floor is a rounding of the price itself, in bps
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("instrument", CASES, ids="-".join)
def test_the_shape_of_a_bucket(built: Built, instrument: Instrument) -> None:
    buckets, ordered = _clock(built[instrument][0])
    _compare("footprint", instrument, footprint.footprint(buckets, ordered, tick_e8=CASES[instrument][3]))


@pytest.mark.parametrize("instrument", CASES, ids="-".join)
def test_bins_add_up_to_the_bucket(built: Built, instrument: Instrument) -> None:
    buckets, ordered = _clock(built[instrument][0])
    expected = []
    for b in buckets:
        own: dict[int, list[Trade]] = {}
        for t in clock.members(b, ordered):
            own.setdefault(footprint.price_bin(t.price_e8, CASES[instrument][3]), []).append(t)
        for edge in sorted(own):
            buys = sum(t.quantity_e8 for t in own[edge] if t.side == "buy")
            sells = sum(t.quantity_e8 for t in own[edge] if t.side == "sell")
            prices = [t.price_e8 for t in own[edge]]
            row = (b.bucket_id, edge, len(own[edge]), buys, sells, buys - sells, buys + sells)
            expected.append((*row, min(prices), max(prices), prices[-1]))
    columns = ("price_bin", "trade_count", "buy_volume", "sell_volume", "delta", "volume")
    prices_ = ("low_price", "high_price", "last_price")
    exact = [c if c == "trade_count" else f"reinterpretAsInt64({c})" for c in (*columns, *prices_)]
    rows = _stored(
        "footprint_bins", instrument, f"(bucket_id, {', '.join(exact)}) as row", "bucket_id, price_bin"
    )
    assert [r["row"] for r in rows] == expected


@pytest.mark.parametrize("instrument", CASES, ids="-".join)
def test_windows_and_candidates(
    expected_runs: dict[Instrument, footprint.Runs], instrument: Instrument
) -> None:
    expected = expected_runs[instrument]
    windows = _stored(
        "footprint_windows",
        instrument,
        f"{us('run_ts')} as run, window_h, bin_count, volume, volume_threshold",
        "run_ts, window_h",
    )
    assert [(w["run"], w["window_h"]) for w in windows] == [(r, h) for r in expected for h in expected[r]]
    for w in windows:
        want = expected[w["run"]][w["window_h"]]  # type: ignore[index]
        assert (w["bin_count"], w["volume"], w["volume_threshold"]) == (
            want.bin_count,
            pytest.approx(want.volume, rel=1e-9),
            pytest.approx(want.threshold, rel=1e-9),
        )
    wanted = [asdict(c) for r in expected.values() for w in r.values() for c in w.candidates]
    rows = _stored(
        "footprint_candidates",
        instrument,
        f"{us('run_ts')} as run_ts, window_h, reinterpretAsInt64(price_bin) as price_bin_e8, price, "
        "candidate_volume as volume, candidate_delta as delta, range_bps, ifNull(reversal_bps, nan) as reversal_bps, "
        f"{us('last_seen')} as last_seen, is_absorption::Bool as is_absorption, is_exhaustion::Bool as is_exhaustion",
        "footprint_candidates.run_ts, window_h, price_bin",
    )
    assert len(rows) == len(wanted)
    for got, want in zip(rows, wanted, strict=True):
        assert got == {k: pytest.approx(v, rel=1e-9, abs=1e-9, nan_ok=True) for k, v in want.items()}


@pytest.mark.parametrize("instrument", CASES, ids="-".join)
def test_clusters(expected_clusters: Clusters, instrument: Instrument) -> None:
    expected = expected_clusters[instrument]
    rows = _stored(
        "footprint_clusters",
        instrument,
        f"{us('run_ts')} as run, udf_error, arrayZip(cluster_windows_h, cluster_prices, cluster_volumes, cluster_shares, "
        f"cluster_signs, arrayMap(t -> {us('t')}, cluster_last_seen), cluster_bins) as clusters",
        "run_ts",
    )
    assert [r["run"] for r in rows] == list(expected)
    for row in rows:
        assert row["udf_error"] is None
        want = [tuple(asdict(c).values()) for c in expected[row["run"]]]  # type: ignore[index]
        assert [pytest.approx(c, rel=1e-9) for c in want] == sorted(
            row["clusters"],  # type: ignore[arg-type]
            key=lambda c: (-round(c[3], 12), c[0], c[1]),
        )


@pytest.mark.parametrize("instrument", CASES, ids="-".join)
def test_levels(built: Built, expected_clusters: Clusters, instrument: Instrument) -> None:
    trades, books = built[instrument]
    buckets, _ = _clock(trades)
    columns = np.array(books, dtype=np.int64).reshape(-1, 7).T
    states = features.book_states(
        BookRows(
            known_at=columns[6],
            timestamp=columns[0],
            last_update_id=columns[1],
            bid_price=columns[2] / E8,
            bid_quantity=columns[4] / E8,
            ask_price=columns[3] / E8,
            ask_quantity=columns[5] / E8,
        )
    )
    starts, ends = features.bounds(buckets)
    mid = features.top_of_book(starts, ends, states)["mid_close"]
    _compare("footprint_levels", instrument, footprint.levels(ends, mid, expected_clusters[instrument]))


def test_the_cases_reach_the_edges(built: Built) -> None:
    """The comparison means something only if all kinds of candidates, large clusters and stale runs occur."""
    [row] = query(
        "select countIf(is_absorption and abs(candidate_delta) < 0.2 * candidate_volume) as balanced, "
        "countIf(is_absorption and abs(candidate_delta) > 0.7 * candidate_volume) as one_sided, "
        "countIf(is_exhaustion and not is_absorption) as exhausted, "
        "countIf(window_h = 24 and last_seen < run_ts - toIntervalHour(4)) as old from footprint_candidates"
    )
    assert all(row.values()), row
    [row] = query(
        "select countIf(arrayExists(b -> b > 2, cluster_bins)) as dense, countIf(cluster_count = 0) as without "
        "from footprint_clusters"
    )
    assert all(row.values()), row
    [row] = query(
        "select countIf(nearest_resistance_distance_bps > 0) as above, countIf(nearest_support_distance_bps > 0) as below, "
        "countIf(level_count = 0) as without, countIf(level_run_age_s is null and mid_close > 0) as stale, "
        "countIf(level_run_age_s is not null and mid_close is null and resistance_above is null) as no_mid "
        "from footprint_levels inner join top_of_book using (exchange, market_type, symbol, bucket_id)"
    )
    assert all(row.values()), row
    [row] = query(
        "select countIf(footprint_bin_count = 1) as one, countIf(stacked_buy_imbalance > 2) as up, "
        "countIf(stacked_sell_imbalance > 2) as down, countIf(value_area_width_bps = 0) as narrow from footprint"
    )
    assert all(row.values()), row


def test_hours_with_stale_candidates_are_listed(built: Built) -> None:
    stale = query("select exchange, market_type, symbol, hour, buckets, stale_buckets from stale_candidates")
    expected = query(
        "select exchange, market_type, symbol, toStartOfHour(bucket_ts_end) as hour, count() as buckets, "
        "countIf(level_run_age_s is null) as stale_buckets from footprint_levels group by 1, 2, 3, 4 "
        "having stale_buckets > 0"
    )
    assert stale
    assert sorted(map(str, stale)) == sorted(map(str, expected))


def test_bins_do_not_overlap_where_their_width_changes() -> None:
    """Every price lies in one bin, bins are whole ticks, and 0.4 to 1 bp wide where the tick allows."""
    for tick, low, high in ((10**6, 990 * E8, 1010 * E8), (5 * 10**7, 9_000 * E8, 21_000 * E8)):
        for edge, following in footprint.edges(low, high, tick):
            width = following - edge
            assert width % tick == 0
            assert edge < low or 0.4 <= width / edge * 1e4 <= 1.0 or width == tick


def test_steps_and_ranged_rebuilds_give_the_same_bytes(store: Settings) -> None:
    """Appended in steps, in order of knowledge, equals built at once, and any day rebuilt alone."""
    until = START + 2 * HOUR_US
    data = {
        k: ([t for t in trades if t.timestamp < until], [b for b in books if b[0] < until])
        for k, (trades, books) in _market(6).items()
        if k[2] != "BBBUSDT"
    }
    _seed()
    known = sorted(
        k for trades, books in data.values() for k in [*(t.known_at for t in trades), *(b[6] for b in books)]
    )
    numbers = [0, *(known[len(known) * i // 3] for i in range(1, 3)), known[-1] + DAY_US]
    for low, high in itertools.pairwise(numbers):
        for instrument, (trades, books) in data.items():
            insert_trades([t for t in trades if low <= t.known_at < high], instrument)
            insert_books([b for b in books if low <= b[6] < high], instrument)
            insert_watermark(instrument, "trades", high)
        dbt("run", select=MODELS)
    in_steps = {t: table_hash(t) for t in TABLES}
    assert all(h["n"] > 0 for h in in_steps.values())
    for date in ("2026-01-04", "2026-01-05"):
        dbt("run", select=MODELS, start=date, end=date)
    assert {t: table_hash(t) for t in TABLES} == in_steps
    dbt("run", select=MODELS, full_refresh=True)
    assert {t: table_hash(t) for t in TABLES} == in_steps
