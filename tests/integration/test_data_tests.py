"""The data tests see what they are there for: each planted defect fails the tests that name it."""

from __future__ import annotations

import random

import pytest
from dbt.cli.main import dbtRunner
from dbt.node_types import NodeType

from python_udfs.settings import REPOSITORY, Settings
from tests.oracles.clock import SECOND_US, Trade
from tests.support import AAA, dbt, execute, insert_books, insert_trades, insert_watermark, query

START = 1_767_571_200 * SECOND_US  # 2026-01-05 00:00:00 UTC
E8 = 10**8
PERP = ("binance", "inverse", "BTCUSD_PERP")

# What must fail (how the tests' names begin), the table that is damaged (and put back after), and the statements that do it.
Defect = tuple[set[str], str, list[str]]
LAST = "bucket_id = (select max(bucket_id) from bucket_tapes where symbol = 'AAAUSDT') and symbol = 'AAAUSDT'"
SECOND = "bucket_id = (select min(bucket_id) + 1 from bucket_tapes where symbol = 'AAAUSDT') and symbol = 'AAAUSDT'"
TAPE = ("tape_us", "tape_seq", "tape_id", "tape_price", "tape_quantity", "tape_is_buy")


def _update(table: str, change: str, where: str = SECOND) -> str:
    return f"alter table {table} update {change} where {where} settings mutations_sync = 1"


def _delete(table: str, where: str = SECOND) -> str:
    return f"alter table {table} delete where {where} settings mutations_sync = 1"


