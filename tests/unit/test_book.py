"""The order book against a naive one, and the rules by which a replay is trusted."""

from __future__ import annotations

from decimal import Decimal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_udfs.ingest import book as module
from python_udfs.ingest.book import MIN_PRICES, NO_ASK, NO_BID, SETTLE, Best, Book, PriceKeys, Replay, plain

E8 = 10**8
SECOND = 1_000_000


def text(value: int, decimals: int) -> str:
    """value / 100 with at least 2 decimals, as exchanges write it."""
    return f"{value // 100}.{value % 100:02d}" + "0" * (decimals - 2)


levels = st.lists(
    st.tuples(
        st.integers(1, 60).map(lambda p: text(p, 8)),
        st.sampled_from(["0", "0.000", "1", "2.50", "0.001", "7.0"]),
    ),
    max_size=30,
)


@given(
    snapshot=st.tuples(levels, levels),
    diffs=st.lists(st.tuples(levels, levels), max_size=12),
    n=st.integers(1, 25),
)
def test_book_equals_a_dictionary(
    snapshot: tuple[list[tuple[str, str]], list[tuple[str, str]]],
    diffs: list[tuple[list[tuple[str, str]], list[tuple[str, str]]]],
    n: int,
) -> None:
    book = Book(None, *snapshot)
    naive: tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]] = ({}, {})
    for changes in (snapshot, *diffs):
        if changes is not snapshot:
            book.apply(*changes)
        for side, side_changes in zip(naive, changes, strict=True):
            for price, quantity in side_changes:
                side[Decimal(price)] = Decimal(quantity)
        bids, asks = ({p: q for p, q in side.items() if q} for side in naive)
        best = book.best()
        assert best.bid == max((int(p * E8) for p in bids), default=NO_BID)
        assert best.ask == min((int(p * E8) for p in asks), default=NO_ASK)
        bids_json, bids_count, asks_json, asks_count = book.top(n)
        for got, count, expected in (
            (bids_json, bids_count, sorted(bids.items(), reverse=True)[:n]),
            (asks_json, asks_count, sorted(asks.items())[:n]),
        ):
            parsed = orjson.loads(got)
            assert [(Decimal(p), Decimal(q)) for p, q in parsed] == expected
            assert count == len(expected)
            assert all(t == plain(t) for level in parsed for t in level)
        low = min((int(p * E8) for p in bids), default=NO_BID)
        high = max((int(p * E8) for p in asks), default=NO_ASK)
        assert book.range() == (low, high)


def test_quantities_are_absolute_and_the_same_price_is_the_same_level() -> None:
    book = Book(None, [["10.10", "1.50"]], [])
    book.apply([["10.1", "2.0"], ["10.100", "3"]], [])
    assert book.top(5) == ('[["10.1","3"]]', 1, "[]", 0)


def test_removing_an_unknown_level_is_fine() -> None:
    book = Book(None, [["10", "1"]], [["11", "1"]])
    book.apply([["9.99", "0.000"]], [["12", "0"]])
    assert book.top(5) == ('[["10","1"]]', 1, '[["11","1"]]', 1)


@pytest.mark.parametrize(
    ("level", "code"),
    [
        (["ten", "1"], "bad_number"),
        (["10", "one"], "bad_number"),
        (["10", ""], "bad_number"),
        (["10", 1], "bad_number"),
        (["10", None], "bad_number"),
        (["10"], "bad_number"),
        (["0.00", "1"], "bad_number"),
        (["-1", "1"], "bad_number"),
        (["10", "-1"], "out_of_range"),
        (["10", "nan"], "out_of_range"),
        (["10", "1e10"], "out_of_range"),
        (["10000000000", "1"], "out_of_range"),
        (["0.000000001", "1"], "out_of_range"),
        ([["10"], "1"], "bad_number"),
    ],
)
def test_malformed_levels_are_refused(level: list[str], code: str) -> None:
    with pytest.raises(ValueError, match=f"^{code}: "):
        Book(None, [level], [])


def test_the_tick_is_the_common_divisor_of_the_prices() -> None:
    prices = PriceKeys()
    for price in ("5000.00", "61800.50", "61800.20"):
        assert prices[price][0] == int(Decimal(price) * E8)
    assert prices.tick == E8 // 10


