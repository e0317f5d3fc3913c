"""The suite's own test: leaks are planted into copies of the project, one by one, and have to be found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from python_udfs.settings import Settings
from tests.leakage.build import building, copy_project, patch
from tests.leakage.checks import Violation, assert_none, compare, dependencies, forbidden, inputs, parts
from tests.leakage.conftest import Story, generated, prepared
from tests.leakage.variants import grow

MODELS = "dbt_project/models"
TAPES = f"{MODELS}/buckets/bucket_tapes.sql"
CONFIG = f"{MODELS}/buckets/bucket_config.sql"
TOP_OF_BOOK = f"{MODELS}/features/order_book/top_of_book.sql"
IMPACT = f"{MODELS}/features/price_impact/price_impact.sql"
NEXT_VOLUME = f"{MODELS}/features/trade_flow/next_volume.sql"
FEATURE_VECTOR = f"{MODELS}/serving/feature_vector_v1.sql"
DERIVATIVES = f"{MODELS}/features/derivatives"
LABELS = f"{MODELS}/labels/bucket_labels.sql"

INSTRUMENT = "partition by exchange, market_type, symbol"
AND_THE_NEXT = f"over ({INSTRUMENT} order by bucket_id rows between current row and 1 following)"

# The clock, version 1 of the features, the labels: a leak into any of them is seen without the other families.
CORE = ("+feature_vector_v1", "+bucket_labels", "bucket_trades")


@dataclass(frozen=True, slots=True)
class Leak:
    """`patches`: (file, old text, new text); without an old text a new file. `found_by`: at least these
    (check, table); a table stands for its horizons, too. `models`: what has to be built to see it."""

    patches: list[tuple[str, str, str]]
    found_by: set[tuple[str, str]]
    models: tuple[str, ...] = CORE


LEAKS = {
    "as_of_reads_5_seconds_ahead": Leak(
        [
            (
                "macros/time/as_of.sql",
                "l.{{ at }} >= r.known_at",
                "l.{{ at }} + toIntervalSecond(5) >= r.known_at",
            )
        ],
        {("inputs", "leakage_book_inputs"), ("cut", "top_of_book"), ("shuffle", "top_of_book")},
    ),
    "as_of_off_by_one_bucket": Leak(
        [
            (
                TOP_OF_BOOK,
                "        bucket_ts_end\n    from {{ new_buckets",
                f"        bucket_ts_end,\n        leadInFrame(bucket_ts_end, 1, bucket_ts_end) {AND_THE_NEXT}"
                " as next_end\n    from {{ new_buckets",
            ),
            (TOP_OF_BOOK, "prefix='book',", "prefix='book', at='next_end',"),
        ],
        {
            ("inputs", "leakage_book_inputs"),
            ("cut", "top_of_book"),
            ("shuffle", "top_of_book"),
            ("forbidden", TOP_OF_BOOK),
        },
    ),
    "features_of_the_next_bucket": Leak(
        [
            (
                FEATURE_VECTOR,
                "inner join {{ ref(model) }} as",
                "inner join (select * replace (toUInt64(bucket_id - 1) as bucket_id) from {{ ref(model) }}) "
                "as",
            )
        ],
        {("cut", "feature_vector_v1"), ("shuffle", "feature_vector_v1")},
    ),
    "late_trades_in_the_clock": Leak(
        [(TAPES, "        is_on_time\n", "        true\n")],
        {
            ("inputs", "leakage_trade_inputs"),
            ("cut", "bucket_tapes"),
            ("shuffle", "bucket_tapes"),
            ("late", "bucket_tapes"),
        },
    ),
    "book_updates_by_event_time": Leak(
        [(TOP_OF_BOOK, "and u.known_at <= e.bucket_ts_end", "and u.timestamp <= e.bucket_ts_end")],
        {("inputs", "leakage_book_updates"), ("cut", "top_of_book"), ("late", "top_of_book")},
    ),
    "a_window_with_following_rows": Leak(
        [("macros/time/past.sql", "preceding and current row", "preceding and 1 following")],
        {("forbidden", "macros/time/past.sql"), ("cut", "vpin"), ("shuffle", "realized_variance")},
    ),
    "a_window_over_everything": Leak(
        [
            (
                IMPACT,
                "varPopStableIf(signed_volume, mid_change is not null) over {{ past(n) }}",
                f"varPopStableIf(signed_volume, mid_change is not null) over ({INSTRUMENT})",
            )
        ],
        {("forbidden", IMPACT), ("cut", "price_impact"), ("shuffle", "price_impact")},
    ),
    "calibration_from_its_own_anchor": Leak(
        [(CONFIG, "range(1, toUInt32(", "range(0, toUInt32(")],
        {("cut", "bucket_config"), ("shuffle", "bucket_config"), ("cut", "bucket_tapes")},
    ),
    "an_open_bucket_published": Leak(
        [(TAPES, "or f.watermark > bucket_ts_end", "or f.watermark > bucket_ts_start")],
        {("cut", "bucket_tapes"), ("cut", "feature_vector_v1")},
    ),
    "a_label_as_a_feature": Leak(
        [
            (FEATURE_VECTOR, "p.amihud as amihud", "l.label_ret_ps_1 as amihud"),
            (
                FEATURE_VECTOR,
                "from flow as f\n",
                "from flow as f\ninner join {{ ref('bucket_labels') }} as l\n    on f.exchange = l.exchange "
                "and f.market_type = l.market_type and f.symbol = l.symbol and f.bucket_id = l.bucket_id\n",
            ),
        ],
        {
            ("dependencies", "feature_vector"),
            ("cut", "feature_vector_v1"),
            ("shuffle", "feature_vector_v1"),
        },
    ),
    "a_label_said_to_be_known_early": Leak(
        [(LABELS, "end_{{ h }}s as label_known_at_{{ h }}s", "end_5s as label_known_at_{{ h }}s")],
        {("cut", "bucket_labels"), ("shuffle", "bucket_labels")},
    ),
    "a_label_said_to_be_known_at_once": Leak(
        [(LABELS, "end_{{ h }}s as label_known_at_{{ h }}s", "bucket_ts_end as label_known_at_{{ h }}s")],
        {("inputs", "leakage_label_times"), ("cut", "bucket_labels")},
        (*CORE, "+training_set"),
    ),
    "a_label_before_its_horizon_is_over": Leak(
        [(LABELS, "    where r.target_at <= b.complete_to\n", "")],
        {("cut", "bucket_labels")},
    ),
    "a_new_model_that_nobody_named": Leak(
        [
            (
                NEXT_VOLUME,
                "",
                "select exchange, market_type, symbol, bucket_id, bucket_ts_end, "
                f"leadInFrame(volume) {AND_THE_NEXT} as next_volume from {{{{ ref('trade_flow') }}}}",
            )
        ],
        {("forbidden", NEXT_VOLUME), ("cut", "next_volume"), ("shuffle", "next_volume")},
        (*CORE, "next_volume"),
    ),
}

# Leaks into families that the core does not have: each is built with what it needs.
LEAKS |= {
    "a_slow_series_by_event_time": Leak(
        [
            (
                f"{DERIVATIVES}/slow_series_asof.sql",
                "    s.known_at as known_at,",
                "    s.timestamp as known_at,",
            )
        ],
        {("cut", "open_interest"), ("shuffle", "open_interest")},
        ("+open_interest",),
    ),
    "levels_of_a_run_to_come": Leak(
        [
            (
                f"{MODELS}/features/footprint/footprint_levels.sql",
                "        run_ts as timestamp,\n        known_at\n",
                "        run_ts as timestamp,\n        known_at - toIntervalMinute(5) as known_at\n",
            )
        ],
        {("cut", "footprint_levels"), ("shuffle", "footprint_levels")},
        ("+footprint_levels",),
    ),
    "a_minute_before_it_is_over": Leak(
        [
            (
                f"{MODELS}/features/time_buckets/trade_minutes.sql",
                "where f.trades_passed >= known_at",
                "where f.trades_passed >= m.minute_start",
            )
        ],
        {("cut", "trade_minutes")},
        ("+trade_minutes",),
    ),
    "a_book_of_after_the_bucket": Leak(
        [
            (
                f"{MODELS}/features/order_book/book_dynamics.sql",
                "and u.known_at <= e.bucket_ts_end",
                "and u.timestamp <= e.bucket_ts_end",
            )
        ],
        {("cut", "book_dynamics"), ("late", "book_dynamics")},
        ("+book_dynamics",),
    ),
    "a_markout_said_to_be_known_at_once": Leak(
        [
            (
                f"{MODELS}/labels/markouts.sql",
                "u.bucket_ts_end + toIntervalSecond({{ h }}) as label_known_at_markout",
                "u.bucket_ts_end + toIntervalSecond(0) as label_known_at_markout",
            )
        ],
        {("cut", "markouts")},
        ("+markouts",),
    ),
}


@pytest.fixture(scope="module")
def raw(module_store: Settings, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """The variants' raw rows, all late ones included: every mutant builds from nothing."""
    loaded = generated()
    project = copy_project(tmp_path_factory.mktemp("project"))
    story = prepared(building(project, tmp_path_factory.mktemp("dbt")), loaded, only=("END", "MID", "HOUR"))
    grow(story.variants)
    return story


