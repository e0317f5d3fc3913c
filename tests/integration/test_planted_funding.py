"""The planted funding shock is flagged at the first bucket that could know it, on its contract, and nowhere else."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import pytest

from python_udfs.ingest.generator import GeneratedReader, MarketConfig, write
from python_udfs.ingest.loader import load
from python_udfs.settings import Settings
from tests.support import dbt, query, us

DAY_US: Final = 86_400_000_000
WINDOW_US: Final = 300_000_000  # funding_shock_window_s
PLANTED: Final = MarketConfig(minutes=60, trades_per_second=6, sparse_books=True, truths=("funding_shock",))
# The same market a week later, without the shock.
WITHOUT: Final = replace(PLANTED, start=PLANTED.start + 7 * DAY_US, truths=())


@pytest.fixture(scope="module")
def truth(module_store: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("markets")
    for name, config in (("planted", PLANTED), ("without", WITHOUT)):
        write(config, folder / name)
        load(GeneratedReader(folder / name))
    dbt("seed")
    dbt("run", select="+funding", t_target_s=10, t_max_s=20)
    shock: dict[str, Any] = json.loads((folder / "planted" / "truths.json").read_text())["funding_shock"]
    return shock


def _flagged() -> list[dict[str, Any]]:
    return query(
        f"select *, {us('bucket_ts_end')} as end_us from funding where funding_shock_sign != 0 order by bucket_ts_end"
    )


def test_the_shock_is_flagged_from_the_first_bucket_that_could_know_it(truth: dict[str, Any]) -> None:
    for market_type in ("linear", "spot"):  # the spot market looks at the contract
        key = (truth["exchange"], market_type, truth["symbol"])
        ends = query(
            f"select {us('bucket_ts_end')} as end_us from unified_buckets where (exchange, market_type, symbol) = {key} "
            "order by bucket_id"
        )
        # the rate is known when it is published
        flagged = [r["end_us"] for r in _flagged() if r["market_type"] == market_type]
        after = [r["end_us"] for r in ends if r["end_us"] >= truth["time_us"]]
        assert flagged == [e for e in after if e < truth["time_us"] + WINDOW_US]
        assert len(flagged) > 5
    sizes = [r["funding_shock_magnitude"] for r in _flagged()]
    assert sizes[0] == pytest.approx(truth["size"], rel=0.02)
    assert {r["funding_shock_sign"] for r in _flagged()} == {1}
    assert _flagged()[0]["funding_rate_z"] is None  # eight rates are too few for a z-score


def test_no_other_market_is_flagged(truth: dict[str, Any]) -> None:
    assert {(r["exchange"], r["symbol"]) for r in _flagged()} == {(truth["exchange"], truth["symbol"])}


def test_nothing_is_flagged_where_nothing_was_planted(truth: dict[str, Any]) -> None:
    start = datetime.fromisoformat(truth["time"])
    assert all(abs((r["bucket_ts_end"] - start).days) < 1 for r in _flagged())
    [row] = query(
        f"select count(funding_shock_sign) as n, max(funding_shock_magnitude) as largest from funding where {us('bucket_ts_end')} >= {WITHOUT.start}"
    )
    assert row["n"] > 1000
    assert row["largest"] < 0.0001