# Replays. A snapshot of 2 + 2 levels is a whole book (2 is no limit that can be asked for).
BIDS, ASKS = [["99", "1"], ["98", "2"]], [["101", "1"], ["102", "2"]]


def anchored(last_id: int = 100) -> Replay:
    replay = Replay()
    replay.snapshot(last_id, BIDS, ASKS)
    return replay


def shown(best: Best | None) -> tuple[float, float]:
    assert best is not None
    return best.bid / E8, best.ask / E8


@pytest.mark.parametrize(("previous", "update_id"), [(95, 100), (95, 105), (99, 101), (100, 105), (100, 101)])
def test_the_first_diff_must_cover_the_snapshot(previous: int, update_id: int) -> None:
    replay = anchored(100)
    assert shown(replay.diff(previous, update_id, SECOND, [["99.5", "1"]], [])) == (99.5, 101)
    assert replay.anchored == 1


def test_diffs_from_before_the_snapshot_are_not_applied() -> None:
    replay = anchored(100)
    assert replay.diff(90, 95, SECOND, [["100", "9"]], []) is None
    assert replay.diff(95, 99, SECOND, [["100.5", "9"]], []) is None
    assert shown(replay.diff(99, 101, SECOND, [], [["102", "3"]])) == (99, 101)


def test_a_snapshot_older_than_the_diffs_is_refused() -> None:
    replay = anchored(100)
    with pytest.raises(ValueError, match=r"^sequence_gap: snapshot 100 is older"):
        replay.diff(101, 105, SECOND, [["99", "1"]], [["101", "1"]])
    assert replay.diff(105, 106, SECOND, [], []) is None
    assert replay.anchored == 0


def test_a_snapshot_goes_under_diffs_received_before_it() -> None:
    replay = Replay()
    for i in range(5):
        assert replay.diff(100 + i, 101 + i, SECOND, [[f"99.{i + 1}", "1"]], []) is None
    replay.snapshot(102, BIDS, ASKS)
    best = replay.diff(105, 106, SECOND, [], [["100.5", "1"]])
    assert shown(best) == (99.5, 100.5)
    # 99.1 was set by the update 101, before the snapshot, which does not have it any more.
    assert (
        replay.book.top(9)[0] == '[["99.5","1"],["99.4","1"],["99.3","1"],["99.2","1"],["99","1"],["98","2"]]'
    )


def test_the_same_snapshot_twice_changes_nothing() -> None:
    replay = anchored(100)
    replay.snapshot(100, BIDS, ASKS)
    replay.diff(100, 101, SECOND, [["99.5", "1"]], [])
    before = replay.book.top(9)
    replay.snapshot(100, BIDS, ASKS)
    assert replay.book.top(9) == before
    assert shown(replay.diff(101, 102, SECOND, [], [["102", "0"]])) == (99.5, 101)


def test_a_late_copy_of_an_old_snapshot_is_refused_and_the_book_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replay = anchored(100)
    for i in range(module.RECENT + 1):
        replay.diff(100 + i, 101 + i, SECOND, [["99", str(i + 1)]], [])
    with pytest.raises(ValueError, match=r"^sequence_gap: snapshot 100 is older"):
        replay.snapshot(100, BIDS, ASKS)
    assert shown(replay.diff(101 + module.RECENT, 10_000, SECOND, [["99.5", "1"]], [])) == (99.5, 101)


def test_a_gap_throws_the_book_away_until_the_next_snapshot() -> None:
    replay = anchored(100)
    replay.diff(100, 101, SECOND, [["99.5", "1"]], [])
    with pytest.raises(
        ValueError, match=r"^sequence_gap: the diff follows 102, the one before ended at 101$"
    ):
        replay.diff(102, 103, SECOND, [["99.6", "1"]], [])
    assert replay.book.top(9)[0] == '[["99.6","1"]]'
    assert replay.diff(103, 104, SECOND, [["99", "5"]], [["101", "5"]]) is None
    replay.snapshot(103, [["99.6", "1"], ["97", "1"]], [["103", "1"]])
    assert shown(replay.diff(104, 105, SECOND, [], [["102", "1"]])) == (99.6, 101)
    assert replay.book.top(9)[0] == '[["99.6","1"],["99","5"],["97","1"]]'


