"""The planted delay is found where it was planted, by both estimators, and not where it was not; an outage turns the pair off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from python_udfs.ingest.generator import TRUTHS, GeneratedReader, MarketConfig, write
from python_udfs.ingest.loader import load
from python_udfs.settings import Settings
from tests.support import dbt, query, us

STEP_MS = 100


def _build(folder: Path, config: MarketConfig) -> dict[str, Any]:
    """The market in the current store with all cross-market models; its truths."""
    write(config, folder)
    load(GeneratedReader(folder))
    dbt("seed")
    dbt("run", select="+path:dbt_project/models/features/cross_market", t_target_s=10, t_max_s=20)
    truths: dict[str, Any] = json.loads((folder / "truths.json").read_text())
    return truths


def _lags() -> list[dict[str, Any]]:
    return query(
        "select exchange, market_type, other_exchange, other_market_type, symbol, "
        "groupUniqArray(lag_ms) as grid, groupUniqArray(hy_lag_ms) as ticks, count() as runs, min(hy_correlation) as least "
        "from pair_lead_lag group by exchange, market_type, other_exchange, other_market_type, symbol"
    )


@contextmanager
def _named(row: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except AssertionError as e:
        raise AssertionError(f"{row}: {e}") from e


def test_the_delay_is_found_and_the_outage_turns_features_off(store: Settings, tmp_path: Path) -> None:
    truths = _build(tmp_path / "market", MarketConfig(minutes=26, book_levels=5))
    leader = tuple(truths["lead_lag"]["leader"].values())
    delay = truths["lead_lag"]["delay_ms"]
    rows = _lags()
    assert len(rows) == 24  # two base assets, four markets each, both ways
    for row in rows:
        this, other = (row["exchange"], row["market_type"]), (row["other_exchange"], row["other_market_type"])
        planted = delay * ((this == leader) - (other == leader))
        with _named(row):
            assert row["runs"] >= 3
            assert row["least"] > 0.2
            for lag in row["grid"] + row["ticks"]:
                assert abs(lag - planted) <= STEP_MS

    start, end = truths["outage"]["start_us"], truths["outage"]["end_us"]
    silent = {tuple(i.values()) for i in truths["outage"]["instruments"]}
    names = [
        *("cross_spread_bps", "cross_spread_z", "hedge_ratio", "cointegration_residual_bps", "lead_lag_ms"),
        *(
            "lead_lag_correlation",
            "hy_lead_lag_ms",
            "hy_correlation",
            "cointegration_half_life_s",
            "cross_spread_hurst",
        ),
    ]
    buckets = query(
        f"select p.exchange as exchange, p.market_type as market_type, p.symbol as symbol, {us('p.bucket_ts_end')} as at, "
        "p.reference_exchange as reference_exchange, p.reference_market_type as reference_market_type, "
        "p.reference_symbol as reference_symbol, c.cross_is_on as cross_is_on, c.cross_verdict as cross_verdict, "
        + ", ".join(f"{n} as {n}" for n in names)
        + " from bucket_partners as p "
        + " ".join(
            f"inner join {table} as {alias} using (exchange, market_type, symbol, bucket_id)"
            for table, alias in (("cross_consistency", "c"), ("cross_spread", "s"), ("price_discovery", "d"))
        )
    )

    def touched(b: dict[str, Any]) -> bool:
        own = (b["exchange"], b["market_type"], b["symbol"])
        return (
            own in silent
            or (b["reference_exchange"], b["reference_market_type"], b["reference_symbol"]) in silent
        )

    # a book may be ten seconds old; the silent minute counts until the next whole one is over
    dead = [b for b in buckets if start + 10_000_000 < b["at"] < end and touched(b)]
    assert "alpha" in {b["exchange"] for b in dead}  # beta has hardly a bucket: nothing trades there
    assert [b for b in dead if b["cross_is_on"] or any(b[n] is not None for n in names)] == []
    assert {b["cross_verdict"] for b in dead} <= {
        "no_book",
        "few_trades",
        "few_book_updates",
        "trade_gap",
        "book_gap",
    }
    meanwhile = [b for b in buckets if start < b["at"] < end and not touched(b)]
    assert meanwhile and all(b["cross_is_on"] for b in meanwhile)
    before = [b for b in buckets if start - 120_000_000 < b["at"] < start]
    assert {b["exchange"] for b in before} == {"alpha", "beta"}
    assert all(
        b["cross_is_on"] and b["lead_lag_ms"] is not None and b["cross_spread_bps"] is not None
        for b in before
    )


def test_no_delay_is_found_where_none_was_planted(store: Settings, tmp_path: Path) -> None:
    truths = tuple(t for t in TRUTHS if t not in ("lead_lag", "outage"))
    _build(tmp_path / "market", MarketConfig(minutes=16, book_levels=5, truths=truths))
    rows = _lags()
    assert len(rows) == 24
    for row in rows:
        with _named(row):
            assert row["runs"] >= 2
            assert all(abs(lag) <= STEP_MS for lag in row["grid"] + row["ticks"])
