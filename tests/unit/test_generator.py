"""The generated market: what holds for every row, the planted truths seen in the data, and the folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from python_udfs.errors import BadFileError, UserError
from python_udfs.ingest import generator
from python_udfs.ingest.generator import (
    INSTRUMENTS,
    TRUTHS,
    GeneratedReader,
    MarketConfig,
    generate,
    generate_command,
    tiny_market,
    write,
)
from python_udfs.ingest.records import COLUMNS, INSTRUMENT, Batch, Item, Note, Progress, Watermark
from python_udfs.settings import REPOSITORY

Columns = dict[str, npt.NDArray[Any]]
Key = tuple[str, str, str]
SECOND = 1_000_000
KEYS: list[Key] = [(i.exchange, i.market_type, i.symbol) for i in INSTRUMENTS]
LINEAR_A: Key = ("alpha", "linear", "AAAUSDT")
LINEAR_B: Key = ("alpha", "linear", "BBBUSDT")


@dataclass
class Market:
    config: MarketConfig
    rows: dict[str, Columns]
    truths: dict[str, Any]

    def of(self, kind: str, key: Key) -> Columns:
        """The rows of one instrument, in the order in which they came."""
        columns = self.rows[kind]
        here = np.logical_and.reduce([columns[n] == v for n, v in zip(INSTRUMENT, key, strict=True)])
        return {name: values[here] for name, values in columns.items()}

    def mids(self, key: Key, at: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Mid of the last book stamped up to each time."""
        books = self.of("orderbooks", key)
        last = np.searchsorted(books["timestamp"], at, side="right") - 1
        return ((books["best_bid_price"] + books["best_ask_price"])[last] / 2e8).astype(np.float64)


def collect(items: Iterator[Item]) -> tuple[dict[str, Columns], dict[str, Any]]:
    parts: dict[str, list[Columns]] = {}
    truths: dict[str, Any] = {}
    for item in items:
        if isinstance(item, Batch):
            parts.setdefault(item.kind, []).append(item.columns)
        elif isinstance(item, Note):
            truths = json.loads(item.value)
    return {k: {n: np.concatenate([p[n] for p in ps]) for n in ps[0]} for k, ps in parts.items()}, truths


def market_of(config: MarketConfig) -> Market:
    return Market(config, *collect(generate(config)))


def same(a: dict[str, Columns], b: dict[str, Columns]) -> bool:
    return a.keys() == b.keys() and all(
        a[kind].keys() == b[kind].keys()
        and all(np.array_equal(a[kind][name], b[kind][name]) for name in a[kind])
        for kind in a
    )


@pytest.fixture(scope="module")
def planted() -> Market:
    """Two blocks and more of everything: an hour and a half across midnight."""
    return market_of(MarketConfig(minutes=100, book_levels=5))


@pytest.fixture(scope="module")
def bare() -> Market:
    """The same without any truth."""
    return market_of(MarketConfig(minutes=100, book_levels=5, truths=()))


def inside(times: npt.NDArray[np.int64], truth: dict[str, Any]) -> npt.NDArray[np.bool_]:
    return (times >= truth["start_us"]) & (times < truth["end_us"])


# --- every row -----------------------------------------------------------------------------------------


def test_same_config_same_rows_and_another_seed_others() -> None:
    one, again, other = (market_of(tiny_market(seed)) for seed in (1, 1, 2))
    assert same(one.rows, again.rows)
    assert one.truths == again.truths
    assert not np.array_equal(one.rows["trades"]["price"][:100], other.rows["trades"]["price"][:100])


def test_rows_do_not_depend_on_batch_size() -> None:
    config = tiny_market(minutes=40)  # a block and a part of one
    sizes = [len(i) for i in generate(config, batch_rows=777) if isinstance(i, Batch) and i.kind == "trades"]
    assert set(sizes[:-1]) == {777}
    assert same(collect(generate(config, batch_rows=777))[0], collect(generate(config))[0])


