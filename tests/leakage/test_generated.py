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
        cuts = {r["c"] for r in query(f"select distinct toString(cut_trigger) as c from {features}.unified_buckets")}
        assert cuts == {"volume", "event", "hybrid", "time", "anchor"}
        config = query(f"select countIf(is_calibrated) as yes, uniqExact(q_bucket) as sizes from {features}.bucket_config where symbol = 'FULL'")
        assert config[0]["yes"] >= 4 and config[0]["sizes"] >= 4
