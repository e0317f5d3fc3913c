"""The planted absorption and spoofing are found where they are, and nothing is found where nothing is planted."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from python_udfs.ingest.generator import GeneratedReader, MarketConfig, write
from python_udfs.ingest.loader import load
from python_udfs.settings import Settings
from tests.support import dbt, execute, query, us

SECOND_US = 10**6
MARKET = MarketConfig(minutes=15, book_levels=10)
# the same eight instruments a day later: another market, in which nothing is planted
BARREN = replace(MARKET, seed=8, start=MARKET.start + 86_400 * SECOND_US, truths=())
TICK = {"AAAUSDT": 0.1, "BBBUSDT": 0.01}  # of the instruments with a truth
# One price took in a minute what usually trades in one at all prices; a wall of 15 medians, and three times the usual prints.
ABSORBED, SPOOFED = 1, 45
Row = dict[str, Any]


@pytest.fixture(scope="module")
def truths(module_store: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("markets")
    for config in (MARKET, BARREN):
        write(config, folder / str(config.seed))
        load(GeneratedReader(folder / str(config.seed)))
    dbt("seed")
    execute("truncate table bucket_defaults", layer="features")
    # buckets of some ten seconds
    sizes = {"AAAUSDT": 24, "BBBUSDT": 170}
    execute(
        "insert into bucket_defaults values",
        [
            ("*", "*", s, "volume", "hour", 10, 20, q, q, q, 50, 20, 50, 24, 10**6, "")
            for s, q in sizes.items()
        ],
        layer="features",
    )
    dbt("run", select="+liquidity_vacuum +spoofing")
    found: dict[str, Any] = json.loads((folder / str(MARKET.seed) / "truths.json").read_text())
    return found


def _rows(condition: str) -> list[Row]:
    key = "exchange, market_type, symbol, bucket_id, bucket_ts_start, bucket_ts_end"
    return query(
        f"select exchange, market_type, symbol, {us('bucket_ts_start')} as start_us, {us('bucket_ts_end')} as end_us, "
        "absorption_score, absorption_price, absorption_side, wall_pull_count_ask, spoof_score_bid, spoof_score_ask "
        f"from absorption inner join spoofing using ({key}) where {condition} order by bucket_id, exchange, market_type, symbol"
    )


def _key(row: Row) -> tuple[str, str, str]:
    return row["exchange"], row["market_type"], row["symbol"]


def test_the_absorbing_level_is_found(truths: dict[str, Any]) -> None:
    planted = truths["absorption"]
    found = _rows(f"absorption_score >= {ABSORBED}")
    best = max(found, key=lambda row: row["absorption_score"])
    assert planted["start_us"] <= best["start_us"]
    assert best["end_us"] <= planted["end_us"] + 20 * SECOND_US, "the bucket in which it ends, at the latest"
    for row in found:
        # on its instrument, from its start until the minute in which it ended is out of sight, its side, its bin
        assert _key(row) == _key(planted)
        assert row["end_us"] > planted["start_us"]
        assert row["start_us"] < planted["end_us"] + 60 * SECOND_US
        assert (row["absorption_side"], planted["side"]) == (1, "sell")
        assert abs(row["absorption_price"] - float(planted["price"])) <= 1.001 * TICK[planted["symbol"]]


def test_bids_that_absorb_are_icebergs(truths: dict[str, Any]) -> None:
    """What was executed beyond what the bids displayed, as a share of the volume, is largest there by far."""
    planted = truths["absorption"]
    shares = {
        (r["exchange"], r["market_type"], r["symbol"], r["inside"]): r["share"]
        for r in query(
            "select exchange, market_type, symbol, sum(iceberg_volume_bid) / toFloat64(sum(volume)) as share, "
            f"{us('bucket_ts_start')} >= {planted['start_us']} and {us('bucket_ts_end')} <= {planted['end_us']} as inside "
            "from liquidity_vacuum inner join bucket_tapes using (exchange, market_type, symbol, bucket_id, bucket_ts_start, "
            "bucket_ts_end) group by all"
        )
    }
    there = shares.pop((*_key(planted), 1))
    assert there > 2 * max(v for k, v in shares.items() if k[:3] != _key(planted) or not k[3])


def test_the_spoofing_episode_is_found(truths: dict[str, Any]) -> None:
    planted = truths["spoofing"]
    pulled_at, printed_until = planted["end_us"], planted["then"]["end_us"]
    [pull] = [
        row
        for row in _rows("wall_pull_count_ask > 0")
        if _key(row) == _key(planted)
        and row["start_us"] <= pulled_at + SECOND_US
        and row["end_us"] >= pulled_at
    ]
    found = _rows(f"greatest(spoof_score_bid, spoof_score_ask) >= {SPOOFED}")
    assert found[0]["start_us"] <= pull["end_us"] + 5 * SECOND_US
    for row in found:
        assert _key(row) == _key(planted)
        assert (planted["book_side"], planted["then"]["side"]) == ("ask", "buy")
        assert row["spoof_score_ask"] >= SPOOFED > row["spoof_score_bid"]
        assert pulled_at < row["end_us"]
        assert row["start_us"] <= printed_until + SECOND_US


def test_nothing_is_found_where_nothing_is_planted(truths: dict[str, Any]) -> None:
    """A day later. (That nothing is found at the other instruments and times, the tests above say.)"""
    barren = f"bucket_ts_start >= fromUnixTimestamp64Micro({BARREN.start}, 'UTC')"
    [row] = query(
        f"select count() as n, countIf(absorption_score is null) as unknown from absorption where {barren}"
    )
    assert row["n"] > 300 > row["unknown"]
    assert not _rows(
        f"{barren} and (absorption_score >= {ABSORBED / 2} or greatest(spoof_score_bid, spoof_score_ask) >= {SPOOFED})"
    )
