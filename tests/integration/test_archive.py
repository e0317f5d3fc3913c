"""The archive: every row is seen once before, during and after its move, and nothing leaves hot unverified."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from clickhouse_driver import Client

from python_udfs.errors import UserError
from python_udfs.ingest.loader import load
from python_udfs.operations import archive
from python_udfs.operations.locks import BUILD, BusyError, held
from python_udfs.settings import Settings
from tests.integration.test_loader import Memory, batch
from tests.oracles.clock import HOUR_US, SECOND_US, Trade
from tests.support import dbt, execute, insert_trades, query, table_hash

Environment = Callable[..., AbstractContextManager[None]]
START = 1_767_571_200 * SECOND_US  # 2026-01-05 00:00:00 UTC
DAYS = 3
# the first two days and the whole of December are 30 days old, the third day and January are not
NOW = datetime(2026, 2, 6, 12, tzinfo=UTC)
SEEN = ("stg_trades", "stg_funding_rates")
RAW = ("trades", "funding_rates")


@pytest.fixture(scope="module")
def views(module_store: Settings, environment: Environment) -> Iterator[Settings]:
    dbt("seed", select="source_availability")
    dbt("run", select=" ".join(SEEN))
    with environment(archive_after_days="30"):
        yield module_store


def fill(s: Settings) -> None:
    """Three days of trades; a funding rate in December and one in January. Nothing archived."""
    for layer in ("hot", "cold"):
        for table in RAW:
            execute(f"truncate table {table}", layer=layer)
    for table in ("archive_moves", "archive_status"):
        execute(f"truncate table {table}", layer="cold")
    insert_trades(trade(i) for i in range(DAYS * 24))
    execute(
        "insert into funding_rates (timestamp, exchange, market_type, symbol, funding_rate, funding_time, mark_price, "
        "index_price, known_at, data_source) select t, 'alpha', 'linear', 'AAAUSDT', 0.0001, t, 0, 0, t, 'generator' "
        "from (select toDateTime64(arrayJoin(['2025-12-31 16:00:00', '2026-01-05 08:00:00']), 6, 'UTC') as t)"
    )


@pytest.fixture
def market(views: Settings) -> Settings:
    fill(views)
    return views


def trade(hour: int, **other: Any) -> Trade:
    at = START + hour * HOUR_US + hour
    return Trade(at, hour + 1, str(hour + 1), (1 + hour) * 10**8, at)._replace(**other)


def seen() -> dict[str, dict[str, Any]]:
    return {view: table_hash(view) for view in SEEN}


def counts(store: Settings, layer: Any, table: str) -> int:
    return int(query(f"select count() as n from {store.database(layer)}.{table} final")[0]["n"])


def run(**options: Any) -> archive.Archived:
    return archive.run(NOW, settle_s=0, **options)


def test_old_partitions_move_verified_and_once(market: Settings) -> None:
    before = seen()
    assert before["stg_trades"]["n"] == DAYS * 24
    done = run()
    assert [(m.data_type, f"{m.range_start:%m-%d}", m.rows_moved, m.state) for m in done.moves] == [
        ("trades", "01-05", 24, "done"),
        ("trades", "01-06", 24, "done"),
        ("funding_rates", "12-01", 1, "done"),
    ]
    assert (counts(market, "hot", "trades"), counts(market, "cold", "trades")) == (24, 48)
    assert (counts(market, "hot", "funding_rates"), counts(market, "cold", "funding_rates")) == (1, 1)
    assert seen() == before
    status = query(
        "select toString(archive_date) as day, data_type, exchange, records_archived as n, archive_size_bytes > 0 as sized "
        f"from {market.database('cold')}.archive_status final order by day"
    )
    assert [tuple(row.values()) for row in status] == [
        ("2025-12-31", "funding_rates", "alpha", 1, 1),
        ("2026-01-05", "trades", "alpha", 24, 1),
        ("2026-01-06", "trades", "alpha", 24, 1),
    ]
    assert run().moves == (), "twice moves nothing"
    assert seen() == before


def test_late_rows_are_seen_at_once_and_follow_at_the_next_run(market: Settings) -> None:
    run()
    insert_trades([trade(5, trade_id="500", trade_seq=500)])
    before = seen()
    assert before["stg_trades"]["n"] == DAYS * 24 + 1
    [move] = run().moves
    assert (move.rows_moved, counts(market, "hot", "trades")) == (1, 24)
    assert seen() == before
    [row] = query(
        f"select records_archived as n from {market.database('cold')}.archive_status final "
        "where data_type = 'trades' and archive_date = '2026-01-05'"
    )
    assert row["n"] == 25


def test_a_copy_that_differs_removes_nothing(market: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    before = seen()
    execute_ = Client.execute

    def losing(self: Client, sql: str, *args: Any, **kwargs: Any) -> Any:
        result = execute_(self, sql, *args, **kwargs)
        if sql.startswith("insert into `") and "trades` final" in sql:
            cold = f"`{market.database('cold')}`.`trades`"
            execute_(self, f"alter table {cold} delete where trade_seq = 7", settings={"mutations_sync": 2})
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Client, "execute", losing)
        for _ in range(2):  # nor does the next run, while it is so
            with pytest.raises(UserError, match=r"23 rows of 24, .* Nothing was removed"):
                run()
            assert counts(market, "hot", "trades") == DAYS * 24
            assert seen() == before
    assert len(run().moves) == 3
    assert seen() == before


class _KilledError(Exception):
    """Stands for kill -9 between two statements."""


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], bool]:
    """Runs the archive and ends it behind its k-th statement that changes something. False: it had fewer."""
    execute_ = Client.execute

    def run_until(k: int) -> bool:
        left = k

        def dies(self: Client, sql: str, *args: Any, **kwargs: Any) -> Any:
            nonlocal left
            result = execute_(self, sql, *args, **kwargs)
            if sql.startswith(("insert", "alter")):
                left -= 1
                if not left:
                    raise _KilledError
            return result

        with monkeypatch.context() as patch:
            patch.setattr(Client, "execute", dies)
            try:
                run()
            except _KilledError:
                return True
        return False

    return run_until


def test_a_kill_at_any_statement_loses_and_doubles_nothing(
    views: Settings, dying: Callable[[int], bool]
) -> None:
    for k in range(1, 100):
        fill(views)
        before = seen()
        if not dying(k):
            break
        assert seen() == before, f"killed behind statement {k}"
        dying(1)  # the run that finishes it is killed, too
        assert seen() == before, f"killed behind statement {k} and again"
        run()
        assert seen() == before
        assert (counts(views, "hot", "trades"), counts(views, "cold", "trades")) == (24, 48)
    assert k > 15


def test_what_was_archived_is_not_loaded_again(views: Settings, tmp_path: Path) -> None:
    fill(views)
    rows = batch("trades", 5, timestamp=START + 7_000, trade_id=[str(9_000 + i) for i in range(5)])
    assert load(Memory(tmp_path, [rows])).rows["trades"] == 5
    run()
    again = load(Memory(tmp_path, [rows], name="b"))
    assert (again.rows.get("trades", 0), again.duplicates["trades"]) == (0, 5)


def test_it_does_not_run_beside_a_build_nor_unasked(views: Settings, environment: Environment) -> None:
    fill(views)
    with held(BUILD, "dbt build"), pytest.raises(BusyError, match="archive: dbt build holds"):
        run()
    with environment(archive_after_days="0"):
        assert run() == archive.Archived((), "off: MARKETPRISM_ARCHIVE_AFTER_DAYS is 0")
    assert counts(views, "hot", "trades") == DAYS * 24
