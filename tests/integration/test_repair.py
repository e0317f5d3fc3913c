"""Whatever happened to some days, a repair leaves what a clean build leaves, bit for bit; a dry run says what it would do."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest
from typer.testing import CliRunner

from python_udfs import db
from python_udfs.cli import app
from python_udfs.dbt import Dbt, Result
from python_udfs.errors import UserError
from python_udfs.operations.repair import Change, Days, _dbt, is_left, repair
from python_udfs.settings import Settings, settings
from tests.oracles.clock import DAY_US, HOUR_US, SECOND_US, Trade
from tests.support import AAA, dbt, execute, insert_trades, insert_watermark, query, table_hash

MIDNIGHT = 1_767_571_200 * SECOND_US  # 2026-01-05 00:00:00 UTC
DAY = date(2026, 1, 5)
TABLES = (
    "bucket_config",
    "bucket_tapes",
    "trade_flow",
    "vpin_bars",
    "event_token_vocabulary",
    "markouts",
)
HISTORY = "drift_bins"  # grows run by run, by months: a repair must not touch it
SELECT = (*TABLES, "unified_buckets", "bucket_trades")
CLOCK = {"t_target_s": 60, "t_max_s": 600}
Hashes = dict[str, dict[str, Any]]


def _trades() -> list[Trade]:
    """The 4th, 5th and 7th, at noon and up to midnight, so that windows look back over it."""
    r = random.Random(4)
    out: list[Trade] = []
    for day in (0, 1, 3):
        for start in (12 * HOUR_US, 23 * HOUR_US + HOUR_US // 2):
            t = MIDNIGHT + (day - 1) * DAY_US + start
            for _ in range(150):
                t += r.randrange(1, 24 * SECOND_US)
                n = len(out) + 1
                side = r.choice(["buy", "sell"])
                out.append(Trade(t, n, str(n), r.randrange(1, 3 * 10**8), t, (100 + n % 9) * 10**8, side))
    return out


TRADES = _trades()
# a tenth of what happened on the fifth comes when the days after it are built
DELAYED = [t for t in TRADES if MIDNIGHT <= t.timestamp < MIDNIGHT + DAY_US and t.trade_seq % 10 == 3]


@pytest.fixture(scope="module")
def clean(module_store: Settings) -> Iterator[Hashes]:
    """What a build of everything leaves; the store holds one that lacked the delayed rows."""
    dbt("seed")
    insert_trades(TRADES)
    insert_watermark(AAA, "trades", MIDNIGHT + 10 * DAY_US)
    dbt("run", select=" ".join(f"+{name}" for name in SELECT), **CLOCK)
    execute(
        f"create table {HISTORY} (reference_to DateTime('UTC')) engine = MergeTree partition by toYYYYMM(reference_to) "
        "order by tuple() as select toDateTime('2026-01-05 01:00:00', 'UTC')",
        layer="features",
    )
    yield _hashes()


def _hashes() -> Hashes:
    return {t: table_hash(t) for t in TABLES}


def _changed(changes: tuple[Change, ...]) -> set[tuple[str, str]]:
    return {(c.table, c.part) for c in changes}


def test_corrupted_deleted_and_delayed_rows_are_repaired(clean: Hashes) -> None:
    assert all(h["n"] for h in clean.values()), clean
    # delayed: as if the store had been built without them, and they came now
    keys = ", ".join(str(t.trade_seq) for t in DELAYED)
    execute(f"alter table trades delete where trade_seq in ({keys}) settings mutations_sync = 2")
    dbt("run", select=" ".join(SELECT), start="2026-01-05", end="2026-01-06", **CLOCK)
    assert _hashes() != clean
    insert_trades(DELAYED)
    # corrupted
    on_the_day = "settings mutations_sync = 2"
    execute(
        f"alter table trade_flow update buy_volume = buy_volume + 1 where toDate(bucket_ts_start) = '2026-01-05' {on_the_day}",
        layer="features",
    )
    # deleted: half of one day, all of another
    execute(
        f"alter table bucket_tapes delete where bucket_id % 2 and toDate(bucket_ts_start) = '2026-01-05' {on_the_day}",
        layer="features",
    )
    execute("alter table vpin_bars drop partition id '20260105'", layer="features")
    execute("alter table event_token_vocabulary delete where 1 settings mutations_sync = 2", layer="features")
    # a row of a day without trades: nothing is built there, and it must go
    execute(
        "insert into bucket_config select * replace (valid_from + interval 1 day as valid_from, valid_to + interval 1 day "
        "as valid_to) from bucket_config where toDate(valid_from) = '2026-01-05' limit 1",
        layer="features",
    )
    broken = _hashes()

    dry = repair(DAY, DAY, dry_run=True, select=SELECT, variables=CLOCK)
    assert _hashes() == broken, "a dry run changes nothing"
    assert {
        ("trade_flow", "20260105"),
        ("bucket_tapes", "20260105"),
        ("vpin_bars", "20260105"),
        ("bucket_config", "20260106"),
        ("event_token_vocabulary", "all"),
    } <= _changed(dry.changes)
    [gone] = [c for c in dry.changes if (c.table, c.part) == ("vpin_bars", "20260105")]
    assert (gone.before, gone.after, gone.gone, gone.new) == (0, gone.after, 0, gone.after)
    assert not {c.part for c in dry.changes} - {"20260105", "20260106", "all"}

    words = [
        "repair",
        "--start",
        "2026-01-05",
        "--end",
        "2026-01-05",
        "--vars",
        "{t_target_s: 60, t_max_s: 600}",
    ]
    done = CliRunner().invoke(
        app, [*words, *(w for s in (*SELECT, HISTORY) for w in ("--select", s))], env={"COLUMNS": "150"}
    )
    assert done.exit_code == 0, done.output
    assert "verified and exchanged" in done.output
    assert f"left as they are (history, and what judges the present): {HISTORY}\n" in done.output
    assert query(f"select count() as n from {HISTORY}") == [{"n": 1}]
    assert _hashes() == clean
    again = repair(DAY, DAY, dry_run=True, select=SELECT, variables=CLOCK)
    assert again.changes == ()
    assert again.tables == len(TABLES)
    assert not query(
        f"select name from system.databases where name = '{settings().db_prefix}marketprism_repair'"
    )


def test_rebuilt_rows_that_fail_a_check_are_not_published(
    clean: Hashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids with a gap in what was rebuilt: nothing is exchanged, and live views run again."""
    execute(
        "create materialized view live_test refresh every 1 hour (n UInt64) engine = MergeTree order by n as select 1 as n",
        layer="features",
    )
    state = (
        "select status from system.view_refreshes where view = 'live_test' and database = currentDatabase()"
    )
    run = Dbt.run
    during = []

    def with_a_gap(self: Dbt, *words: str) -> list[Result]:
        results = run(self, *words)
        during.extend(query(state))
        with db.connect(f"{settings().db_prefix}marketprism_repair") as c:
            c.execute("alter table bucket_tapes delete where sequence = 1 settings mutations_sync = 2")
        return results

    monkeypatch.setattr(Dbt, "run", with_a_gap)
    try:
        with pytest.raises(UserError, match=r"bucket ids have gaps, .* nothing was exchanged"):
            repair(DAY, DAY, select=("bucket_tapes",), variables=CLOCK)
        assert during == [{"status": "Disabled"}]
        assert query(state) != [{"status": "Disabled"}]
    finally:
        execute("drop view live_test sync", layer="features")
    assert _hashes() == clean


def test_every_table_is_rebuilt_or_left_knowingly(clean: Hashes) -> None:
    models = _dbt(Days(DAY, date(2026, 1, 6)), CLOCK).relations()
    assert {name for name, model in models.items() if is_left(model)} == {
        "drift_bins",
        "feature_arrivals_stored",
        "feature_drift",
        "instrument_state_changes",
        "instrument_states",
        "prediction_drift",
        "source_health",
    }
    # what is rebuilt day by day is rebuilt by the range: else its days would be dropped and not come back
    strategies = {m.strategy for m in models.values() if m.materialized == "incremental" and not is_left(m)}
    assert strategies == {"insert_overwrite"}


def test_what_it_cannot_do_is_said(server: Settings) -> None:
    for words, message in (
        (["--start", "2026-01-06", "--end", "2026-01-05"], "the range ends before it starts"),
        (["--start", "soon", "--end", "2026-01-05"], "'soon' is no day"),
        (["--start", "2026-01-05", "--end", "2026-01-05", "--vars", "7"], "write a mapping"),
    ):
        done = CliRunner().invoke(app, ["repair", *words])
        assert done.exit_code == 1
        assert message in str(done.exception)
