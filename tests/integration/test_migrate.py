from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.ingest.records import COLUMNS
from python_udfs.migrate import MIGRATIONS, drop_all, migrate, migrate_command
from python_udfs.server import start, stop
from python_udfs.settings import Settings, settings

Environment = Callable[..., AbstractContextManager[None]]
OLD_TICKER = (
    "insert into tickers (timestamp, exchange, market_type, symbol, known_at, data_source, created_at) "
    "values ('2020-01-01', 'x', 'spot', 's', '2020-01-01', 'test', '2020-01-01')"
)


def tables(s: Settings, database: str) -> set[str]:
    with db.connect() as c:
        found = c.execute("select name from system.tables where database = %(d)s", {"d": database})
    return {name for (name,) in found}


def engine(database: str, table: str) -> str:
    with db.connect(database) as c:
        found = c.execute(
            "select engine_full from system.tables where database = %(d)s and name = %(t)s",
            {"d": database, "t": table},
        )
    return str(found[0][0])


def nothing(s: Settings) -> dict[str, list[int]]:
    """What migrate() returns when there is nothing to do."""
    return {s.database(layer): [] for layer in ("hot", "cold", "features", "serving")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the migrations that a test may change."""
    return Path(shutil.copytree(MIGRATIONS, tmp_path / "migrations"))


def test_every_table_is_where_it_belongs(store: Settings) -> None:
    raw = {*COLUMNS, "schema_versions"}
    assert tables(store, store.database("hot")) == raw | {"live_passes", "loads", "quarantine", "watermarks"}
    assert tables(store, store.database("cold")) == raw | {"archive_moves", "archive_status"}
    assert tables(store, store.database("features")) == set()
    assert tables(store, store.database("serving")) >= {"predictions", "schema_versions"}


def test_a_second_run_changes_nothing(store: Settings) -> None:
    with db.connect(store.database("hot")) as c:
        c.execute(OLD_TICKER)
        assert migrate() == nothing(store)
        assert c.execute("select count() from tickers") == [(1,)]


def test_the_first_run_says_what_it_applied_in_order(server: Settings, environment: Environment) -> None:
    prefix = server.db_prefix + "first_"
    with environment(db_prefix=prefix):
        try:
            applied = migrate()
        finally:
            drop_all()
    files = [int(path.name[:3]) for part in ("raw", "hot") for path in (MIGRATIONS / part).glob("*.sql")]
    assert applied[f"{prefix}marketprism_hot"] == sorted(files)
    assert applied[f"{prefix}marketprism_features"] == []
    assert set(applied[f"{prefix}marketprism_cold"]) > set(range(1, 11))


def test_an_edited_file_is_refused_by_name_and_nothing_is_applied(store: Settings, folder: Path) -> None:
    edited = folder / "raw" / "003_funding_rates.sql"
    edited.write_text(edited.read_text() + "-- a harmless remark\n")
    (folder / "hot" / "199_new.sql").write_text("create table new (a Int64) engine MergeTree order by a")
    with pytest.raises(
        UserError, match=r"003_funding_rates\.sql was edited after it was applied .*higher number"
    ):
        migrate(folder)
    assert "new" not in tables(store, store.database("hot"))
    assert migrate() == nothing(store)


def test_an_applied_file_that_is_gone_is_refused(store: Settings, folder: Path) -> None:
    (folder / "raw" / "010_book_depths.sql").unlink()
    with pytest.raises(UserError, match=r"migration 10 applied, and there is no file"):
        migrate(folder)


def test_a_new_raw_table_reaches_hot_and_cold_though_higher_versions_are_applied(
    store: Settings, folder: Path
) -> None:
    (folder / "raw" / "011_extra.sql").write_text("create table extra (a Int64) engine MergeTree order by a")
    assert migrate(folder) == {**nothing(store), store.database("hot"): [11], store.database("cold"): [11]}
    assert "extra" in tables(store, store.database("hot")) & tables(store, store.database("cold"))


@pytest.mark.parametrize("clash", ["hot/001_clash.sql", "raw/001_clash.sql"])
def test_two_files_of_one_version_are_refused(store: Settings, folder: Path, clash: str) -> None:
    (folder / clash).write_text("select 1")
    with pytest.raises(UserError, match=r"(same|Duplicate migration) version.* 1"):
        migrate(folder)


def test_a_file_without_a_version_is_refused(store: Settings, folder: Path) -> None:
    (folder / "hot" / "oops.sql").write_text("select 1")
    with pytest.raises(UserError, match=r"hot: .*numeric version.*oops\.sql"):
        migrate(folder)


def test_a_failing_file_is_named_and_can_be_mended(store: Settings, folder: Path) -> None:
    good, bad = folder / "hot" / "198_good.sql", folder / "hot" / "199_bad.sql"
    good.write_text("create table if not exists good (a Int64) engine MergeTree order by a")
    bad.write_text("create table if not exists bad (a Imt64) engine MergeTree order by a")
    with pytest.raises(UserError, match=r"199_bad\.sql fails in .*_hot: .*Imt64"):
        migrate(folder)
    bad.write_text("create table if not exists bad (a Int64) engine MergeTree order by a")
    assert migrate(folder)[store.database("hot")] == [199]
    assert tables(store, store.database("hot")) > {"good", "bad"}


def test_applied_but_not_recorded_is_applied_again_unharmed(store: Settings) -> None:
    """What is left when the process dies between a file's last statement and its record."""
    with db.connect(store.database("hot")) as c:
        c.execute(OLD_TICKER)
        c.execute("alter table schema_versions delete where version = 9 settings mutations_sync = 2")
        assert migrate() == {**nothing(store), store.database("hot"): [9]}
        assert c.execute("select count() from tickers") == [(1,)]


def test_kill_9_in_the_middle_of_a_file(store: Settings, folder: Path) -> None:
    (folder / "hot" / "199_slow.sql").write_text(
        "create table if not exists one (a Int64) engine MergeTree order by a;\n"
        "select sleep(1);\n"
        "create table if not exists two (a Int64) engine MergeTree order by a;\n"
    )
    code = (
        f"from pathlib import Path; from python_udfs.migrate import migrate; migrate(Path({str(folder)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ))
    deadline = time.monotonic() + 30
    while "one" not in tables(store, store.database("hot")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "two" not in tables(store, store.database("hot"))
    assert migrate(folder)[store.database("hot")] == [199]
    assert "two" in tables(store, store.database("hot"))
    assert migrate(folder) == nothing(store)


def test_ttl_is_set_changed_and_removed(store: Settings, environment: Environment) -> None:
    hot, cold = store.database("hot"), store.database("cold")
    with environment(hot_ttl_days="30", cold_ttl_days="365"):
        migrate()
        for table in COLUMNS:
            assert "TTL toDateTime(created_at) + toIntervalDay(30) SETTINGS" in engine(hot, table)
            assert "TTL toDateTime(created_at) + toIntervalDay(365) SETTINGS" in engine(cold, table)
        assert "TTL" not in engine(hot, "loads")
        assert "TTL" not in engine(hot, "quarantine")
    with environment(hot_ttl_days="7", cold_ttl_days="0"):
        migrate()
        assert "toIntervalDay(7)" in engine(hot, "trades")
        assert "TTL" not in engine(cold, "trades")
        with db.connect(hot) as c:
            c.execute(OLD_TICKER)
            c.execute(OLD_TICKER.replace("'2020-01-01')", "now64())").replace("'s'", "'fresh'"))
            c.execute("optimize table tickers final")
            assert c.execute("select symbol from tickers") == [("fresh",)]
    migrate()
    assert not [table for table in COLUMNS if "TTL" in engine(hot, table)]


def test_a_ttl_that_is_right_is_not_set_again(store: Settings, environment: Environment) -> None:
    """Setting it would make ClickHouse rewrite every part."""
    with environment(hot_ttl_days="30"), db.connect() as c:
        count = "select count() from system.query_log where query_kind = 'Alter' and has(databases, %(d)s)"
        database = {"d": store.database("hot")}
        migrate()
        c.execute("system flush logs")
        before = c.execute(count, database)
        assert before[0][0] >= 10
        migrate()
        c.execute("system flush logs")
        assert c.execute(count, database) == before


def test_prefixes_do_not_meet(store: Settings, environment: Environment) -> None:
    with db.connect(store.database("hot")) as c:
        c.execute(OLD_TICKER)
        with environment(db_prefix=store.db_prefix + "b_"):
            migrate()
            assert settings().database("hot") != store.database("hot")
            with db.connect(settings().database("hot")) as other:
                assert other.execute("select count() from tickers") == [(0,)]
            assert len(drop_all()) == 4
            gone = c.execute("select name from system.databases where startsWith(name, %(p)s)",
                             {"p": settings().db_prefix})  # fmt: skip
            assert gone == []
        assert c.execute("select count() from tickers") == [(1,)]


def test_drop_all_spares_the_real_databases(server: Settings, environment: Environment) -> None:
    with environment(db_prefix=""), pytest.raises(UserError, match=r"would drop marketprism_hot, .*force"):
        drop_all()


def test_drop_all_is_safe_to_repeat(store: Settings) -> None:
    drop_all()
    assert drop_all() == [store.database(layer) for layer in ("hot", "cold", "features", "serving")]


def test_user_and_password_are_honoured(
    tmp_path: Path, environment: Environment, free_ports: Callable[[int], list[int]]
) -> None:
    users = tmp_path / "clickhouse" / "config" / "users.d"
    users.mkdir(parents=True)
    (users / "analyst.xml").write_text(
        "<clickhouse><users><analyst><password>it's &lt;secret&gt;</password>"
        "<networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota></analyst></users></clickhouse>"
    )
    port, http_port = free_ports(2)
    own = {"data_dir": str(tmp_path), "host": "127.0.0.1", "port": str(port), "http_port": str(http_port)}
    plain = {"target": "local", "user": "default", "password": "", "secure": "0", "db_prefix": "p_"}
    with environment(**own, **plain):
        start()
        try:
            with environment(target="server", user="analyst", password="it's <secret>"):
                assert migrate()["p_marketprism_serving"]
                assert len(drop_all()) == 4
            with (
                environment(target="server", user="analyst", password="wrong"),
                pytest.raises(UserError, match="refuses user 'analyst': check MARKETPRISM_USER and"),
            ):
                migrate()
        finally:
            stop()


def test_no_server_says_what_to_do(environment: Environment, free_ports: Callable[[int], list[int]]) -> None:
    with environment(target="local", host="127.0.0.1", port=str(free_ports(1)[0]), db_prefix="n_"):
        with pytest.raises(UserError, match="make up"):
            migrate()
        with pytest.raises(UserError, match="make up"):
            drop_all()


def test_the_command_says_what_it_did(store: Settings) -> None:
    app = typer.Typer()
    app.command()(migrate_command)
    shown = CliRunner().invoke(app, []).output
    assert f"{store.database('hot')}: up to date" in shown
    again = CliRunner().invoke(app, ["--drop"]).output
    assert f"dropped {store.database('hot')}" in again
    assert f"{store.database('serving')}: applied [1" in again