def test_lines_count_on_within_a_kind() -> None:
    lines = np.concatenate(
        [i.lines for i in generate(tiny_market(), 1000) if isinstance(i, Batch) and i.kind == "trades"]
    )
    assert np.array_equal(lines, np.arange(1, len(lines) + 1))


def test_every_kind_has_the_columns_of_the_wire(planted: Market) -> None:
    assert planted.rows.keys() == COLUMNS.keys() - {"book_depths"}
    for kind, columns in planted.rows.items():
        wire = {"timestamp": "time", "received_at": "time", **INSTRUMENT, "data_source": "string"}
        wire |= next(c for k, c in COLUMNS.items() if k == kind)
        assert columns.keys() == wire.keys()
        types = {"time": "i", "time?": "i", "e8": "i", "uint64": "iu", "bool": "u", "date": "M"}
        for name, type_ in wire.items():
            assert columns[name].dtype.kind in types.get(type_, "O"), (kind, name)
        assert set(columns["data_source"]) == {"generator"}


def test_instruments_are_those_of_the_seed() -> None:
    with (REPOSITORY / "seeds/instruments.csv").open() as f:
        ticks = {(r["exchange"], r["market_type"], r["symbol"]): r["tick_size"] for r in csv.DictReader(f)}
    assert {k: round(float(ticks[k]) * 1e8) for k in KEYS} == {
        k: i.tick_e8 for k, i in zip(KEYS, INSTRUMENTS, strict=True)
    }
    assert sum(i.weight for i in INSTRUMENTS) == pytest.approx(1)


@pytest.mark.parametrize("key", KEYS, ids="-".join)
def test_trades_are_ordered_and_on_their_grids(planted: Market, key: Key) -> None:
    trades, tick = planted.of("trades", key), INSTRUMENTS[KEYS.index(key)].tick_e8
    ids = trades["trade_id"].astype(np.int64)
    assert (np.diff(ids) > 0).all()
    assert (np.diff(trades["timestamp"]) >= 0).all()
    assert planted.config.start <= trades["timestamp"][0]
    assert trades["timestamp"][-1] < planted.config.end
    assert (trades["price"] % tick == 0).all()
    assert (trades["quantity"] % 100_000 == 0).all()
    assert trades["quantity"].min() > 0
    assert np.array_equal(trades["is_maker"] == 1, trades["side"] == "sell")
    assert np.array_equal(trades["trade_time"], trades["timestamp"])
    milliseconds = trades["timestamp"] // 1000
    assert (np.diff(milliseconds) == 0).mean() > 0.3, "many trades share a millisecond"
    if key[0] == "alpha":
        assert (trades["timestamp"] % 1000 == 0).all()


@pytest.mark.parametrize("key", KEYS, ids="-".join)
def test_books_are_never_crossed_and_agree_with_their_levels(planted: Market, key: Key) -> None:
    books, tick = planted.of("orderbooks", key), INSTRUMENTS[KEYS.index(key)].tick_e8
    assert (np.diff(books["timestamp"]) > 0).all()
    assert (np.diff(books["last_update_id"].astype(np.int64)) > 0).all()
    assert (books["best_bid_price"] < books["best_ask_price"]).all()
    for row in range(0, len(books["timestamp"]), 97):
        for side, sign in (("bid", -1), ("ask", 1)):
            levels = json.loads(books[f"{side}s"][row])
            assert len(levels) == books[f"{side}s_count"][row] == 5
            prices = [round(float(price) * 1e8) for price, _ in levels]
            assert all(price % tick == 0 for price in prices)
            assert (np.diff(prices) * sign > 0).all()
            assert prices[0] == books[f"best_{side}_price"][row]
            assert round(float(levels[0][1]) * 1e8) == books[f"best_{side}_quantity"][row]
            assert all(float(quantity) > 0 for _, quantity in levels)


