"""The leakage suite on a generated market: three clocks, and rows of every raw kind, some known late."""

from __future__ import annotations

import pytest

from python_udfs.settings import Settings
from tests.leakage.conftest import Loaded, Story, generated
from tests.leakage.suite import LeakageSuite
from tests.support import query


@pytest.fixture(scope="module")
def loaded(module_store: Settings) -> Loaded:
    return generated()


class TestGenerated(LeakageSuite):
    def test_calibration_and_all_cuts_happen(self, built: Story) -> None:
        features = built.build.features
        cuts = query(f"select distinct toString(cut_trigger) as cut from {features}.unified_buckets")
        assert {r["cut"] for r in cuts} == {"volume", "event", "hybrid", "time", "anchor"}
        config = query(
            "select countIf(is_calibrated) as calibrated, uniqExact(q_bucket) as sizes "
            f"from {features}.bucket_config where symbol = 'FULL'"
        )[0]
        assert config["calibrated"] >= 4
        assert config["sizes"] >= 4

    def test_every_raw_kind_has_rows(self, built: Story) -> None:
        staged = query(
            "select name from system.tables where database = %(d)s and name like 'stg_%%'",
            d=built.build.features,
        )
        for name in (r["name"] for r in staged):
            assert query(f"select count() as n from {built.build.features}.{name}")[0]["n"] > 0, name