def _violations(raw: Story, project: Path, target: Path, models: Sequence[str] = CORE) -> list[Violation]:
    """All checks on a build of some models of `project` and what they are made of."""
    build = building(project, target, instead_of=raw.build)
    built = {r.node.alias for r in build.dbt("run", "--select", *models)}
    return [
        *forbidden(project),
        *dependencies(build),
        *inputs(build, built),
        *compare(build, raw.of("cut", "shuffle", "late"), only=built).violations,
    ]


def test_nothing_is_found_where_nothing_was_planted(raw: Story, tmp_path: Path) -> None:
    assert_none(_violations(raw, raw.build.project, tmp_path / "target"))


@pytest.mark.parametrize("name", LEAKS)
def test_a_planted_leak_is_found(raw: Story, tmp_path: Path, name: str) -> None:
    leak = LEAKS[name]
    project = copy_project(tmp_path / "project")
    for file, old, new in leak.patches:
        if old:
            patch(project, file, old, new)
        else:
            (project / file).write_text(new)
    found = {
        (v.check, v.table.split(":")[0]) for v in _violations(raw, project, tmp_path / "target", leak.models)
    }
    assert leak.found_by <= found, f"not found: {leak.found_by - found}; found: {sorted(found)}"


def test_a_model_must_say_when_its_rows_are_known(raw: Story, tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    (project / MODELS / "features/trade_flow/daily_volume.sql").write_text(
        "select exchange, market_type, symbol, toDate(bucket_ts_end) as day, sum(volume) as volume "
        "from {{ ref('trade_flow') }} group by all"
    )
    build = building(project, tmp_path / "target", instead_of=raw.build)
    build.dbt("run")
    with pytest.raises(AssertionError, match=r"when is a row of \['daily_volume'\] known"):
        parts(build)