def test_a_book_at_every_change_and_at_least_every_second(bare: Market) -> None:
    books = bare.of("orderbooks", LINEAR_A)
    assert np.diff(books["timestamp"]).max() <= 1.1 * SECOND
    best = np.stack([books["best_bid_price"], books["best_ask_price"]])
    changes = (np.diff(best) != 0).any(axis=0).sum()
    assert 0.2 * len(books["timestamp"]) < changes < len(books["timestamp"])
    # While it trades: a book within two steps of nearly every trade.
    trades = bare.of("trades", LINEAR_A)["timestamp"]
    after = books["timestamp"][np.minimum(np.searchsorted(books["timestamp"], trades), len(best[0]) - 1)]
    assert (after - trades <= 200_000).mean() > 0.99


@pytest.mark.parametrize("key", KEYS, ids="-".join)
def test_trades_print_at_the_book_just_before(planted: Market, key: Key) -> None:
    trades, books = planted.of("trades", key), planted.of("orderbooks", key)
    before = np.searchsorted(books["timestamp"], trades["timestamp"], side="right") - 1
    bid, ask = books["best_bid_price"][before], books["best_ask_price"][before]
    price, buy = trades["price"], trades["side"] == "buy"
    assert ((price >= bid) & (price <= ask)).mean() > 0.95
    assert (price == np.where(buy, ask, bid)).mean() > 0.95
    assert (np.where(buy, price > bid, price < ask)).all(), "no one buys at the bid"


def test_rows_arrive_after_they_happened(bare: Market) -> None:
    for columns in bare.rows.values():
        latency = columns["received_at"] - columns["timestamp"]
        assert latency.min() > 0
        assert latency.max() <= 500_000