DEFECTS: dict[str, Defect] = {
    "a bucket is missing": (
        {"every_on_time_trade_is_in_exactly_one_bucket", "sequential_values_unified_buckets"}, "bucket_tapes", [_delete("bucket_tapes")],
    ),
    "the first bucket is missing": (
        {"every_on_time_trade_is_in_exactly_one_bucket", "every_anchor_starts_with_sequence_zero"}, "bucket_tapes",
        [_delete("bucket_tapes", "sequence = 0 and symbol = 'AAAUSDT'")],
    ),
    "a bucket is there twice": (
        {"every_on_time_trade_is_in_exactly_one_bucket", "unique_combination_of_columns_bucket_tapes", "sequential_values_unified_buckets"},
        "bucket_tapes", [f"insert into bucket_tapes select * from bucket_tapes where {SECOND}"],
    ),
    "a trade is lost": (
        {"every_on_time_trade_is_in_exactly_one_bucket"}, "bucket_tapes",
        [_update("bucket_tapes", "trade_count = trade_count - 1, " + ", ".join(f"{c} = arrayPopBack({c})" for c in TAPE))],
    ),
    "a buy became a sell": (
        {"every_on_time_trade_is_in_exactly_one_bucket", "trade_flow_totals_equal_those_of_its_trades"}, "bucket_tapes",
        [_update("bucket_tapes", "tape_is_buy = arrayMap(b -> 1 - b, tape_is_buy)")],
    ),
    "a late trade is in a bucket": (
        {"late_trades_are_in_no_bucket", "every_on_time_trade_is_in_exactly_one_bucket"}, "bucket_tapes",
        [_update("bucket_tapes", "tape_us = arrayPushBack(tape_us, {late_us}), tape_seq = arrayPushBack(tape_seq, 9999), tape_id = "
                 "arrayPushBack(tape_id, ''), tape_price = arrayPushBack(tape_price, 100), tape_quantity = arrayPushBack(tape_quantity, 1), "
                 "tape_is_buy = arrayPushBack(tape_is_buy, 1)")],
    ),
    "a bucket ends late": (
        {"a_bucket_ends_where_its_configuration_says", "mutually_exclusive_ranges_unified_buckets"}, "bucket_tapes",
        [_update("bucket_tapes", "bucket_ts_end = bucket_ts_end + toIntervalSecond(3)")],
    ),
    "a bucket is too full": (
        {"a_bucket_ends_where_its_configuration_says"}, "bucket_config", [_update("bucket_config", "q_bucket = q_bucket / 2", "1")],
    ),
    "volume is wrong": (
        {"trade_flow_totals_equal_those_of_its_trades", "expression_is_true_trade_flow_abs"}, "trade_flow",
        [_update("trade_flow", "volume = volume + 1")],
    ),
    "an inverse contract is worth a coin": (
        {"trade_flow_totals_equal_those_of_its_trades"}, "trade_flow",
        [_update("trade_flow", "notional = volume", "market_type = 'inverse'")],
    ),
    "a book from the future": (
        {"the_book_at_the_end_is_the_last_one_known"}, "top_of_book", [_update("top_of_book", "mid_close = mid_close + 1")],
    ),
    "an old book is taken for a live one": (
        {"the_book_at_the_end_is_the_last_one_known"}, "top_of_book", [_update("top_of_book", "mid_close = 100", LAST)],
    ),
    "one-sided trading is more than all": (
        {"accepted_range_vpin_vpin"}, "vpin", [_update("vpin", "vpin = 1.5")],
    ),
    "a feature row is missing": ({"equality_feature_vector_v1"}, "feature_vector_v1", [_delete("feature_vector_v1")]),
    "a label against its return": (
        {"expression_is_true_bucket_labels_label_cls_1_"}, "bucket_labels",
        [_update("bucket_labels", "label_cls_1 = 1, label_ret_ps_1 = -0.5")],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def built(module_store: Settings) -> int:
    """A small market, built, with every data test passing. The event time of the late trade of AAA."""
    r, late_at = random.Random(3), {}
    for instrument in (AAA, PERP):
        t, trades = START, []
        for i in range(400):
            t += r.choice([0, 1000, r.randrange(1, 900_000)])
            trades.append(
                Trade(
                    t,
                    i + 1,
                    str(i + 1),
                    r.randrange(1, 2 * E8),
                    t,
                    (100 + i % 7) * E8,
                    r.choice(["buy", "sell"]),
                )
            )
        late = late_at[instrument] = trades[30].timestamp
        insert_trades([*trades, Trade(late, 9999, "9999", E8, late + 10**7, 100 * E8, "buy")], instrument)
        # the book falls silent long before the last bucket ends
        insert_books(
            [
                (u, n, 99 * E8 + n * 10**6, 101 * E8 + n * 10**6, E8, 2 * E8, u)
                for n, u in enumerate(range(START, t - 30 * SECOND_US, SECOND_US))
            ],
            instrument,
        )
        insert_watermark(instrument, "trades", t + 3600 * SECOND_US)
    dbt("seed")
    execute("truncate table bucket_defaults", layer="features")
    execute(
        "insert into bucket_defaults values",
        [("*", "*", "*", "volume", "hour", 30, 30, 5, 5, 5, 50, 20, 50, 24, 10**6, "")],
        layer="features",
    )
    dbt("build", "--exclude", "resource_type:seed")
    assert query(
        "select countIf(cut_trigger = 'volume') > 20 as full, count() > 20 as many from unified_buckets"
    ) == [{"full": 1, "many": 1}]
    return late_at[AAA]


def _failed(s: Settings, *names: str) -> set[str]:
    """The data tests that fail, of those whose names begin so (of all if none is given)."""
    target = str(s.data_dir / "dbt" / s.db_prefix)
    select = ["--select", *(f"{name}*" for name in names)] if names else []
    words = [
        "test",
        *select,
        "--exclude",
        "test_type:unit",
        "--quiet",
        "--target-path",
        target,
        "--log-path",
        target,
    ]
    folders = ["--project-dir", str(REPOSITORY), "--profiles-dir", str(REPOSITORY)]
    results = dbtRunner().invoke([*words, *folders]).result.results
    results = [r for r in results if r.node.resource_type == NodeType.Test]
    # a warning is right here: this market's books fall silent
    assert [r.message for r in results if r.status not in ("pass", "fail", "warn")] == []
    return {r.node.name for r in results if r.status == "fail"}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_fails_its_test(module_store: Settings, built: int, name: str) -> None:
    expected, table, statements = DEFECTS[name]
    execute(f"create table kept as {table}", layer="features")
    execute(f"insert into kept select * from {table}", layer="features")
    for statement in statements:
        execute(statement.replace("{late_us}", str(built)), layer="features")
    failed = _failed(module_store, *expected)
    execute(f"truncate table {table}", layer="features")
    execute(f"insert into {table} select * from kept", layer="features")
    execute("drop table kept sync", layer="features")
    assert {e for e in expected if any(f.startswith(e) for f in failed)} == expected


def test_nothing_fails_without_a_defect(module_store: Settings, built: int) -> None:
    assert _failed(module_store) == set()
