"""Volatility, heatmap and trade clusters equal their oracles on small random markets."""

from __future__ import annotations

import random
from typing import Final, NamedTuple

import numpy as np
import pytest

from python_udfs.settings import Settings
from tests.oracles import clock, features, heatmap, volatility
from tests.oracles.clock import HOUR_US, SECOND_US, Config, Trade
from tests.support import Instrument, dbt, execute, insert_books, insert_trades, insert_watermark, query

START: Final = 1_767_571_200 * SECOND_US  # 2026-01-05 00:00:00 UTC
CONFIG: Final = Config(mode="volume", t_max_us=5 * SECOND_US, q_bucket_e8=8 * 10**8)
E8: Final = 10**8
FAMILIES: Final = (
    "multi_resolution_volatility",
    "jump_variation",
    "range_volatility",
    "wavelet_energy",
    "trade_heatmap",
    "trade_clusters",
)
BookRow = tuple[int, int, int, int, int, int, int]


class Case(NamedTuple):
    """trades: how many. silence: how often the book is silent for 25 s; None: no book. moves: does the price?"""

    trades: int
    silence: float | None
    moves: bool = True


CASES: Final[dict[Instrument, Case]] = {
    ("alpha", "spot", "AAAUSDT"): Case(1500, 0.0005),
    ("alpha", "linear", "BB'B/USDT"): Case(700, 0.01),
    ("binance", "inverse", "BTCUSD_PERP"): Case(900, 0.0, moves=False),
    ("beta", "spot", "AAAUSDT"): Case(150, None),
    ("beta", "linear", "BBBUSDT"): Case(1, 0.0),
}
Data = dict[Instrument, tuple[list[Trade], list[BookRow]]]