def test_trades_are_as_many_as_asked_for_clustered_and_heavy_tailed(bare: Market) -> None:
    n = len(bare.rows["trades"]["price"])
    assert n == pytest.approx(bare.config.trades_per_second * bare.config.minutes * 60, rel=0.1)
    trades = bare.of("trades", LINEAR_A)
    per_second = np.bincount((trades["timestamp"] - bare.config.start) // SECOND)
    assert per_second.var() > 5 * per_second.mean(), "far from Poisson"
    sizes = np.sort(trades["quantity"])[::-1]
    assert sizes[: len(sizes) // 100].sum() > 0.08 * sizes.sum()
    buys = (trades["side"] == "buy").astype(float)
    apart = np.flatnonzero(np.diff(trades["timestamp"]) > 0)
    assert np.corrcoef(buys[apart], buys[apart + 1])[0, 1] > 0.15, "sides go on across orders"


def test_slow_kinds_come_on_their_clocks(planted: Market) -> None:
    minute = 60 * SECOND
    for kind, period in (
        ("funding_rates", minute),
        ("volatility_indices", minute),
        ("open_interests", 5 * minute),
        ("lsr_all_accounts", 5 * minute),
        ("lsr_top_positions", 5 * minute),
        ("tickers", 10 * SECOND),
    ):
        stamps = planted.of(kind, LINEAR_A)["timestamp"]
        assert (stamps % period == 0).all()
        assert (np.diff(stamps) == period).all()
    for what, kind in (("account", "lsr_all_accounts"), ("position", "lsr_top_positions")):
        ratios = planted.rows[kind]
        assert (ratios[f"long_{what}_ratio"] + ratios[f"short_{what}_ratio"] == 10**8).all()


def test_funding_settles_at_midnight(planted: Market) -> None:
    funding = planted.of("funding_rates", LINEAR_A)
    midnight = int(np.datetime64("2026-01-05T00:00:00", "us").astype(np.int64))
    eight = 8 * 3600 * SECOND
    settled = {int(t): int(f) for t, f in zip(funding["timestamp"], funding["funding_time"], strict=True)}
    assert settled[midnight - 60 * SECOND] == midnight
    assert settled[midnight] == midnight
    assert settled[midnight + 60 * SECOND] == midnight + eight
    assert (funding["next_funding_time"] - funding["funding_time"] == eight).all()


def test_tickers_follow_the_trades(bare: Market) -> None:
    tickers, trades = bare.of("tickers", LINEAR_B), bare.of("trades", LINEAR_B)
    before = np.searchsorted(trades["timestamp"], tickers["timestamp"]) - 1
    seen = before >= 0
    assert np.array_equal(tickers["last_price"][seen], trades["price"][before[seen]])
    high = np.maximum.accumulate(trades["price"])[before[seen]]
    assert (tickers["high_24h"][seen] == np.maximum(high, 125 * 10**8)).all()
    assert (tickers["low_24h"] <= tickers["last_price"]).all()
    assert (tickers["price_change_24h"] == tickers["last_price"] - 125 * 10**8).all()


def test_the_24_hour_volume_forgets_what_is_older() -> None:
    market = market_of(
        MarketConfig(minutes=26 * 60, trades_per_second=2, sparse_books=True, truths=(), book_levels=1)
    )
    tickers, trades = market.of("tickers", LINEAR_A), market.of("trades", LINEAR_A)
    last = len(tickers["timestamp"]) - 1
    now = tickers["timestamp"][last]
    day = (trades["timestamp"] < now) & (trades["timestamp"] >= now - 24 * 3600 * SECOND)
    assert round(float(tickers["volume_24h"][last]) * 1000) * 100_000 == trades["quantity"][day].sum()
    assert tickers["high_24h"][last] == trades["price"][day].max()
    assert tickers["low_24h"][last] == trades["price"][day].min()


def test_liquidations_come_in_big_moves(planted: Market) -> None:
    liquidations = planted.of("liquidations", LINEAR_B)
    t = liquidations["timestamp"]
    move = np.log(planted.mids(LINEAR_B, t) / planted.mids(LINEAR_B, t - 10 * SECOND))
    grid = np.arange(planted.config.start + 10 * SECOND, planted.config.end, SECOND)
    usual = np.log(planted.mids(LINEAR_B, grid) / planted.mids(LINEAR_B, grid - 10 * SECOND))
    assert np.abs(move).mean() > 2 * np.abs(usual).mean()
    assert (np.where(liquidations["side"] == "sell", -1, 1) * move > 0).mean() > 0.9
    keys = set(zip(t, liquidations["side"], liquidations["price"], liquidations["quantity"], strict=True))
    assert len(keys) == len(t)


def test_more_book_levels_change_no_trade() -> None:
    few, many = (market_of(replace(tiny_market(), book_levels=n)) for n in (5, 20))
    assert same({"trades": few.rows["trades"]}, {"trades": many.rows["trades"]})
    assert len(json.loads(many.rows["orderbooks"]["bids"][0])) == 20


def test_sparse_books_have_one_level_a_second() -> None:
    market = market_of(MarketConfig.benchmark(30_000))
    assert len(market.rows["trades"]["price"]) == pytest.approx(30_000, rel=0.15)
    books = market.of("orderbooks", LINEAR_A)
    assert len(books["timestamp"]) == market.config.minutes * 60
    assert set(books["bids_count"]) == {1}
    assert "spoofing" not in market.truths


@pytest.mark.parametrize("price", [9.99, 999.95])
def test_prices_may_grow_a_digit(monkeypatch: pytest.MonkeyPatch, price: float) -> None:
    monkeypatch.setitem(generator.START_PRICE, "BBBUSDT", price)
    books = market_of(tiny_market()).of("orderbooks", LINEAR_B)
    whole = {len(text.split(".")[0]) for row in books["asks"] for text, _ in json.loads(row)}
    assert whole == {len(str(int(price))), len(str(int(price))) + 1}


def test_json_numbers_are_plain_and_exact() -> None:
    ticks = np.array([[5, 10], [100_000, 99]])
    lots = np.array([[1, 1000], [123_456_789, 10]])
    texts = generator._levels_json(ticks, 2, lots).to_pylist()
    assert texts == ['[["0.05","0.001"],["0.10","1.000"]]', '[["1000.00","123456.789"],["0.99","0.010"]]']


# --- planted truths ------------------------------------------------------------------------------------


def test_truths_are_named_when_planted_and_only_then(planted: Market, bare: Market) -> None:
    assert planted.truths.keys() == set(TRUTHS)
    assert bare.truths == {}
    market = market_of(replace(tiny_market(), truths=("outage",)))
    assert market.truths.keys() == {"outage"}


@pytest.mark.parametrize("minutes", [10, 11, 37, 150, 24 * 60, 10_000])
def test_truths_do_not_overlap(minutes: int) -> None:
    plan = generator._Plan.of(tiny_market(minutes=minutes))
    assert plan.funding_shock is not None
    places = [
        (plan.funding_shock, plan.funding_shock + 1),
        plan.absorption,
        (plan.spoofing[0], plan.spoof_prints[1]),
        plan.outage,
        plan.volatility,
    ]
    config = tiny_market(minutes=minutes)
    edges = [config.start, *(edge for place in places for edge in place), config.end]
    assert edges == sorted(edges)
    assert all(first < last for first, last in places)


def best_lag(market: Market, key: Key) -> int:
    """The shift in ms at which a follower's 100 ms mid returns correlate best with the leader's."""
    step = 100_000
    grid = np.arange(market.config.start + 10 * SECOND, market.config.end, step) + step // 2
    leader = np.diff(np.log(market.mids(("alpha", "linear", key[2]), grid)))
    follower = np.diff(np.log(market.mids(key, grid)))
    n = len(leader)
    return 100 * int(np.argmax([np.corrcoef(leader[: n - k], follower[k:])[0, 1] for k in range(11)]))


def test_followers_trail_the_leader(planted: Market, bare: Market) -> None:
    truth = planted.truths["lead_lag"]
    assert (truth["leader"], len(truth["followers"])) == ({"exchange": "alpha", "market_type": "linear"}, 6)
    for names in truth["followers"]:
        key = (names["exchange"], names["market_type"], names["symbol"])
        assert best_lag(planted, key) == truth["delay_ms"] == 400
        assert best_lag(bare, key) == 0


def test_another_delay_is_found() -> None:
    market = market_of(replace(tiny_market(minutes=30), lead_lag_ms=700))
    assert best_lag(market, ("beta", "linear", "BBBUSDT")) == 700


def predictability(market: Market, key: Key) -> float:
    """Correlation of the flow imbalance of 15 s with the mid return of the next 15 s."""
    trades = market.of("trades", key)
    grid = np.arange(market.config.start, market.config.end, 15 * SECOND)
    edges = np.searchsorted(trades["timestamp"], grid)
    size = np.concatenate([[0.0], np.cumsum(trades["quantity"].astype(float))])
    signed = np.where(trades["side"] == "buy", 1.0, -1.0) * trades["quantity"]
    flow = np.diff(np.concatenate([[0.0], np.cumsum(signed)])[edges]) / np.maximum(np.diff(size[edges]), 1)
    returns = np.diff(np.log(market.mids(key, grid[1:])))
    return float(np.corrcoef(flow[:-1], returns)[0, 1])


def test_flow_predicts_returns(planted: Market, bare: Market) -> None:
    with_truth = [predictability(planted, key) for key in KEYS]
    without = [predictability(bare, key) for key in KEYS]
    assert min(with_truth) > 0.1
    assert 0.2 < np.mean(with_truth) < 0.5
    assert abs(np.mean(without)) < 0.08


def test_absorption_sells_without_progress(planted: Market, bare: Market) -> None:
    truth = planted.truths["absorption"]
    price = round(float(truth["price"]) * 1e8)
    trades, calm = planted.of("trades", LINEAR_A), bare.of("trades", LINEAR_A)
    here = inside(trades["timestamp"], truth)
    sold = here & (trades["side"] == "sell")
    assert trades["price"][here].min() == price
    assert (trades["price"][sold] == price).all()
    assert trades["quantity"][sold].sum() == round(float(truth["quantity"]) * 1e8)
    assert sold.sum() > 4 * (here & ~sold).sum()
    usual = calm["quantity"].sum() / (bare.config.minutes * 60)
    seconds = (truth["end_us"] - truth["start_us"]) / SECOND
    assert trades["quantity"][sold].sum() / seconds > 5 * usual
    books = planted.of("orderbooks", LINEAR_A)
    assert set(books["best_bid_price"][inside(books["timestamp"], truth)]) == {price}


def quantity_at(books: Columns, side: str, price: str) -> npt.NDArray[np.float64]:
    """The size at one price level in every book; 0 where it is not in the book."""
    return np.array([float(dict(json.loads(row)).get(price, 0)) for row in books[side]])


def test_spoofed_size_comes_and_goes_untraded_then_buys_print(planted: Market) -> None:
    truth = planted.truths["spoofing"]
    books, trades = planted.of("orderbooks", LINEAR_B), planted.of("trades", LINEAR_B)
    size = quantity_at(books, "asks", truth["price"])
    during = inside(books["timestamp"], truth)
    assert during.sum() > 10
    assert (size[during] >= float(truth["quantity"])).all()
    near = np.abs(books["timestamp"] - truth["start_us"]) < 600 * SECOND
    assert size[near & ~during].max() < float(truth["quantity"]) / 3
    price = round(float(truth["price"]) * 1e8)
    assert (books["best_ask_price"][during] < price).all()
    assert not (trades["price"][inside(trades["timestamp"], truth)] >= price).any()
    then = inside(trades["timestamp"], truth["then"])
    bought = then & (trades["side"] == "buy")
    assert truth["then"]["start_us"] == truth["end_us"]
    assert trades["quantity"][bought].sum() == round(float(truth["then"]["quantity"]) * 1e8)
    assert bought.sum() > 4 * (then & ~bought).sum()


@pytest.mark.parametrize("levels", [3, 20])
def test_spoofed_level_is_in_books_of_any_depth(levels: int) -> None:
    market = market_of(replace(tiny_market(), book_levels=levels))
    truth = market.truths["spoofing"]
    books = market.of("orderbooks", LINEAR_B)
    size = quantity_at(books, "asks", truth["price"])
    assert (size[inside(books["timestamp"], truth)] >= float(truth["quantity"])).all()


def test_outage_has_no_rows_and_only_there(planted: Market, bare: Market) -> None:
    truth = planted.truths["outage"]
    assert truth["end_us"] - truth["start_us"] == 240 * SECOND
    names = {tuple(i.values()) for i in truth["instruments"]}
    assert names == {key for key in KEYS if key[0] == "beta"}
    for columns in planted.rows.values():
        assert not (inside(columns["timestamp"], truth) & (columns["exchange"] == "beta")).any()
    for key in KEYS:
        stamps = planted.of("orderbooks", key)["timestamp"]
        gap = np.diff(stamps).max()
        assert (gap > 239 * SECOND) if key[0] == "beta" else (gap < 1.1 * SECOND)
        assert np.diff(bare.of("orderbooks", key)["timestamp"]).max() < 1.1 * SECOND


def test_volatility_steps_up_and_down(planted: Market, bare: Market) -> None:
    truth = planted.truths["volatility_regime"]
    start, end = truth["start_us"], truth["end_us"]

    def ratio(market: Market, symbol: str) -> float:
        """Mean squared 10 s return inside against the rest, square root of."""
        grid = np.arange(market.config.start + 20 * SECOND, market.config.end, 10 * SECOND)
        squares = np.diff(np.log(market.mids(("alpha", "linear", symbol), grid))) ** 2
        within = (grid[:-1] >= start) & (grid[1:] <= end)
        return float(np.sqrt(squares[within].mean() / squares[~within].mean()))

    assert 0.65 * truth["factor"] < ratio(planted, "BBBUSDT") < 1.5 * truth["factor"]
    assert ratio(planted, "AAAUSDT") < 1.7
    assert ratio(bare, "BBBUSDT") < 1.7
    index = planted.of("volatility_indices", LINEAR_B)
    within = inside(index["timestamp"], truth)
    inner, outer = (index["index_value"][w].mean() for w in (within, ~within))
    assert 0.65 * truth["factor"] < inner / outer < 1.5 * truth["factor"]


def test_funding_shock_steps_at_its_minute(planted: Market, bare: Market) -> None:
    truth = planted.truths["funding_shock"]

    def step(market: Market, key: Key) -> float:
        funding = market.of("funding_rates", key)
        at = int(np.searchsorted(funding["timestamp"], truth["time_us"]))
        assert funding["timestamp"][at] == truth["time_us"]
        return float(funding["funding_rate"][at] - funding["funding_rate"][at - 1]) / 1e8

    assert step(planted, LINEAR_A) == pytest.approx(truth["size"], rel=0.02)
    assert abs(step(planted, LINEAR_B)) < 1e-5
    assert abs(step(bare, LINEAR_A)) < 1e-5


def test_late_arrivals_are_counted(planted: Market) -> None:
    truth = planted.truths["late_arrivals"]
    late = {}
    for kind, columns in planted.rows.items():
        latency = columns["received_at"] - columns["timestamp"]
        assert not ((latency > 500_000) & (latency < truth["min_delay_ms"] * 1000)).any()
        assert latency.max() < truth["max_delay_ms"] * 1000
        if n := int((latency > 5 * SECOND).sum()):
            late[kind] = n
    assert late == truth["rows"]
    assert late["trades"] > 30
    assert sum(i.get("trades", 0) for i in truth["by_instrument"]) == late["trades"]


# --- config --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"minutes": 9}, "minutes"),
        ({"minutes": 0, "truths": ()}, "minutes"),
        ({"truths": ("nothing",)}, "unknown truths"),
        ({"start": 1}, "start"),
        ({"seed": -1}, "seed"),
        ({"trades_per_second": 0.0}, "trades_per_second"),
        ({"book_levels": 0}, "book_levels"),
        ({"book_interval_ms": 150}, "book intervals"),
        ({"book_heartbeat_ms": 0}, "book intervals"),
        ({"lead_lag_ms": 450}, "lead_lag_ms"),
        ({"predictability": 1.0}, "predictability"),
        ({"volatility": 0.0}, "volatility"),
    ],
)
def test_a_bad_config_says_which_setting(change: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError, match=names):
        replace(tiny_market(), **change)


