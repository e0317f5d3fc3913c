"""The oracles against numbers worked out by hand, third-party packages, and rules that must always hold."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import clock, features, libraries
from tests.oracles.clock import DAY_US, HOUR_US, SECOND_US, Bucket, Config, Mode, Trade

H = 1_700_002_800 * SECOND_US  # 2023-11-14 23:00:00, the start of an hour; its day starts 23 hours before
NaN = math.nan


def us(seconds: float) -> int:
    """Seconds after H, in µs since the epoch."""
    return H + round(seconds * SECOND_US)


def trade(
    seconds: float, quantity: float, seq: int, *, late_us: int = 0, price: float = 100, side: str = "buy"
) -> Trade:
    at = us(seconds)
    return Trade(at, seq, str(seq), round(quantity * 10**8), at + late_us, round(price * 10**8), side)


def tape(*rows: tuple[float, float]) -> list[Trade]:
    """Trades (seconds after H, quantity), numbered from 1."""
    return [trade(seconds, quantity, i) for i, (seconds, quantity) in enumerate(rows, 1)]


def config(mode: Mode = "volume", **sizes: int) -> Config:
    """q_bucket 10, t_max 60 s, t_target 10 s, 3 trades, n_min 5, 2 updates."""
    base = Config(mode, 60 * SECOND_US, 10 * 10**8, 10 * SECOND_US, 3, 5, 2)
    return replace(base, **sizes)  # type: ignore[arg-type]


def short(buckets: Iterable[Bucket]) -> list[tuple[float, float, str, int, str, str]]:
    """(start, end in seconds after H, cut, trades, first id, last id)."""
    return [
        (
            (b.bucket_ts_start - H) / SECOND_US,
            (b.bucket_ts_end - H) / SECOND_US,
            b.cut_trigger,
            b.trade_count,
            b.first_trade_id,
            b.last_trade_id,
        )
        for b in buckets
    ]


def close(actual: Sequence[float] | features.Floats, expected: Sequence[float]) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=0, equal_nan=True)


# --- clock: worked by hand ---


def test_one_trade_is_published_only_when_the_watermark_has_passed_its_end() -> None:
    trades = tape((5, 1))
    assert clock.buckets(trades, config()) == []
    assert clock.buckets(trades, config(), watermark=us(65)) == []
    (bucket,) = clock.buckets(trades, config(), watermark=us(65) + 1)
    assert bucket == Bucket(
        bucket_id=170_000_280_000_000,
        bucket_ts_start=us(5),
        bucket_ts_end=us(65),
        cut_trigger="time",
        trade_count=1,
        volume_e8=10**8,
        first_trade_id="1",
        last_trade_id="1",
        sequence=0,
        anchor=H,
        first_index=0,
    )


def test_no_trades_no_buckets() -> None:
    assert clock.buckets([], config(), watermark=us(9), book_times=[us(1)]) == []


def test_volume_cut_when_q_is_reached_exactly_and_when_it_is_passed() -> None:
    rows = clock.buckets(tape((0, 4), (1, 6), (2, 9.99999999), (3, 5), (4, 1)), config())
    assert short(rows) == [(0, 1, "volume", 2, "1", "2"), (2, 3, "volume", 2, "3", "4")]
    assert [b.volume_e8 for b in rows] == [10 * 10**8, 1_499_999_999]
    assert [b.bucket_id - rows[0].bucket_id for b in rows] == [0, 1]


def test_last_bucket_stays_hidden_though_its_volume_is_reached() -> None:
    trades = tape((0, 10), (1, 10))
    assert short(clock.buckets(trades, config())) == [(0, 0, "volume", 1, "1", "1")]
    assert len(clock.buckets(trades, config(), watermark=us(1))) == 1
    assert len(clock.buckets(trades, config(), watermark=us(1) + 1)) == 2


def test_ties_in_time_across_a_bucket_boundary_follow_the_trade_number() -> None:
    trades = [trade(1, 6, seq) for seq in (10, 9, 11)]
    rows = clock.buckets(trades, config(), watermark=us(100))
    assert short(rows) == [(1, 1, "volume", 2, "9", "10"), (1, 61, "time", 1, "11", "11")]


def test_ties_without_a_numeric_id_follow_the_text() -> None:
    trades = [Trade(H, 0, text, 6 * 10**8, H) for text in ("b", "a10", "a9")]
    assert [t.trade_id for t in clock.on_time(trades)] == ["a10", "a9", "b"]


def test_a_trade_at_the_deadline_is_out_one_microsecond_before_is_in() -> None:
    trades = [*tape((0, 1), (59.999999, 1)), trade(60, 50, 3), trade(61, 1, 4)]
    assert short(clock.buckets(trades, config())) == [
        (0, 60, "time", 2, "1", "2"),
        (60, 60, "volume", 1, "3", "3"),
    ]


def test_anchor_cut_and_a_trade_exactly_at_the_boundary() -> None:
    rows = clock.buckets(tape((3599, 1), (3600, 1), (3601, 9), (3602, 1)), config())
    assert short(rows) == [(3599, 3600, "anchor", 1, "1", "1"), (3600, 3601, "volume", 2, "2", "3")]
    assert [b.bucket_id for b in rows] == [170_000_280_000_000, 170_000_640_000_000]
    assert [b.anchor for b in rows] == [H, H + HOUR_US]
    assert [b.sequence for b in rows] == [0, 0]


def test_time_wins_over_the_anchor_at_the_same_instant() -> None:
    same = clock.buckets(tape((3540, 1), (3600, 1)), config())
    after = clock.buckets(tape((3540.000001, 1), (3600, 1)), config())
    assert short(same) == [(3540, 3600, "time", 1, "1", "1")]
    assert short(after) == [(3540.000001, 3600, "anchor", 1, "1", "1")]


def test_day_anchor() -> None:
    rows = clock.buckets(
        tape((3599, 1), (3600, 1)), config(), anchor_us=DAY_US, watermark=us(3661)
    )  # H is 23:00: the day ends where the hour does
    assert short(rows) == [(3599, 3600, "anchor", 1, "1", "1"), (3600, 3660, "time", 1, "2", "2")]
    assert [b.bucket_id for b in rows] == [169_992_000_000_000, 170_000_640_000_000]


def test_one_huge_trade_is_never_split() -> None:
    rows = clock.buckets(tape((0, 4), (1, 1000), (2, 1000), (3, 1)), config())
    assert short(rows) == [(0, 1, "volume", 2, "1", "2"), (2, 2, "volume", 1, "3", "3")]
    assert rows[0].volume_e8 == 1004 * 10**8


def test_hours_without_trades_leave_no_buckets() -> None:
    rows = clock.buckets(tape((10, 1), (3 * 3600 + 5, 1)), config(), watermark=us(4 * 3600))
    assert short(rows) == [(10, 70, "time", 1, "1", "1"), (10805, 10865, "time", 1, "2", "2")]


def test_count_cut() -> None:
    trades = tape((0, 1), (1, 1), (1, 1), (1, 1), (61, 1), (62, 1), (63, 1), (64, 1))
    assert short(clock.buckets(trades, config("count"))) == [
        (0, 1, "count", 3, "1", "3"),
        (1, 61, "time", 1, "4", "4"),
        (61, 63, "count", 3, "5", "7"),
    ]


@pytest.mark.parametrize(
    ("rows", "cut_at"),
    [
        # 8 of 10 volume, 8 of 10 s, 4 of 5 trades: each exactly 0.8
        ([(0, 2), (1, 2), (2, 2), (8, 2), (9, 1)], 8),
        # volume short by 1e-8 until the fifth
        ([(0, 2), (1, 2), (2, 2), (8, 1.99999999), (9, 1)], 9),
        # elapsed short by 1 µs until the fifth
        ([(0, 2), (1, 2), (2, 2), (7.999999, 2), (9, 1)], 9),
        # only three trades until the fourth
        ([(0, 5), (1, 5), (9, 5), (20, 1)], 20),
    ],
)
def test_hybrid_cut_needs_four_fifths_of_all_three(rows: list[tuple[float, float]], cut_at: float) -> None:
    (bucket,) = clock.buckets([*tape(*rows), trade(30, 1, 99)], config("hybrid"))
    assert bucket.cut_trigger == "hybrid"
    assert bucket.bucket_ts_end == us(cut_at)


def test_event_cut_takes_trades_at_the_same_instant_and_not_the_update_at_the_start() -> None:
    trades = tape((0, 1), (1, 1), (2, 1), (2, 1), (2.000001, 1))
    # 0 is not after the start; 1 counts once; 2 is the second
    rows = clock.buckets(trades, config("event"), book_times=[us(2), us(0), us(1), us(1), us(3)])
    assert short(rows) == [(0, 2, "event", 4, "1", "4")]


def test_event_cut_between_trades_and_after_the_last() -> None:
    trades = tape((0, 1), (10, 1))
    books = [us(1), us(2), us(3), us(11), us(12), us(13)]
    rows = clock.buckets(trades, config("event"), book_times=books, watermark=us(12) + 1)
    assert short(rows) == [(0, 2, "event", 1, "1", "1"), (10, 12, "event", 1, "2", "2")]
    assert len(clock.buckets(trades, config("event"), book_times=books, watermark=us(12))) == 1


def test_event_at_the_deadline_or_past_the_anchor_does_not_cut() -> None:
    late = clock.buckets(tape((0, 1), (90, 1)), config("event"), book_times=[us(1), us(60)])
    assert short(late) == [(0, 60, "time", 1, "1", "1")]
    before = clock.buckets(tape((0, 1), (90, 1)), config("event"), book_times=[us(1), us(60) - 1])
    assert short(before) == [(0, 59.999999, "event", 1, "1", "1")]
    # the update at 3600 is the next anchor's: it neither cuts this bucket nor is lost for the next
    rows = clock.buckets(
        tape((3590, 1), (3599.5, 1), (3600.5, 1), (3606, 1)),
        config("event"),
        book_times=[us(3595), us(3600), us(3601), us(3602)],
    )
    assert short(rows) == [(3590, 3600, "anchor", 2, "1", "2"), (3600.5, 3602, "event", 1, "3", "3")]


def test_late_trades_and_duplicates_are_not_in_the_clock() -> None:
    trades = [
        trade(0, 4, 1),
        trade(1, 100, 2, late_us=1),
        trade(2, 4, 3),
        trade(2, 4, 3),
        trade(3, 4, 4),
        trade(4, 1, 5),
    ]
    assert short(clock.buckets(trades, config())) == [(0, 3, "volume", 3, "1", "4")]
    assert clock.late_count(trades) == 1
    # a late trade closes nothing
    assert clock.buckets([trade(0, 10, 1), trade(1, 1, 2, late_us=1)], config()) == []


def test_each_anchor_has_its_own_rule() -> None:
    trades = tape((0, 10), (1, 1), (3600, 10), (3601, 10), (3602, 10), (3603, 1))
    rules = {H: config(), H + HOUR_US: config("count")}
    expected = [
        (0, 0, "volume", 1, "1", "1"),
        (1, 61, "time", 1, "2", "2"),
        (3600, 3602, "count", 3, "3", "5"),
    ]
    assert short(clock.buckets(trades, rules)) == expected
    assert short(clock.buckets(trades, lambda anchor: rules[anchor])) == expected


def test_members_are_the_bucket_s_trades() -> None:
    trades = tape((0, 4), (1, 6), (2, 3), (3, 7), (4, 1))
    ordered = clock.on_time(reversed(trades))
    assert [clock.members(b, ordered) for b in clock.buckets(trades, config())] == [trades[:2], trades[2:4]]


@pytest.mark.parametrize("broken", [{"q_bucket_e8": 0}, {"t_max_us": 0}, {"mode": "ticks"}])
def test_a_config_that_cuts_nothing_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"positive|unknown mode"):
        replace(config(), **broken)


# --- calibration ---

DEFAULTS = clock.Defaults(
    q_bucket_e8=7 * 10**8,
    q_min_e8=10**8,
    q_max_e8=100 * 10**8,
    t_target_us=30 * SECOND_US,
    lookback_hours=1,
    min_minutes=4,
)


def test_calibration_takes_the_upper_middle_minute_of_those_with_a_trade() -> None:
    # minutes of the hour before H: 0 -> 6, 1 -> 3 + 9, 5 -> 30, 59 -> 60; sorted 6 12 30 60, middle index 2
    before = [(-3600.0, 6.0), (-3540.0, 3.0), (-3480.000001, 9.0), (-3300.0, 30.0), (-0.000001, 60.0)]
    outside = [trade(-3600.000001, 1000, 90), trade(0, 1000, 91), trade(-3000, 1000, 92, late_us=1)]
    got = clock.calibrate([*tape(*before), *outside], H, DEFAULTS)
    assert got == clock.Calibration(Fraction(15), 15 * 10**8, "calibrated", 4, Fraction(1, 2))


def test_calibration_is_held_within_its_limits_and_rounds_toward_zero() -> None:
    def with_minutes(volume: float) -> clock.Calibration:
        return clock.calibrate(tape(*((-60.0 * m, volume) for m in range(1, 5))), H, DEFAULTS)

    assert with_minutes(1).q_bucket_e8 == 10**8  # 30 / 60 = 0.5 -> q_min
    assert with_minutes(1000).q_bucket_e8 == 100 * 10**8  # 500 -> q_max
    odd = with_minutes(2.00000001)
    assert odd.q_bucket == Fraction(200_000_001, 2 * 10**8)
    assert odd.q_bucket_e8 == 100_000_000


def test_too_few_minutes_mean_the_default() -> None:
    got = clock.calibrate(tape((-60, 6), (-120, 6), (-180, 12)), H, DEFAULTS)
    assert got == clock.Calibration(Fraction(7), 7 * 10**8, "default", 3, Fraction(1, 10))
    empty = clock.calibrate([], H, replace(DEFAULTS, min_minutes=0))
    assert (empty.source, empty.vps_p50) == ("default", None)


# --- features: worked by hand ---


def flow_of(market_type: str, contract_value: float = 1) -> dict[str, list[float]]:
    trades = [
        trade(0, 2, 1, price=100, side="buy"),
        trade(1, 3, 2, price=104, side="sell"),
        trade(4, 5, 3, price=98, side="buy"),
        trade(5, 10, 4, price=99, side="sell"),
        trade(6, 1, 5),
    ]
    rows = clock.buckets(trades, config())
    assert short(rows) == [(0, 4, "volume", 3, "1", "3"), (5, 5, "volume", 1, "4", "4")]
    flow = features.trade_flow(
        rows, clock.on_time(trades), market_type=market_type, contract_value=contract_value
    )
    return {name: column.tolist() for name, column in flow.items()}


def test_trade_flow() -> None:
    flow = flow_of("spot")
    assert flow["trade_count"] == [3, 1]
    assert (flow["buy_count"], flow["sell_count"]) == ([2, 0], [1, 1])
    assert (flow["volume"], flow["buy_volume"], flow["sell_volume"]) == ([10, 10], [7, 0], [3, 10])
    assert flow["flow_imbalance"] == [0.4, -1]
    assert flow["vwap"] == [100.2, 99]  # (200 + 312 + 490) / 10
    assert flow["notional"] == [1002, 990]
    assert [flow[f"{n}_price"] for n in ("open", "high", "low", "close")] == [
        [100, 99],
        [104, 99],
        [98, 99],
        [98, 99],
    ]
    assert (flow["mean_trade_size"], flow["max_trade_size"]) == ([10 / 3, 10], [5, 10])
    assert flow["duration_s"] == [4, 0]
    assert flow["trades_per_second"][0] == 0.75
    assert math.isnan(flow["trades_per_second"][1])


def test_notional_by_market_type() -> None:
    close(flow_of("linear", 0.01)["notional"], [10.02, 9.9])
    assert flow_of("inverse", 100)["notional"] == [1000, 1000]
    with pytest.raises(ValueError, match="option"):
        flow_of("option")


def test_trade_flow_refuses_a_trade_without_a_side_and_takes_no_buckets() -> None:
    trades = [trade(0, 10, 1, side=""), trade(1, 1, 2)]
    with pytest.raises(ValueError, match="neither buy nor sell"):
        features.trade_flow(clock.buckets(trades, config()), trades, market_type="spot")
    assert features.trade_flow([], [], market_type="spot")["vwap"].shape == (0,)


def book(*rows: tuple[float, float, int, float, float, float, float]) -> features.BookRows:
    """Rows (known_at, timestamp in seconds after H, id, bid, bid quantity, ask, ask quantity)."""
    columns = list(zip(*rows, strict=True)) or [()] * 7
    times = [np.array([us(float(s)) for s in column], dtype=np.int64) for column in columns[:2]]
    levels = [np.array(column, dtype=np.float64) for column in columns[3:]]
    return features.BookRows(times[0], times[1], np.array(columns[2], dtype=np.int64), *levels)


def test_states_in_knowledge_order_without_stale_and_too_late_rows() -> None:
    states = features.book_states(
        book(
            (3, 2, 5, 100, 1, 101, 1),
            (1, 1, 3, 100, 1, 101, 1),
            (4, 1.5, 9, 100, 1, 101, 1),  # older event time than the one known at 3
            (5, 2, 4, 100, 1, 101, 1),  # same event time, smaller id
            (6, 2, 5, 100, 1, 101, 1),  # equal to one seen: kept
            (20, 9.999999, 7, 100, 1, 101, 1),  # 10.000001 s late
            (20, 10, 6, 100, 1, 101, 1),  # 10 s late
        )
    )
    assert ((states.rows.known_at - H) / SECOND_US).tolist() == [1, 3, 6, 20]
    assert states.rows.last_update_id.tolist() == [3, 5, 5, 6]


def test_book_measures_and_an_empty_side() -> None:
    states = features.book_states(
        book((1, 1, 1, 99, 3, 101, 1), (2, 2, 2, 99, 3, 0, 0), (3, 3, 3, 0, 0, 0, 0))
    )
    assert states.valid.tolist() == [True, False, False]
    close(states.mid, [100, NaN, NaN])
    close(states.spread_bps, [200, NaN, NaN])
    close(states.tob_imbalance, [0.5, NaN, NaN])
    close(states.microprice, [100.5, NaN, NaN])  # (101 * 3 + 99 * 1) / 4
    close(states.ofi, [NaN, NaN, NaN])


def test_ofi_increments() -> None:
    states = features.book_states(
        book(
            (0, 0, 1, 100, 5, 101, 4),
            (1, 1, 2, 100, 8, 101, 4),  # bid grows by 3
            (2, 2, 3, 100.5, 2, 101, 4),  # bid up: +2
            (3, 3, 4, 100, 7, 101, 4),  # bid down: -2
            (4, 4, 5, 100, 7, 101, 1),  # ask shrinks by 3: +3
            (5, 5, 6, 100, 7, 100.8, 6),  # ask down: -6
            (6, 6, 7, 100, 7, 101, 9),  # ask up: +6
            (7, 7, 8, 100.2, 1, 100.9, 2),  # bid up +1, ask down -2
            (8, 8, 9, 100.2, 1, 0, 0),  # no ask
            (9, 9, 10, 100.2, 1, 100.9, 2),  # after an invalid one
            (19, 19, 11, 100.2, 2, 100.9, 2),  # 10 s later: still compared
            (29.000001, 29, 12, 100.2, 9, 100.9, 2),  # longer
        )
    )
    close(states.ofi, [NaN, 3, 2, -2, 3, -6, 6, -1, NaN, NaN, 1, NaN])


def top(
    buckets: Sequence[tuple[float, float]], *rows: tuple[float, float, int, float, float, float, float]
) -> dict[str, list[float]]:
    starts = np.array([us(s) for s, _ in buckets], dtype=np.int64)
    ends = np.array([us(e) for _, e in buckets], dtype=np.int64)
    columns = features.top_of_book(starts, ends, features.book_states(book(*rows)))
    return {name: column.tolist() for name, column in columns.items()}


def test_top_of_book_takes_the_last_state_known_by_the_end() -> None:
    got = top(
        [(10, 20), (20, 20), (25, 40), (50, 60)],
        (9, 9, 1, 99, 1, 101, 1),  # before the first bucket: nobody's update
        (10, 9.5, 2, 99, 1, 103, 3),  # mid 101, at the start: the first's
        (20, 19.5, 3, 100, 6, 104, 2),  # mid 102, at the end of two: the first's
        (22, 22, 4, 100, 1, 106, 1),  # mid 103, between buckets: nobody's
        (40.000001, 40, 5, 100, 1, 108, 1),  # after the third's end
    )
    close(got["mid_close"], [102, 102, NaN, NaN])  # 18 s and 20 s old at the ends 40 and 60
    close(got["book_age_ms"], [500, 500, NaN, NaN])
    close(got["spread_bps_close"], [4 / 102 * 1e4, 4 / 102 * 1e4, NaN, NaN])
    close(got["tob_imbalance_close"], [0.5, 0.5, NaN, NaN])
    close(got["microprice_close"], [103, 103, NaN, NaN])  # (104 * 6 + 100 * 2) / 8
    close(got["book_update_count"], [2, 0, 0, 0])
    close(got["mid_mean"], [101.5, NaN, NaN, NaN])
    close(got["spread_bps_mean"], [(4 / 101 + 4 / 102) / 2 * 1e4, NaN, NaN, NaN])
    close(got["tob_imbalance_mean"], [0, NaN, NaN, NaN])  # -0.5 and 0.5
    # (10) bid same: 1 - 1, ask up: +1 -> 1; (20) bid up: +6, ask up: +3 -> 9, known 10 s after
    close(got["ofi"], [10, 0, NaN, NaN])


def test_book_age_limit_is_inclusive_and_an_invalid_last_state_hides_older_ones() -> None:
    rows = [(1.0, 0.0, 1, 99.0, 1.0, 101.0, 1.0)]
    close(top([(0, 10)], *rows)["mid_close"], [100])
    close(top([(0, 10.000001)], *rows)["mid_close"], [NaN])
    hidden = top([(0, 10)], *rows, (2, 2, 2, 99, 1, 0, 0))
    close(hidden["mid_close"], [NaN])
    close(hidden["book_update_count"], [2])
    close(hidden["mid_mean"], [100])
    close(hidden["ofi"], [NaN])


def test_top_of_book_without_any_book() -> None:
    got = top([(0, 10)])
    close(got["book_update_count"], [0])
    close([got[name][0] for name in ("mid_close", "mid_mean", "ofi", "book_age_ms")], [NaN] * 4)


def test_rolling_with_a_hole_in_the_book() -> None:
    got = features.rolling(
        mid_close=np.array([100, 102, 101, NaN, 104, 105.0]),
        buy_volume=np.array([3, 5, 1, 2, 4, 2.0]),
        sell_volume=np.array([1, 1, 3, 2, 1, 1.0]),
        notional=np.array([10, 20, 30, 0, 50, 60.0]),
        window=3,
        min_points=2,
    )
    up, down, last = math.log(1.02), math.log(101 / 102), math.log(105 / 104)
    close(got["mid_change"], [NaN, 2, -1, NaN, NaN, 1])
    close(got["mid_return"], [NaN, up, down, NaN, NaN, last])
    close(got["kyle_lambda"], [NaN, NaN, 0.5, 0.5, NaN, NaN])  # (4, 2) and (-2, -1): 3 / 6
    close(got["amihud"], [NaN, up / 20, -down / 30, NaN, NaN, last / 60])
    close(got["vpin"], [NaN, 6 / 10, 8 / 14, 6 / 14, 5 / 13, 4 / 12])
    close(got["rv"], [NaN, NaN, up**2 + down**2, up**2 + down**2, NaN, NaN])
    close(got["bv"], [NaN] * 6)
    close(got["jump"], [NaN] * 6)


def test_bipower_reaches_one_return_behind_the_window() -> None:
    a, c = math.log(1.1), math.log(0.9)
    ones = np.ones(5)
    got = features.rolling(np.array([100, 110, 121, 108.9, 98.01]), ones, ones, ones, window=3, min_points=2)
    expected = [NaN, NaN, NaN, a * a + a * -c, a * a + a * -c + c * c]  # the last: pairs (2,1), (3,2), (4,3)
    np.testing.assert_allclose(got["bv"], np.array(expected) * math.pi / 2, rtol=1e-12)
    np.testing.assert_allclose(
        got["rv"], [NaN, NaN, 2 * a * a, 2 * a * a + c * c, a * a + 2 * c * c], rtol=1e-12
    )
    close(got["jump"], [NaN, NaN, NaN, 0, 0])
    close(got["kyle_lambda"], [NaN] * 5)  # signed volume does not vary


def test_a_lone_jump_is_all_jump() -> None:
    ones = np.ones(4)
    got = features.rolling(np.array([100, 100, 110, 110.0]), ones, ones, ones, window=3, min_points=2)
    close(got["bv"], [NaN, NaN, NaN, 0])
    close(got["jump"], [NaN, NaN, NaN, math.log(1.1) ** 2])


def test_rolling_needs_ten_points_and_looks_back_fifty() -> None:
    n = 61
    mid = 100 + np.arange(n, dtype=np.float64)
    buy = np.where(np.arange(n) == 10, 9.0, 1.0)
    got = features.rolling(mid, buy, np.zeros(n), np.ones(n))
    firsts = {name: int(np.flatnonzero(~np.isnan(got[name]))[0]) for name in got}
    assert firsts == {
        "mid_change": 1,
        "mid_return": 1,
        "kyle_lambda": 10,
        "amihud": 1,
        "vpin": 9,
        "rv": 10,
        "bv": 11,
        "jump": 11,
    }
    # bucket 10, the only one that differs, is in the windows of 10 to 59
    assert np.flatnonzero(~np.isnan(got["kyle_lambda"])).tolist() == list(range(10, 60))
    close([got["rv"][60]], [math.fsum(math.log(mid[t] / mid[t - 1]) ** 2 for t in range(11, 61))])


def test_labels_in_buckets() -> None:
    ends = np.array([us(s) for s in (0, 2, 2, 5)], dtype=np.int64)
    got = features.labels(
        ends,
        np.array([100, 101, 102, 103.0]),
        np.full(4, NaN),
        features.book_states(book()),
        window=3,
        min_points=2,
    )
    past = [NaN, 0.01 / 2, 1 / 101, 1 / 102 / 3]
    np.testing.assert_allclose(got["label_ret_ps_1"], [*past[1:], NaN], rtol=1e-12)
    np.testing.assert_allclose(got["past_ret_ps_1"], past, rtol=1e-12)
    assert got["label_known_at_1"][:3].tolist() == [us(2), us(2), us(5)]
    assert math.isnan(got["label_known_at_1"][3])
    two = 0.5 * (1 / 101 - 0.005) / 2
    mean = sum(past[1:]) / 3
    three = 0.5 * math.sqrt(sum((x - mean) ** 2 for x in past[1:]) / 3)
    np.testing.assert_allclose(got["threshold_1"], [NaN, NaN, two, three], rtol=1e-12)
    close(got["label_cls_1"], [NaN, NaN, 1, NaN])
    np.testing.assert_allclose(got["label_ret_ps_3"], [0.03 / 5, NaN, NaN, NaN], rtol=1e-12)
    close(got["label_ret_ps_5"], [NaN] * 4)


def test_label_classes() -> None:
    ends = np.array([us(s) for s in range(6)], dtype=np.int64)
    mid = np.array([100, 110, 99, 99, 99.99, 89.991])  # returns 0.1, -0.1, 0, 0.01, -0.1
    empty = features.book_states(book())
    got = features.labels(ends, mid, np.full(6, NaN), empty, window=2, min_points=2)
    # from bucket 2: half the deviation of (0.1, -0.1) = 0.05, (-0.1, 0) = 0.025, (0, 0.01) = 0.0025
    np.testing.assert_allclose(got["threshold_1"][2:5], [0.05, 0.025, 0.0025], rtol=1e-9)
    close(got["label_cls_1"], [NaN, NaN, 0, 0, -1, NaN])


def clock_labels(
    *rows: tuple[float, float, int, float, float, float, float], watermark: int | None = None
) -> list[float]:
    states = features.book_states(book(*rows))
    ends, mid = np.array([us(0)], dtype=np.int64), np.array([100.0])
    got = features.labels(ends, mid, np.array([NaN]), states, orderbooks_watermark=watermark)
    assert got["label_known_at_10s"].tolist() == [us(10)]
    return [float(got[f"label_ret_{h}s"][0]) for h in (5, 10, 30)]


def test_labels_in_seconds() -> None:
    start = (0.0, 0.0, 1, 99.0, 1.0, 101.0, 1.0)
    five = (5.0, 4.0, 2, 101.0, 1.0, 103.0, 1.0)  # mid 102, known exactly at 5
    np.testing.assert_allclose(clock_labels(start, five), [0.02, NaN, NaN], rtol=1e-12)
    # complete to 10 s by the watermark, to 30 s the state is 26 s old
    np.testing.assert_allclose(clock_labels(start, five, watermark=us(10)), [0.02, 0.02, NaN], rtol=1e-12)
    close(clock_labels(start, five, watermark=us(10) - 1)[1:], [NaN, NaN])
    np.testing.assert_allclose(clock_labels(start, five, watermark=us(400)), [0.02, 0.02, NaN], rtol=1e-12)
    # a later state completes the feed, and nothing known after the horizon is used
    later = (5.000001, 5.0, 3, 109.0, 1.0, 111.0, 1.0)
    np.testing.assert_allclose(clock_labels(start, five, later), [0.02, NaN, NaN], rtol=1e-12)
    # the last state known by then is invalid
    close(clock_labels(start, (5, 5, 2, 101, 1, 0, 0)), [NaN, NaN, NaN])
    close(clock_labels(watermark=us(400)), [NaN, NaN, NaN])


def test_second_thresholds_scale_the_variance_per_second_of_the_returns() -> None:
    ends = np.array([us(s) for s in (0, 2, 2, 5)], dtype=np.int64)
    rv = np.array([NaN, NaN, 0.0004, 0.0005])
    empty = features.book_states(book())
    got = features.labels(ends, np.array([100, 101, 102, 103.0]), rv, empty, window=3)
    # bucket 2: returns 1, 2 span 2 s; bucket 3: returns 1, 2, 3 span 5 s
    close(got["threshold_5s"], [NaN, NaN, 0.5 * math.sqrt(0.001), 0.5 * math.sqrt(0.0005)])
    close(got["threshold_10s"][2:], [0.5 * math.sqrt(0.002), 0.5 * math.sqrt(0.001)])
    holed = features.labels(ends, np.array([100, 101, NaN, 103.0]), rv, empty, window=3)
    close(holed["threshold_5s"][3:], [0.5 * math.sqrt(0.0005 / 2 * 5)])  # only return 1, over 2 s
    brief = features.labels(ends, np.array([100, 101, 102, 103.0]), rv, empty, window=2)
    close(brief["threshold_5s"][3:], [0.5 * math.sqrt(0.0005 / 3 * 5)])  # returns 2, 3: 0 + 3 s
    flat = features.labels(np.full(4, H), np.array([100, 101, 102, 103.0]), rv, empty, window=3)
    close(flat["threshold_5s"], [NaN] * 4)


def test_everything_has_every_column_once_per_bucket() -> None:
    trades = random_tape(random.Random(5), 400)
    buckets = clock.buckets(trades, config())
    columns = features.everything(buckets, clock.on_time(trades), random_book(5, 300), market_type="spot")
    assert {len(column) for column in columns.values()} == {len(buckets)}
    assert np.isfinite(columns["label_ret_ps_1"]).any()
    assert np.isfinite(columns["label_ret_5s"]).any()
    assert np.isfinite(columns["jump"]).any()


# --- third-party packages ---


def random_tape(rng: random.Random, n: int) -> list[Trade]:
    seconds, price, out = 0.0, 100.0, []
    for seq in range(1, n + 1):
        seconds += rng.choice([0, 0.001, 0.5, 2])
        price += rng.choice([-0.01, 0, 0.01])
        side = rng.choice(["buy", "sell"])
        out.append(trade(seconds, rng.choice([0.1, 1, 2.5, 12]), seq, price=price, side=side))
    return out


def random_book(seed: int, m: int) -> features.BookRows:
    rng = np.random.default_rng(seed)
    known_at = H + np.cumsum(rng.integers(1, 3 * SECOND_US, m)).astype(np.int64)
    bid = (100 + 0.01 * np.cumsum(rng.integers(-1, 2, m))).astype(np.float64)
    return features.BookRows(
        known_at=known_at,
        timestamp=known_at - rng.integers(0, 1000, m),
        last_update_id=np.arange(1, m + 1, dtype=np.int64),
        bid_price=bid,
        bid_quantity=rng.integers(1, 50, m) / 10,
        ask_price=bid + 0.01 * rng.integers(1, 4, m),
        ask_quantity=rng.integers(1, 50, m) / 10,
    )


@pytest.mark.parametrize("seed", range(3))
def test_book_features_agree_with_orderflow_metrics(seed: int) -> None:
    states = features.book_states(random_book(seed, 500))
    assert len(states.mid) > 400
    np.testing.assert_allclose(states.ofi, libraries.ofi_increments(states), rtol=0, atol=1e-12)
    for name, theirs in libraries.book_measures(states).items():
        np.testing.assert_allclose(getattr(states, name), theirs, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("seed", range(3))
def test_rolling_features_agree_with_the_packages(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 120
    mid = 100 * np.exp(np.cumsum(rng.normal(0, 1e-4, n)))
    buy, sell = rng.integers(1, 900, n) / 8, rng.integers(1, 900, n) / 8
    notional = (buy + sell) * mid
    got = features.rolling(mid, buy, sell, notional)
    for b in (9, 10, 11, 49, 50, 51, 80, n - 1):
        first = max(0, b - 49)
        points = slice(max(1, first), b + 1)
        if b >= 10:
            change, signed = got["mid_change"][points], (buy - sell)[points]
            for slope in (
                libraries.kyle_lambda_orderflow(change, signed),
                libraries.kyle_lambda_ob_analytics(change, signed),
                libraries.kyle_lambda_scipy(change, signed),
            ):
                assert got["kyle_lambda"][b] == pytest.approx(slope, rel=1e-9)
            returns = got["mid_return"][points]
            assert got["rv"][b] == pytest.approx(libraries.realized_variance(returns), rel=1e-12)
        if b >= 11:
            with_previous = got["mid_return"][max(1, first - 1) : b + 1]
            bv = libraries.bipower_variation(with_previous)
            assert got["bv"][b] == pytest.approx(bv, rel=1e-12)
            assert got["jump"][b] == pytest.approx(max(got["rv"][b] - bv, 0), rel=1e-9, abs=1e-18)
        window = slice(first, b + 1)
        assert got["vpin"][b] == pytest.approx(libraries.vpin_orderflow(buy[window], sell[window]), abs=1e-6)
        assert got["amihud"][b] == pytest.approx(
            libraries.amihud(got["mid_return"][b], notional[b]), rel=1e-12
        )


def test_vpin_agrees_with_ob_analytics_on_equal_volumes() -> None:
    rng = np.random.default_rng(1)
    buy = rng.integers(0, 1025, 120).astype(np.float64)
    sell = 1024 - buy
    got = features.rolling(np.full(120, 100.0), buy, sell, buy + sell)["vpin"]
    np.testing.assert_allclose(got[9:], libraries.vpin_ob_analytics(buy, sell, 50)[9:], rtol=1e-12)
    with pytest.raises(ValueError, match="equal volume"):
        libraries.vpin_ob_analytics(buy, sell + np.arange(120), 50)


def test_where_the_packages_say_zero_for_null() -> None:
    assert libraries.amihud(0.01, 0) == 0
    assert libraries.kyle_lambda_orderflow([1, 2, 3], [5, 5, 5]) == 0
    assert math.isnan(libraries.kyle_lambda_ob_analytics([1, 2, 3], [5, 5, 5]))
    assert libraries.vpin_orderflow(np.array([3.0, 0]), np.array([0, 4.0])) == pytest.approx(1)


@pytest.mark.parametrize("seed", range(5))
def test_buckets_and_trade_flow_agree_with_the_bars_of_orderflow_metrics(seed: int) -> None:
    trades = random_tape(random.Random(seed), 600)  # at most 20 minutes: one anchor
    never = HOUR_US
    for rule, bars in (
        (config(t_max_us=never), libraries.volume_bars(trades, 10 * 10**8)),
        (config("count", t_max_us=never), libraries.count_bars(trades, 3)),
    ):
        # a trade in the far future closes the last full bar, and the open one by time
        rows = clock.buckets([*trades, trade(7200, 1, 10**6)], rule)
        full = [b for b in rows if b.cut_trigger == rule.mode]
        assert [b.volume_e8 for b in full] == [bar.volume for bar in bars]
        assert [b.trade_count for b in full] == [bar.ticks for bar in bars]
        flow = features.trade_flow(full, trades, market_type="spot")
        for name, field in (
            ("open_price", "open"),
            ("high_price", "high"),
            ("low_price", "low"),
            ("close_price", "close"),
            ("vwap", "vwap"),
        ):
            np.testing.assert_allclose(flow[name], [getattr(bar, field) for bar in bars], rtol=1e-12)
        np.testing.assert_allclose(flow["buy_volume"], [bar.buy_volume / 10**8 for bar in bars], rtol=1e-12)
        np.testing.assert_allclose(
            flow["flow_imbalance"],
            [libraries.flow_imbalance(clock.members(b, trades)) for b in full],
            rtol=1e-12,
            atol=1e-15,
        )


# --- clock: rules that hold for every tape ---


@st.composite
def tapes(draw: st.DrawFn) -> list[Trade]:
    """Up to 60 trades with many ties, gaps around t_max and anchors, some late, some twice, in any order."""
    at, out = us(draw(st.sampled_from([0, 3500, 3590]))), []
    steps = st.sampled_from(
        [0, 0, 1, SECOND_US, 4 * SECOND_US, 8 * SECOND_US, 59_999_999, 60 * SECOND_US, HOUR_US]
    )
    quantities = st.sampled_from([1, 10**8, 2 * 10**8, 5 * 10**8, 999_999_999, 10**9, 10**12])
    for seq in range(draw(st.integers(0, 60))):
        at += draw(steps)
        late = draw(st.sampled_from([0, 0, 0, 0, 1]))
        out.append(Trade(at, seq, str(seq), draw(quantities), at + late))
    copies = draw(st.lists(st.sampled_from(out), max_size=5)) if out else []
    return list(draw(st.permutations(out + copies)))


MODES: tuple[Mode, ...] = ("volume", "count", "hybrid", "event")
modes = st.sampled_from(MODES)
book_times = st.lists(
    st.one_of(st.integers(0, 400), st.integers(3490, 3800)).map(us) | st.just(us(3600) - 1), max_size=60
)


def literal(trades: list[Trade], rule: Config, books: list[int]) -> list[tuple[int, int, str, list[str]]]:
    """The definition read word by word, bucket after bucket: (start, end, cut, trade ids), closed or not."""
    rest, out = clock.on_time(trades), []
    while rest:
        t0 = rest[0].timestamp
        anchor = t0 // HOUR_US
        anchor_end, deadline = (anchor + 1) * HOUR_US, t0 + rule.t_max_us
        inside = [t for t in rest if t.timestamp // HOUR_US == anchor and t.timestamp < deadline]
        end, cut = (deadline, "time") if deadline <= anchor_end else (anchor_end, "anchor")
        if rule.mode == "event":
            after = sorted({u for u in books if u // HOUR_US == anchor and u > t0})
            if len(after) >= rule.n_updates and after[rule.n_updates - 1] < deadline:
                end, cut = after[rule.n_updates - 1], "event"
                inside = [t for t in inside if t.timestamp <= end]
        else:
            for j, last in enumerate(inside):
                volume = Fraction(sum(t.quantity_e8 for t in inside[: j + 1]), rule.q_bucket_e8)
                pace = Fraction(last.timestamp - t0, rule.t_target_us)
                if {
                    "volume": volume >= 1,
                    "count": j + 1 == rule.n_trades,
                    "hybrid": min(volume, pace, Fraction(j + 1, rule.n_min)) >= Fraction(4, 5),
                }[rule.mode]:
                    end, cut, inside = last.timestamp, rule.mode, inside[: j + 1]
                    break
        out.append((t0, end, cut, [t.trade_id for t in inside]))
        rest = rest[len(inside) :]
    return out


@settings(max_examples=300, deadline=None)
@given(tapes(), modes, book_times, st.none() | st.integers(0, 4000).map(us))
def test_state_machine_equals_the_definition_read_word_by_word(
    trades: list[Trade], mode: Mode, books: list[int], watermark: int | None
) -> None:
    rule = config(mode)
    ordered = clock.on_time(trades)
    got = clock.buckets(trades, rule, book_times=books, watermark=watermark)
    rows = [
        (b.bucket_ts_start, b.bucket_ts_end, b.cut_trigger, [t.trade_id for t in clock.members(b, ordered)])
        for b in got
    ]
    expected = literal(trades, rule, books)
    if expected and (watermark is None or watermark <= expected[-1][1]):
        del expected[-1]
    assert rows == expected


@settings(max_examples=200, deadline=None)
@given(tapes(), modes, book_times)
def test_invariants(trades: list[Trade], mode: Mode, books: list[int]) -> None:
    rule = config(mode)
    ordered = clock.on_time(trades)
    got = clock.buckets(trades, rule, book_times=books, watermark=us(10**6))
    # every on-time trade in exactly one bucket, in order (the watermark closes the last)
    assert [t for b in got for t in clock.members(b, ordered)] == ordered
    for b in got:
        inside = clock.members(b, ordered)
        assert (b.trade_count, b.volume_e8) == (len(inside), sum(t.quantity_e8 for t in inside))
        assert (b.first_trade_id, b.last_trade_id) == (inside[0].trade_id, inside[-1].trade_id)
        assert b.bucket_ts_start == inside[0].timestamp
        assert inside[-1].timestamp < b.bucket_ts_start + rule.t_max_us
        assert inside[-1].timestamp < b.anchor + HOUR_US
        assert (
            inside[-1].timestamp
            <= b.bucket_ts_end
            <= min(b.bucket_ts_start + rule.t_max_us, b.anchor + HOUR_US)
        )
        assert b.bucket_id == b.anchor // SECOND_US * 100_000 + b.sequence
        if mode == "volume":
            assert (b.volume_e8 >= rule.q_bucket_e8) == (b.cut_trigger == "volume")
            assert b.volume_e8 - inside[-1].quantity_e8 < rule.q_bucket_e8
    for earlier, later in pairwise(got):
        assert later.bucket_id > earlier.bucket_id
        # equal only where trades of one instant fall in two buckets
        assert later.bucket_ts_start >= earlier.bucket_ts_end >= earlier.bucket_ts_start


@settings(max_examples=100, deadline=None)
@given(tapes(), modes, book_times)
def test_any_anchor_rebuilt_alone_gives_the_same_rows(
    trades: list[Trade], mode: Mode, books: list[int]
) -> None:
    whole = clock.buckets(trades, config(mode), book_times=books, watermark=us(10**6))
    for anchor in {b.anchor for b in whole}:
        hour = range(anchor, anchor + HOUR_US)
        alone = clock.buckets(
            [t for t in trades if t.timestamp in hour],
            config(mode),
            book_times=[u for u in books if u in hour],
            watermark=us(10**6),
        )
        assert alone == [b for b in whole if b.anchor == anchor]


@settings(max_examples=100, deadline=None)
@given(tapes(), modes, book_times, st.data())
def test_what_was_published_never_changes(
    trades: list[Trade], mode: Mode, books: list[int], data: st.DataObject
) -> None:
    """Whatever comes later in the order, trades or books, leaves published rows alone."""
    ordered = clock.on_time(trades)
    now = ordered[data.draw(st.integers(0, len(ordered) - 1))].timestamp if ordered else H
    known = clock.buckets(
        [t for t in trades if t.timestamp <= now], config(mode), book_times=[u for u in books if u <= now]
    )
    whole = clock.buckets(trades, config(mode), book_times=books, watermark=us(10**6))
    assert whole[: len(known)] == known
