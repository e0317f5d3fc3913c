"""Minutes, the clock's fallback and event tokens equal their oracles, however the rows came in."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from python_udfs.settings import Settings
from tests.oracles import minutes, tokens
from tests.oracles.clock import HOUR_US, MINUTE_US, SECOND_US, Trade
from tests.oracles.features import BookRows
from tests.oracles.tokens import State
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
FALLBACK_US = 120 * SECOND_US
MODELS = "+live +feature_vector_with_fallback +event_tokens_decoded"
KEY = ("exchange", "market_type", "symbol")


@dataclass(frozen=True)
class Case:
    """contract value, tick (e8; 0: not listed), numbers of trades and of book states."""

    contract_value: float
    tick_e8: int
    trades: int
    states: int
    has_numeric_ids: bool = True


CASES: dict[Instrument, Case] = {
    ("alpha", "spot", "AAAUSDT"): Case(1, E8 // 100, 900, 1500),
    ("binance", "inverse", "BTCUSD_PERP"): Case(100, E8 // 10, 500, 600),
    ("beta", "linear", "BBBUSDT"): Case(1, E8 // 100, 300, 0),
    ("beta", "spot", "BBBUSDT"): Case(1, E8 // 100, 1, 200),
    ("beta", "spot", "AAAUSDT"): Case(1, E8 // 100, 0, 150),
    ("gamma", "spot", "O'NE/USD"): Case(1, 0, 200, 200, has_numeric_ids=False),
}


def make_trades(r: random.Random, case: Case) -> list[Trade]:
    """Ties, equal prices, late ones, silences of an hour; from 40 s before midnight."""
    t, price, out = START - 40 * SECOND_US, 100 * E8, []
    for i in range(case.trades):
        t += r.choice([0, 0, 1, 700, r.randrange(1, 900_000), r.randrange(1, 9 * SECOND_US)])
        t += HOUR_US if i == case.trades // 2 > 0 else 0
        price = max(E8, price + r.choice([-3, -1, 0, 0, 1, 3]) * E8 // 100)
        late = 7 * SECOND_US if r.random() < 0.03 else 0
        seq = i + 1 if case.has_numeric_ids else 0
        quantity = r.choice([1, r.randrange(1, 2 * E8), r.randrange(1, 1900 * E8)])
        out.append(Trade(t, seq, str(seq or f"x{i}"), quantity, t + late, price, r.choice(["buy", "sell"])))
    return out


def make_states(r: random.Random, case: Case) -> list[State]:
    """Ties, states that change nothing, stale ones, late ones, one-sided ones, silences."""
    t, out, bid, ask, sizes = START - 50 * SECOND_US, [], 100 * E8, 100 * E8 + E8 // 100, [E8, E8]
    for i in range(case.states):
        t += r.choice([0, 1000, r.randrange(1, 1_500_000), r.randrange(1, 12 * SECOND_US)])
        bid += r.choice([-1, 0, 0, 0, 1]) * E8 // 100
        ask = max(bid + E8 // 100, ask + r.choice([-1, 0, 0, 0, 1]) * E8 // 100)
        sizes = [r.choice([s, s, r.randrange(1, 40 * E8)]) for s in sizes]
        late = r.choice([0] * 15 + [400_000, 3 * SECOND_US, 11 * SECOND_US])
        empty = r.random() < 0.02
        state = (0 if empty else bid, ask, 0 if empty else sizes[0], sizes[1])
        out.append(State(t, i + 1, *state, t + late))
    return out


@dataclass
class Built:
    trades: dict[Instrument, list[Trade]]
    states: dict[Instrument, list[State]]
    complete_to: dict[Instrument, dict[str, int]]
    appended: dict[str, Any]
    rebuilt: dict[str, Any]
    days_replaced: dict[str, Any]


def _insert(built: Built, low: int, high: int) -> None:
    """What became known in [low, high), and how far the feeds are complete then."""
    for instrument in CASES:
        insert_trades([t for t in built.trades[instrument] if low <= t.known_at < high], instrument)
        insert_books([s for s in built.states[instrument] if low <= s.known_at < high], instrument)
        for kind, complete_to in built.complete_to[instrument].items():
            insert_watermark(instrument, kind, min(complete_to, high))


@pytest.fixture(scope="module")
def built(module_store: Settings) -> Built:
    r = random.Random(3)
    told = Built({}, {}, {}, {}, {}, {})
    for instrument, case in CASES.items():
        told.trades[instrument] = make_trades(r, case)
        told.states[instrument] = make_states(r, case)
        last = max(
            [
                0,
                *(t.known_at for t in told.trades[instrument]),
                *(s.known_at for s in told.states[instrument]),
            ]
        )
        told.complete_to[instrument] = {"trades": last + 2 * MINUTE_US, "orderbooks": last + MINUTE_US}
    # a feed without a watermark closes its minutes and events by later rows alone; one that never was is not waited for
    del told.complete_to["beta", "linear", "BBBUSDT"]["orderbooks"]
    del told.complete_to["beta", "spot", "BBBUSDT"]["trades"]
    told.complete_to["gamma", "spot", "O'NE/USD"] = {}
    cut = START + 11 * MINUTE_US + 1234
    _insert(told, 0, cut)
    dbt("seed")
    execute("truncate table bucket_defaults", layer="features")
    execute(
        "insert into bucket_defaults values",
        [("*", "*", "*", "volume", "hour", 30, 60, 500, 500, 500, 50, 20, 50, 24, 10**6, "")],
        layer="features",
    )
    dbt("run", select=MODELS)
    _insert(told, cut, 2**62)
    tables = ("event_tokens", "minute_bars", "feature_vector_with_fallback")
    dbt("run", select=MODELS)
    told.appended = {t: table_hash(t) for t in tables}
    dbt("run", select=MODELS, start="2026-01-04", end="2026-01-05")
    told.days_replaced = {t: table_hash(t) for t in tables}
    dbt("run", select=MODELS, full_refresh=True)
    told.rebuilt = {t: table_hash(t) for t in tables}
    return told


def test_the_same_bits_however_it_was_built(built: Built) -> None:
    assert built.appended == built.rebuilt
    assert built.days_replaced == built.rebuilt


def _minutes(built: Built, instrument: Instrument) -> dict[int, minutes.Row]:
    columns = np.array(built.states[instrument], dtype=np.int64).reshape(-1, 7).T
    books = BookRows(
        known_at=columns[6],
        timestamp=columns[0],
        last_update_id=columns[1],
        bid_price=columns[2] / E8,
        bid_quantity=columns[4] / E8,
        ask_price=columns[3] / E8,
        ask_quantity=columns[5] / E8,
    )
    complete_to = built.complete_to[instrument]
    return minutes.minute_bars(
        built.trades[instrument],
        books,
        trades_complete_to=complete_to.get("trades", 0),
        book_complete_to=complete_to.get("orderbooks", 0),
        market_type=instrument[1],
        contract_value=CASES[instrument].contract_value,
    )


def _where(instrument: Instrument) -> dict[str, str]:
    return dict(zip(("x", "m", "y"), instrument, strict=True))


OF = "exchange = %(x)s and market_type = %(m)s and symbol = %(y)s"


def _same(found: float | None, expected: float, name: str) -> bool:
    if found is None or math.isnan(expected):
        return found is None and math.isnan(expected)
    # means of numbers near zero: cut to 12 decimals each; the gap is a difference of near-equal prices
    small = {"tob_imbalance_mean": 1e-11, "spread_bps_mean": 1e-10, "microprice_gap_bps": 1e-7}
    return math.isclose(found, expected, rel_tol=1e-9, abs_tol=small.get(name, 1e-15))


@pytest.mark.parametrize("instrument", CASES, ids="-".join)
def test_minutes(built: Built, instrument: Instrument) -> None:
    expected = _minutes(built, instrument)
    found = {
        r.pop("start"): {k.removeprefix("minute_"): v for k, v in r.items() if k.startswith("minute_")}
        for r in query(
            f"select toUnixTimestamp(minute_start) * 1000000 as start, * except minute_start from minute_bars where {OF}",
            **_where(instrument),
        )
    }
    assert found.keys() == expected.keys()
    wrong = [
        (start, name, value, expected[start].get(name, math.nan))
        for start, row in found.items()
        for name, value in row.items()
        if not _same(value, expected[start].get(name, math.nan), name)
    ]
    assert not wrong, wrong[:5]
    assert {name for row in expected.values() for name in row} <= set(next(iter(found.values())))


def test_minutes_say_what_they_do_not_know(built: Built) -> None:
    rows = query(
        "select countIf(minute_trade_count is null) as t, countIf(minute_book_update_count is null) as b from minute_bars"
    )
    assert rows[0]["t"] > 0
    assert rows[0]["b"] > 0


@pytest.mark.parametrize("instrument", CASES, ids="-".join)
def test_the_fallback_stands_in_where_the_clock_stalls(built: Built, instrument: Instrument) -> None:
    ends = [
        r["e"]
        for r in query(
            f"select {us('bucket_ts_end')} as e from feature_vector_v2 where {OF}", **_where(instrument)
        )
    ]
    stalled = {
        start + MINUTE_US: row
        for start, row in _minutes(built, instrument).items()
        if not any(start + MINUTE_US - FALLBACK_US <= e <= start + MINUTE_US for e in ends)
    }
    rows = query(
        f"select clock, {us('bucket_ts_end')} as e, bucket_id, volume, mid_close, duration_s, vpin "
        f"from feature_vector_with_fallback where {OF} order by e",
        **_where(instrument),
    )
    assert sorted(r["e"] for r in rows if r["clock"] == "bucket") == sorted(ends)
    found = [r for r in rows if r["clock"] == "minute"]
    assert [r["e"] for r in found] == sorted(stalled)
    for r in found:
        row = stalled[r["e"]]
        assert r["bucket_id"] == (r["e"] - MINUTE_US) // SECOND_US * 100_000 + 99_999
        assert _same(r["volume"], row.get("volume", math.nan), "volume")
        assert _same(r["mid_close"], row.get("mid_close", math.nan), "mid_close")
        assert (r["duration_s"], r["vpin"]) == (60, None)


def test_the_clock_did_stall(built: Built) -> None:
    clocks = Counter(r["clock"] for r in query("select clock from feature_vector_with_fallback"))
    assert clocks["minute"] > 10
    assert clocks["bucket"] > 100


@pytest.mark.parametrize("instrument", CASES, ids="-".join)
def test_tokens(built: Built, instrument: Instrument) -> None:
    case, complete_to = CASES[instrument], built.complete_to[instrument]
    expected = tokens.events(
        built.trades[instrument],
        built.states[instrument],
        trades_complete_to=complete_to.get("trades"),
        book_complete_to=complete_to.get("orderbooks"),
        tick_e8=case.tick_e8,
        contract_value=case.contract_value,
        market_type=instrument[1],
    )
    found = [
        tokens.Event(*(r.values()))
        for r in query(
            f"select {us('known_at')} as known_at, is_book, {us('timestamp')} as t, event_seq, event_text_id, is_ask, "
            f"event_type, size_class, distance_class, interval_class from event_tokens_decoded where {OF} "
            "order by known_at, is_book, t, event_seq, event_text_id, is_ask",
            **_where(instrument),
        )
    ]
    assert found == expected


def test_every_class_but_the_rarest_was_met(built: Built) -> None:
    row = query(
        "select uniqExact(event_type) as types, uniqExact(size_class) as sizes, uniqExact(distance_class) as distances, "
        "uniqExact(interval_class) as intervals from event_tokens_decoded"
    )[0]
    assert row == {"types": 12, "sizes": 8, "distances": 8, "intervals": 7}


def test_a_token_decodes_to_what_encodes_to_it(built: Built) -> None:
    """By the seed alone: class x weight over the fields, no gap, no token twice, classes side by side."""
    seed = query(
        "select field, class, lower_bound, upper_bound, weight from event_vocabulary order by weight desc, field, class"
    )
    fields = {f: [r for r in seed if r["field"] == f] for f in ("type", "size", "distance", "interval")}
    size = 1
    for rows in reversed(fields.values()):
        assert {r["weight"] for r in rows} == {size}
        size *= len(rows)
        for before, after in itertools.pairwise(rows):
            bounded = [before["upper_bound"], after["lower_bound"]]
            assert bounded[0] == bounded[1] or (rows is fields["distance"] and before["class"] == 0)
    for r in query(
        "select token, type_class as type, size_class as size, distance_class as distance, interval_class as interval from event_token_vocabulary"
    ):
        assert r["token"] == sum(r[f] * rows[0]["weight"] for f, rows in fields.items())
    assert query("select count() as n, max(token) as last from event_token_vocabulary") == [
        {"n": size, "last": size - 1}
    ]
    assert (
        query("select count() as n from event_tokens")[0]["n"]
        == query("select count() as n from event_tokens_decoded")[0]["n"]
    )