def _trades(r: random.Random, case: Case) -> list[Trade]:
    """From 40 s before midnight: ties, bursts of like sizes, one gap of an hour, a few late ones."""
    t, price, out = START - 40 * SECOND_US, 100 * E8, []
    for i in range(case.trades):
        t += r.choice([0, 0, 1000, r.randrange(1, 1_500_000)])
        if i == case.trades * 3 // 5:
            t += HOUR_US
        if case.moves:
            price += r.choice([-3, -1, 0, 0, 0, 1, 3]) * E8 // 100
        late = r.random() < 0.02
        quantity = r.choice([E8, E8 // 2, r.randrange(1, 2 * E8)])
        side = r.choice(["buy", "sell"]) if case.trades > 1 else "sell"
        out.append(Trade(t, i + 1, str(i + 1), quantity, t + late * 7_000_000, price, side))
    return out


def _books(r: random.Random, trades: list[Trade], case: Case) -> list[BookRow]:
    """Around the last price: ties, late and stale-on-arrival rows, empty sides, silences; at least each second."""
    out: list[BookRow] = []
    t, u, at = trades[0].timestamp - 400 * SECOND_US, 0, 0
    while case.silence is not None and t < trades[-1].timestamp + 20 * SECOND_US:
        t += r.choice([0, 1000, r.randrange(1, 1_000_000)])
        if r.random() < case.silence:
            t += 25 * SECOND_US
        while at + 1 < len(trades) and trades[at + 1].timestamp <= t:
            at += 1
        u += 1
        bid = trades[at].price_e8 - (r.randrange(3) * E8 // 100 if case.moves else 0)
        empty = r.random() < case.silence / 5
        late = r.choice([0] * 20 + [400_000, 3_000_000, 11_000_000])
        quantity = 0 if empty else r.randrange(1, 9 * E8)
        out.append((t, u, 0 if empty else bid, bid + E8 // 100, quantity, r.randrange(1, 9 * E8), t + late))
    return out


@pytest.fixture(scope="module")
def built(module_store: Settings) -> Data:
    r = random.Random(5)
    data: Data = {}
    for instrument, case in CASES.items():
        trades = _trades(r, case)
        books = _books(r, trades, case)
        data[instrument] = (trades, books)
        # out of order, and some twice
        insert_trades(r.sample(trades, len(trades)), instrument)
        insert_trades(trades[:20], instrument)
        insert_books(r.sample(books, len(books)), instrument)
        insert_watermark(instrument, "trades", trades[-1].timestamp + HOUR_US)
    dbt("seed")
    execute("truncate table bucket_defaults", layer="features")
    execute(
        "insert into bucket_defaults values",
        [("*", "*", "*", "volume", "hour", 30, 5, 8, 8, 8, 50, 20, 50, 24, 10**6, "")],
        layer="features",
    )
    dbt("run", select=" ".join(f"+{name}" for name in FAMILIES))
    return data


def _expected(family: str, trades: list[Trade], books: list[BookRow]) -> features.Columns:
    buckets = clock.buckets(trades, CONFIG, watermark=trades[-1].timestamp + HOUR_US)
    ordered = clock.on_time(trades)
    columns = np.array(books, dtype=np.int64).reshape(-1, 7).T
    states = features.book_states(
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
    starts, ends = features.bounds(buckets)
    mid_close = features.top_of_book(starts, ends, states)["mid_close"]
    flow = features.trade_flow(buckets, ordered, market_type="spot")
    rolling = features.rolling(mid_close, flow["buy_volume"], flow["sell_volume"], flow["notional"])
    prices = [flow[f"{name}_price"] for name in ("open", "high", "low", "close")]
    match family:
        case "multi_resolution_volatility":
            return volatility.multi_resolution_volatility(ends, states)
        case "jump_variation":
            return volatility.jump_variation(rolling["mid_return"], rolling["rv"], rolling["jump"])
        case "range_volatility":
            return volatility.range_volatility(*prices)
        case "wavelet_energy":
            return volatility.wavelet_energy(rolling["mid_return"])
        case "trade_heatmap":
            return heatmap.trade_heatmap(buckets, ordered, mid_close)
        case _:
            return heatmap.trade_clusters(buckets, ordered)


@pytest.mark.parametrize("instrument", CASES, ids="-".join)
@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_the_oracle(built: Data, family: str, instrument: Instrument) -> None:
    expected = _expected(family, *built[instrument])
    rows = query(
        f"select * from {family} where (exchange, market_type, symbol) = (%(x)s, %(m)s, %(y)s) order by bucket_id",
        **dict(zip("xmy", instrument, strict=True)),
    )
    keys = {"exchange", "market_type", "symbol", "bucket_id", "bucket_ts_start", "bucket_ts_end"}
    assert set(rows[0]) - keys - {"udf_error"} == set(expected)
    assert all(row.get("udf_error") is None for row in rows)
    for name, want in expected.items():
        got = np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=np.float64)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want), err_msg=f"{name}: NULL on one side only")
        # sums that may cancel (slopes, semivariances' difference): the floor is a rounding of their parts
        floor = 1e-15 if name == "signed_jump_variation" else 1e-12
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=floor, err_msg=name)


def test_every_bucket_has_its_row(built: Data) -> None:
    key = "exchange, market_type, symbol, bucket_id, bucket_ts_start, bucket_ts_end"
    for family in FAMILIES:
        [row] = query(
            f"select (select groupBitXor(cityHash64({key})) from {family}) = groupBitXor(cityHash64({key})) as same, "
            f"(select count() from {family}) = count() as as_many from unified_buckets"
        )
        assert row == {"same": 1, "as_many": 1}, family


def test_the_cases_reach_the_edges(built: Data) -> None:
    """The comparison means something only if values and NULLs, still prices and jumps really occur."""
    conditions = {
        "multi_resolution_volatility": [
            "realized_volatility_300s > 0",
            "realized_volatility_300s is null and realized_volatility_10s > 0",
            "realized_volatility_1s is null",
            "realized_volatility_300s = 0",
            "volatility_shift_flag = 0",
            "volatility_shift is null and realized_volatility_10s is not null",
        ],
        "jump_variation": [
            "lee_mykland_flag = 1",
            "lee_mykland_flag = 0",
            "lee_mykland is null",
            "jump_ratio > 0",
        ],
        "range_volatility": ["parkinson = 0", "parkinson_mean > 0", "parkinson_mean is null"],
        "wavelet_energy": ["wavelet_snr > 0", "wavelet_snr is null", "wavelet_energy_detail_1 = 0"],
        "trade_heatmap": [
            "heatmap_entropy > 1",
            "heatmap_entropy is null",
            "heatmap_buy_centre_bps is null and heatmap_sell_centre_bps is not null",
            "heatmap_drift_bps_per_s is null and heatmap_entropy is not null",
            "heatmap_buy_spread_bps = 0",
        ],
        "trade_clusters": ["trade_cluster_count = 0", "trade_cluster_count > 3"],
    }
    for family, of in conditions.items():
        [row] = query(f"select {', '.join(f'countIf({c}) as c{i}' for i, c in enumerate(of))} from {family}")
        assert all(row.values()), {c: row[f"c{i}"] for i, c in enumerate(of)}