def test_one_minute_without_truths() -> None:
    market = market_of(MarketConfig(minutes=1, truths=(), trades_per_second=0.05, book_levels=5))
    assert len(market.of("orderbooks", LINEAR_A)["timestamp"]) >= 60


# --- folder --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A written market of ten minutes."""
    write(tiny_market(), tmp_path / "market")
    return tmp_path / "market"


def test_round_trip(tmp_path: Path) -> None:
    config = tiny_market(minutes=70)  # more than one file a kind
    shares: list[float] = []
    rows = write(config, tmp_path / "market", shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    reader = GeneratedReader(tmp_path / "market")
    items = list(reader.read())
    expected, truths = collect(generate(config))
    assert same(collect(iter(items))[0], expected)
    assert rows == {kind: len(columns["timestamp"]) for kind, columns in expected.items()}
    assert json.loads((tmp_path / "market/truths.json").read_text()) == truths
    assert {p.name for p in reader.paths} == {p.name for p in (tmp_path / "market").iterdir()}
    assert (tmp_path / "market/trades-0001.parquet") in reader.paths
    done = [item.done for item in items if isinstance(item, Progress)]
    assert done == sorted(done)
    assert done[-1] == sum(p.stat().st_size for p in reader.paths)
    marks = {(m.kind, m.exchange, m.market_type, m.symbol) for m in items if isinstance(m, Watermark)}
    assert marks == {(kind, *key) for kind in ("trades", "orderbooks") for key in KEYS}
    assert {m.timestamp for m in items if isinstance(m, Watermark)} == {config.end}


def test_same_config_same_bytes(folder: Path, tmp_path: Path) -> None:
    write(tiny_market(), tmp_path / "again")
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name
    assert {p.name for p in tmp_path.iterdir()} == {"market", "again"}, "no leftovers"


def test_a_finished_folder_is_used_again(folder: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    rows = write(tiny_market(), folder)
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    assert rows["trades"] > 10_000


def test_a_damaged_folder_is_made_again(folder: Path) -> None:
    broken = folder / "trades-0000.parquet"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-1])
    write(tiny_market(), folder)
    assert broken.read_bytes() == whole


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    write(tiny_market(), tmp_path)
    assert (tmp_path / "manifest.json").is_file()


