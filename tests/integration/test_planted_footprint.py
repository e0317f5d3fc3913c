"""The planted absorption is found where it is, and nowhere else; the cron job finds what a build finds."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from python_udfs.cli import app
from python_udfs.ingest.generator import GeneratedReader, MarketConfig, write
from python_udfs.ingest.loader import load
from python_udfs.jobs import candidates
from python_udfs.operations.locks import BUILD, BUSY, held
from python_udfs.settings import Settings
from tests.support import dbt, query, table_hash, us

CONFIG = MarketConfig(
    minutes=50, trades_per_second=20, sparse_books=True, book_levels=1, truths=("absorption",)
)
BARE = MarketConfig(minutes=50, trades_per_second=20, sparse_books=True, book_levels=1, truths=())
TABLES = ("footprint_bin_minutes", "footprint_windows", "footprint_clusters")


def _build(config: MarketConfig, folder: Path) -> None:
    write(config, folder)
    load(GeneratedReader(folder))
    dbt("seed")
    dbt("run", select="+footprint_candidates +footprint_clusters")


@pytest.fixture(scope="module")
def truth(module_store: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("planted")
    _build(CONFIG, folder)
    found: dict[str, Any] = json.loads((folder / "truths.json").read_text())["absorption"]
    return found


def _absorptions() -> list[dict[str, Any]]:
    return query(
        f"select exchange, market_type, symbol, window_h, {us('run_ts')} as run, toFloat64(price_bin) as price_bin, "
        "candidate_volume, candidate_delta from footprint_candidates where is_absorption order by run, window_h"
    )


def test_every_run_after_it_finds_the_planted_level(truth: dict[str, Any]) -> None:
    key = tuple(truth[n] for n in ("exchange", "market_type", "symbol"))
    runs = query(
        f"select {us('run_ts')} as run, cluster_prices, cluster_signs from footprint_clusters where run_ts >= "
        "fromUnixTimestamp64Micro(%(end)s, 'UTC') and (exchange, market_type, symbol) = %(key)s",
        end=truth["end_us"],
        key=key,
    )
    assert len(runs) > 5
    bin_width = 0.1  # a tick of 0.1 is 0.8 bp of the price
    near = [a for a in _absorptions() if abs(a["price_bin"] - float(truth["price"])) < 1.5 * bin_width]
    for run in runs:
        own = [a for a in near if a["run"] == run["run"]]
        assert {a["window_h"] for a in own} == {1, 4, 24}, run
        # all that was sold into it
        assert max(-a["candidate_delta"] for a in own) > 0.95 * float(truth["quantity"])
        at = [abs(p - float(truth["price"])) <= bin_width for p in run["cluster_prices"]]
        # sold into
        assert -1 in [s for s, is_at in zip(run["cluster_signs"], at, strict=True) if is_at]
    assert all((a["exchange"], a["market_type"], a["symbol"]) == key for a in near)


def test_nothing_is_found_before_it_or_elsewhere(truth: dict[str, Any]) -> None:
    key = tuple(truth[n] for n in ("exchange", "market_type", "symbol"))
    for a in _absorptions():
        assert (a["exchange"], a["market_type"], a["symbol"]) == key, a
        assert a["run"] > truth["start_us"], a
        assert abs(a["price_bin"] - float(truth["price"])) < 0.15, a


def test_nothing_is_found_where_nothing_is_planted(store: Settings, tmp_path: Path) -> None:
    _build(BARE, tmp_path)
    assert query("select count() as n from footprint_windows where bin_count > 20")[0]["n"] > 100
    assert _absorptions() == []


def test_refreshed_run_by_run_equals_built_at_once(truth: dict[str, Any]) -> None:
    """The job, called twice in the middle of the recording and once after it, makes the build's bytes."""
    built = {t: table_hash(t) for t in TABLES}
    with candidates.db.connect(candidates.settings().database("features")) as c:
        for table in TABLES:
            c.execute(f"truncate table {table}")
    now = datetime.fromtimestamp(CONFIG.start / 1e6 + 23 * 60 + 7, UTC)
    first, again = candidates.refresh(now), candidates.refresh(now)
    assert first.run_ts == now.replace(minute=50, second=0)
    assert set(first.newest.values()) == {first.run_ts}
    assert first.new_runs == 8 * 4
    assert not first.stale
    assert again.new_runs == 0
    # half a year later: the rest is made, and nothing is fresh
    late = candidates.refresh()
    assert (late.new_runs, len(late.stale), late.levels) == (8 * 5, 8, 0)
    assert {t: table_hash(t) for t in TABLES} == built


