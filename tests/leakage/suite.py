"""The tests that hold for any market. A module gives them one: a module fixture `loaded`."""

from __future__ import annotations

from dataclasses import replace

from tests.leakage.checks import Comparison, assert_none, compare, dependencies, inputs
from tests.leakage.conftest import Story
from tests.leakage.variants import FOREVER
from tests.support import query


class LeakageSuite:
    def test_inputs(self, built: Story) -> None:
        assert_none(inputs(built.build))

    def test_dependencies(self, built: Story) -> None:
        assert_none(dependencies(built.build))

    def test_truncation(self, at_once: dict[str, Comparison]) -> None:
        assert_none(at_once["cut"].violations)

    def test_future_shuffle(self, at_once: dict[str, Comparison]) -> None:
        assert_none(at_once["shuffle"].violations)

    def test_late_arrival_after_publication(self, grown: dict[str, Comparison]) -> None:
        assert_none(grown["late"].violations)

    def test_late_arrival_in_a_rebuild(self, rebuilt: Comparison) -> None:
        assert_none(rebuilt.violations)

    def test_an_interrupted_build_catches_up(self, grown: dict[str, Comparison]) -> None:
        assert_none(grown["resumed"].violations)

    def test_not_in_vain(self, built: Story, at_once: dict[str, Comparison], rebuilt: Comparison) -> None:
        """Rows were compared at every T, and what was done to the future does show in the future."""
        for (table, variant), rows in {**at_once["cut"].rows, **at_once["shuffle"].rows}.items():
            if table in ("feature_vector_v1", "bucket_labels", "bucket_labels:1", "bucket_labels:5s", "book_updates", "bucket_config"):
                assert rows > 0, (table, variant)
        for v in built.of("shuffle"):
            whole = compare(built.build, [replace(v, at=FOREVER)], "after T", only="feature_vector_v1")
            assert sum(x.rows for x in whole.violations) > 10, v
        late = query(f"select count() as n from {built.build.features}.stg_trades where symbol like 'LATE%%' and trade_seq > 1000000000000")
        assert late[0]["n"] > 100
        books = query(f"select symbol, count() as n from {built.build.features}.book_updates where symbol like 'LATE%%' or symbol = 'FULL' group by symbol")
        n = {r["symbol"]: r["n"] for r in books}
        assert any(n[s] != n["FULL"] for s in n), "no late book was ever taken in"