def test_other_things_are_not_overwritten(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another config"):
        write(tiny_market(seed=8), folder)
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="something else"):
        write(tiny_market(), other)
    assert (other / "thesis.txt").exists()
    with pytest.raises(UserError, match="something else"):
        write(tiny_market(), other / "thesis.txt")


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tiny_market(), tmp_path / "market", fail)
    assert list(tmp_path.iterdir()) == []


def test_reader_names_the_missing_file(folder: Path) -> None:
    (folder / "tickers-0000.parquet").unlink()
    with pytest.raises(BadFileError, match=r"tickers-0000\.parquet: missing"):
        GeneratedReader(folder)


def test_reader_names_the_truncated_file(folder: Path) -> None:
    file = folder / "trades-0000.parquet"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BadFileError, match=r"trades-0000\.parquet: 1000 bytes.*truncated"):
        GeneratedReader(folder)


def test_reader_names_the_file_damaged_within(folder: Path) -> None:
    file = folder / "trades-0000.parquet"
    content = bytearray(file.read_bytes())
    content[-200:] = bytes(200)
    file.write_bytes(content)
    with pytest.raises(BadFileError, match=r"trades-0000\.parquet: cannot be read as Parquet"):
        list(GeneratedReader(folder).read())


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_reader_names_the_column_at_fault(folder: Path) -> None:
    file = folder / "tickers-0000.parquet"
    pq.write_table(pq.read_table(file).drop_columns("low_24h"), file)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    edit_manifest(folder, files=[{**f, "bytes": (folder / f["name"]).stat().st_size} for f in files])
    with pytest.raises(BadFileError, match=r"tickers-0000\.parquet \[low_24h\]"):
        list(GeneratedReader(folder).read())


