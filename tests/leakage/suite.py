"""The tests that hold for any market. A module gives them one: a module fixture `loaded`."""

from __future__ import annotations

from dataclasses import replace

from tests.leakage.checks import Comparison, assert_none, compare, dependencies, inputs
from tests.leakage.conftest import Story
from tests.leakage.market import FULL
from tests.leakage.variants import FOREVER, LATE_ID
from tests.support import query

# Compared at every T; others may be empty.
NEVER_EMPTY = {
    "bucket_config",
    "book_updates",
    "feature_vector_v1",
    "training_set",
    "bucket_labels:1",
    "bucket_labels:5s",
}


class LeakageSuite:
    def test_inputs(self, built: Story) -> None:
        assert_none(inputs(built.build))

    def test_dependencies(self, built: Story) -> None:
        assert_none(dependencies(built.build))

    def test_truncation(self, at_once: Comparison) -> None:
        assert_none(at_once.of("cut"))

    def test_future_shuffle(self, at_once: Comparison) -> None:
        assert_none(at_once.of("shuffle"))

    def test_late_arrival_after_publication(self, grown: Comparison) -> None:
        assert_none(grown.of("late"))

    def test_an_interrupted_build_catches_up(self, grown: Comparison) -> None:
        assert_none(grown.of("resumed"))

    def test_late_arrival_in_a_rebuild(self, rebuilt: Comparison) -> None:
        assert_none(rebuilt.violations)

    def test_rows_were_compared(self, built: Story, rebuilt: Comparison) -> None:
        for v in built.variants:
            compared = {table for table, symbol in rebuilt.rows if symbol == v.symbol}
            assert compared >= NEVER_EMPTY, v
            assert all(rebuilt.rows[table, v.symbol] > 0 for table in NEVER_EMPTY), v

    def test_the_shuffle_shows_after_t(self, built: Story, at_once: Comparison) -> None:
        for v in built.of("shuffle"):
            to_the_end = compare(built.build, [replace(v, at=FOREVER)], only=["feature_vector_v1"])
            assert sum(x.rows for x in to_the_end.violations) > 10, v

    def test_late_rows_arrived(self, built: Story, grown: Comparison) -> None:
        features = built.build.features
        trades = query(f"select count() as n from {features}.stg_trades where trade_seq > {LATE_ID}")
        assert trades[0]["n"] > 100
        states = query(f"select symbol, count() as n from {features}.book_updates group by symbol")
        kept = {r["symbol"]: r["n"] for r in states}
        assert any(kept[v.symbol] > kept[FULL] for v in built.of("late")), "every late state was stale"