@pytest.mark.parametrize("previous", [100, 104, 106])
def test_a_diff_that_overlaps_or_skips_is_a_gap(previous: int) -> None:
    replay = anchored(100)
    replay.diff(100, 105, SECOND, [], [])
    with pytest.raises(ValueError, match=r"^sequence_gap: "):
        replay.diff(previous, 107, SECOND, [["99.5", "1"]], [])


def test_an_agreement_from_before_a_gap_proves_nothing_after_it() -> None:
    replay = anchored(100)
    replay.diff(100, 101, 0, [], [])
    with pytest.raises(ValueError, match=r"^sequence_gap: "):
        replay.diff(102, 103, 0, [["99", "1"]], [["101", "1"]])
    replay.ticker(101, 0, '["99","1"]', '["101","1"]')
    assert replay.diff(103, 104, SETTLE, [], []) is None
    assert (replay.agreed, replay.compared) == (1, 1)


def test_what_was_applied_already_is_ignored() -> None:
    replay = anchored(100)
    replay.diff(100, 105, SECOND, [["99.5", "1"]], [])
    for previous, update_id in ((100, 105), (90, 95), (100, 103)):
        with pytest.raises(ValueError, match=r"^stale_update: "):
            replay.diff(previous, update_id, SECOND, [["99.5", "0"]], [])
    assert shown(replay.diff(105, 106, SECOND, [], [])) == (99.5, 101)


def test_a_malformed_diff_makes_the_next_one_a_gap() -> None:
    replay = anchored(100)
    replay.diff(100, 101, SECOND, [], [])
    with pytest.raises(ValueError, match=r"^bad_number: "):
        replay.diff(101, 102, SECOND, [["99.5", "1"], ["99.6", "x"]], [])
    with pytest.raises(ValueError, match=r"^sequence_gap: "):
        replay.diff(102, 103, SECOND, [], [])


@pytest.mark.parametrize("price", ["101", "101.5"])
def test_sides_that_meet_are_refused(price: str) -> None:
    replay = anchored(100)
    with pytest.raises(ValueError, match=r"^crossed_book: "):
        replay.diff(100, 101, SECOND, [[price, "1"]], [])
    assert shown(replay.diff(101, 102, SECOND, [[price, "0"]], [])) == (99, 101)


def test_a_whole_side_may_become_empty() -> None:
    replay = anchored(100)
    best = replay.diff(100, 101, SECOND, [], [["101", "0"], ["102", "0"]])
    assert best == Best(99 * E8, NO_ASK, '["99","1"]', "")


def test_a_snapshot_vouches_only_for_the_prices_it_covers() -> None:
    bids = [[str(99 - i), "1"] for i in range(5)]  # 5: a limit, so there may be more below 95
    asks = [[str(101 + i), "1"] for i in range(5)]
    replay = Replay()
    replay.snapshot(100, bids, asks)
    replay.diff(100, 101, SECOND, [["94", "1"]], [])
    assert shown(replay.diff(101, 102, SECOND, [[str(p), "0"] for p in range(96, 100)], [])) == (95, 101)
    assert replay.diff(102, 103, SECOND, [["95", "0"]], []) is None
    assert shown(replay.diff(103, 104, SECOND, [["95", "1"]], [])) == (95, 101)
    assert replay.withheld == 1


def from_diffs_alone() -> Replay:
    """A settled replay that has seen enough prices for the tick to be 1, and a best of 99 and 102."""
    replay = Replay()
    replay.diff(0, 1, 0, [[str(i + 1), "1"] for i in range(MIN_PRICES)] + [["99", "1"]], [["102", "1"]])
    assert replay.diff(1, 2, SETTLE, [], []) is None
    return replay


def test_without_a_snapshot_a_spread_of_one_tick_is_proof() -> None:
    replay = from_diffs_alone()
    assert shown(replay.diff(2, 3, SETTLE, [], [["100", "1"]])) == (99, 100)
    # 100 to 102: a level at 101 would not be known.
    assert replay.diff(3, 4, SETTLE, [], [["100", "0"]]) is None
    assert shown(replay.diff(4, 5, SETTLE, [["101", "1"]], [])) == (101, 102)
    assert (replay.withheld, replay.restarts, replay.anchored) == (3, 1, 0)