def test_a_refresh_during_a_build_is_refused(server: Settings) -> None:
    with held(BUILD, "dbt build"):
        result = CliRunner().invoke(app, ["refresh-candidates"])
    assert result.exit_code == BUSY
    assert "refresh-candidates: dbt build holds" in result.output


@pytest.mark.parametrize(
    ("now", "message"), [("soon", "write a time such as"), ("latest", "there are no trades")]
)
def test_what_it_cannot_do_is_said(store: Settings, now: str, message: str) -> None:
    result = CliRunner().invoke(app, ["refresh-candidates", "--now", now])
    assert result.exit_code == 1
    assert message in str(result.exception)


def test_the_online_form_equals_the_bucket(truth: dict[str, Any]) -> None:
    """`footprint_online` at a bucket's end and mid gives that bucket's row, bit for bit."""
    dbt("run", select="+footprint_levels")
    columns = (
        "resistance_above, support_below, nearest_resistance_distance_bps, nearest_support_distance_bps, "
        "resistance_support_log_ratio, level_delta_balance, level_count, level_run_age_s"
    )
    rows = query(
        f"select exchange, market_type, symbol, {us('bucket_ts_end')} as at, mid_close, ({columns}) as row "
        "from footprint_levels inner join top_of_book using (exchange, market_type, symbol, bucket_id) "
        "where level_count > 0 and mid_close is not null order by cityHash64(bucket_id) limit 20"
    )
    assert rows
    for r in rows:
        [online] = query(
            f"select ({columns}) as row from footprint_online(exchange = %(x)s, market_type = %(m)s, symbol = %(s)s, "
            "mid = %(mid)s, at = fromUnixTimestamp64Micro(%(at)s, 'UTC'))",
            x=r["exchange"],
            m=r["market_type"],
            s=r["symbol"],
            mid=r["mid_close"],
            at=r["at"],
        )
        assert online["row"] == r["row"]
    stale = query(
        "select * from footprint_online(exchange = 'alpha', market_type = 'linear', symbol = 'AAAUSDT', mid = 1236., "
        "at = toDateTime64('2026-02-01 00:00:00', 6, 'UTC'))"
    )
    assert stale == []


def test_levels_of_an_old_run_are_null_and_listed(truth: dict[str, Any]) -> None:
    """No run after 22:50: what ends after 23:00 knows no level, and monitoring says where."""
    dbt(
        "run",
        select="+footprint_levels stale_candidates",
        full_refresh=True,
        run_ts="2026-01-04 22:50:00",
    )
    fresh = "bucket_ts_end >= '2026-01-04 22:35:00' and bucket_ts_end <= '2026-01-04 23:00:00'"
    [row] = query(
        f"select countIf({fresh}) as fresh, countIf(not ({fresh})) as stale, "
        f"countIf({fresh} and (level_run_age_s is null or level_run_age_s > 600)) as lost, "
        f"countIf(not ({fresh}) and (level_run_age_s is not null or level_count is not null or resistance_above is not null "
        "or support_below is not null or nearest_resistance_distance_bps is not null or level_delta_balance is not null "
        "or nearest_support_distance_bps is not null or resistance_support_log_ratio is not null)) as made_up "
        "from footprint_levels"
    )
    assert row["fresh"] > 0
    assert row["stale"] > 0
    assert (row["lost"], row["made_up"]) == (0, 0)
    listed = query(
        "select toString(hour) as hour, buckets, stale_buckets from stale_candidates order by hour"
    )
    assert len(listed) == 16
    assert all(r["stale_buckets"] < r["buckets"] for r in listed[:8])
    assert all(r["hour"] == "2026-01-04 23:00:00" for r in listed[8:])
    assert sum(r["stale_buckets"] for r in listed) == row["stale"]