def test_reader_counts_rows(folder: Path) -> None:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    edit_manifest(folder, files=[{**f, "rows": f["rows"] + 1} for f in files])
    with pytest.raises(BadFileError, match="rows, the manifest says"):
        list(GeneratedReader(folder).read())


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"format": "other"}, "format"),
        ({"version": 99}, "version"),
        ({"config": {}}, "config"),
        ({"files": [{"name": "../x.parquet", "kind": "trades", "rows": 1, "bytes": 1}]}, "files"),
        ({"files": [{"name": "x.parquet", "kind": "others", "rows": 1, "bytes": 1}]}, "files"),
        ({"files": None}, "files"),
    ],
)
def test_reader_checks_the_manifest(folder: Path, changes: dict[str, Any], field: str) -> None:
    edit_manifest(folder, **changes)
    with pytest.raises(BadFileError, match=rf"manifest\.json \[{field}\]"):
        GeneratedReader(folder)


def test_reader_wants_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="missing"):
        GeneratedReader(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(BadFileError, match="JSON"):
        GeneratedReader(tmp_path)


def test_command(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(generate_command)
    args = ["--out", str(tmp_path / "m"), "--minutes", "10", "--book-levels", "3", "--without", "outage"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    assert "outage" not in json.loads((tmp_path / "m/truths.json").read_text())
    config = json.loads((tmp_path / "m/manifest.json").read_text())["config"]
    assert (config["minutes"], config["book_levels"], config["seed"]) == (10, 3, 7)
    for wrong in (["--without", "x"], ["--start", "noon"], ["--minutes", "5"]):
        assert isinstance(CliRunner().invoke(app, [*args, *wrong]).exception, UserError)