def test_without_a_snapshot_what_is_known_grows_with_the_touch() -> None:
    replay = from_diffs_alone()
    replay.diff(2, 3, SETTLE, [], [["100", "1"]])
    replay.diff(3, 4, SETTLE, [["100", "1"]], [["100", "0"], ["101", "1"]])
    # Between 99 and 101 everything has been the touch: a wide spread inside is known to be empty.
    assert shown(replay.diff(4, 5, SETTLE, [["100", "0"]], [])) == (99, 101)
    assert replay.diff(5, 6, SETTLE, [["99", "0"]], []) is None


def test_without_a_snapshot_nothing_is_vouched_for_before_it_settled() -> None:
    replay = from_diffs_alone()
    other = Replay()
    other.diff(0, 1, 5, [[str(i + 1), "1"] for i in range(MIN_PRICES)] + [["99", "1"]], [["100", "1"]])
    assert other.diff(1, 2, SETTLE + 4, [], []) is None
    assert shown(other.diff(2, 3, SETTLE + 5, [], [])) == (99, 100)
    assert replay.restarts == other.restarts == 1


def test_few_prices_prove_no_tick() -> None:
    replay = Replay()
    replay.diff(0, 1, 0, [["100", "1"]], [["200", "1"]])
    assert replay.diff(1, 2, SETTLE, [], []) is None


@pytest.mark.parametrize("ticker_first", [True, False])
def test_without_a_snapshot_an_agreeing_ticker_is_proof(ticker_first: bool) -> None:
    replay = from_diffs_alone()
    if ticker_first:
        replay.ticker(3, SETTLE, '["99","1"]', '["102","1"]')
        assert shown(replay.diff(2, 3, SETTLE, [], [])) == (99, 102)
    else:
        assert replay.diff(2, 3, SETTLE, [], []) is None
        replay.ticker(3, SETTLE, '["99","1"]', '["102","1"]')
    assert shown(replay.diff(3, 4, SETTLE, [["100", "1"]], [])) == (100, 102)
    assert (replay.agreed, replay.compared) == (1, 1)


def test_a_disagreement_in_a_withheld_state_is_no_mismatch() -> None:
    replay = from_diffs_alone()
    replay.ticker(3, SETTLE, '["99","1"]', '["101","1"]')
    assert replay.diff(2, 3, SETTLE, [], []) is None
    assert (replay.agreed, replay.compared, replay.doubted) == (0, 1, 1)
    # The levels that are there are right, and stay.
    assert shown(replay.diff(3, 4, SETTLE, [["101", "1"]], [])) == (101, 102)


@pytest.mark.parametrize("ticker_first", [True, False])
def test_a_mismatch_throws_the_book_away(ticker_first: bool) -> None:
    replay = anchored(100)
    if ticker_first:
        replay.ticker(101, SECOND, '["99","7"]', '["101","1"]')
        with pytest.raises(ValueError, match=r"^replay_mismatch: at update 101 "):
            replay.diff(100, 101, SECOND, [], [])
    else:
        assert replay.diff(100, 101, SECOND, [], []) is not None
        with pytest.raises(ValueError, match=r"^replay_mismatch: at update 101 "):
            replay.ticker(101, SECOND, '["99","7"]', '["101","1"]')
    assert replay.diff(101, 102, SECOND, [["99", "7"]], [["101", "1"]]) is None
    assert (replay.agreed, replay.compared) == (0, 1)


def test_each_update_id_is_compared_once() -> None:
    replay = anchored(100)
    for _ in range(2):
        replay.ticker(101, SECOND, '["99","1"]', '["101","1"]')
    replay.diff(100, 101, SECOND, [], [])
    replay.ticker(101, SECOND, '["99","1"]', '["101","1"]')
    assert (replay.agreed, replay.compared) == (1, 1)


def test_memory_for_matching_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MATCH_WINDOW", 10)
    replay = anchored(0)
    for i in range(1, 101):
        replay.diff(i - 1, i, SECOND, [], [])
    for i in (80, 95, 100):
        replay.ticker(i, SECOND, '["99","1"]', '["101","1"]')
    assert replay.agreed == 2


def test_distrust_forgets_a_waiting_snapshot_too() -> None:
    replay = anchored(100)
    replay.distrust(0)
    assert replay.diff(100, 101, SECOND, [], []) is None
    assert replay.anchored == 0
