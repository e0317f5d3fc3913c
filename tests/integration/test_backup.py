"""A backup comes back elsewhere as it was, is checked, and never lands on somebody's data."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from python_udfs import db
from python_udfs.cli import app
from python_udfs.errors import UserError
from python_udfs.migrate import drop_all, migrate
from python_udfs.operations import backup
from python_udfs.server import start, stop
from python_udfs.settings import Settings, settings
from tests.oracles.clock import SECOND_US, Trade
from tests.support import execute, insert_trades, query, table_hash

Environment = Callable[..., AbstractContextManager[None]]
START = 1_767_571_200 * SECOND_US
TABLES = ("marketprism_hot.trades", "marketprism_serving.job_runs", "marketprism_features.minutes")


@pytest.fixture
def filled(store: Settings) -> Settings:
    """Raw rows, rows of a program, and in features a table fed by a materialized view, and a view of it."""
    if store.target != "local":
        pytest.skip("the server under test is not ours: its backups.allowed_path is unknown")
    hot = store.database("hot")
    execute(
        "create table minutes (minute DateTime, n SimpleAggregateFunction(sum, UInt64)) "
        "engine = AggregatingMergeTree order by minute",
        layer="features",
    )
    execute(
        "create materialized view minutes_mv to minutes as "
        f"select toStartOfMinute(timestamp) as minute, count() as n from {hot}.trades group by minute",
        layer="features",
    )
    execute(f"create view newest as select max(timestamp) as t from {hot}.trades", layer="features")
    for part in range(2):  # the same minute in two blocks: what is stored is not yet merged
        insert_trades(_trade(i) for i in range(part, 40, 2))
    execute(
        "insert into job_runs values ('archive', generateUUIDv4(), now64(3), null, 'running', '', 'here')",
        layer="serving",
    )
    return store


@pytest.fixture
def elsewhere(
    server: Settings, environment: Environment
) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Databases under another prefix; dropped at the end."""
    prefix = f"t{secrets.token_hex(4)}_"
    yield lambda: environment(db_prefix=prefix)
    with environment(db_prefix=prefix):
        drop_all()


def _trade(i: int) -> Trade:
    return Trade(START + i * SECOND_US, i + 1, str(i + 1), 10**8, START + i * SECOND_US)


def _hashes() -> list[object]:
    prefix = settings().db_prefix
    return [table_hash(f"{prefix}{table} final") for table in TABLES]


def test_a_backup_comes_back_elsewhere(
    filled: Settings, elsewhere: Callable[[], AbstractContextManager[None]]
) -> None:
    name = filled.db_prefix
    before = _hashes()
    made = CliRunner().invoke(app, ["backup", "create", name])
    assert made.exit_code == 0, made.output
    assert "written to meanwhile" not in made.output
    insert_trades([_trade(99)])  # later rows are not in it
    with elsewhere():
        migrate()  # a store with nothing but migrations is empty
        back = CliRunner().invoke(app, ["backup", "restore", name])
        assert back.exit_code == 0, back.output
        assert _hashes() == before
        # its views look at their own raw rows
        assert str(query("select t from newest")[0]["t"]).startswith("2026-01-05 00:00:39")
        insert_trades([_trade(200)])
        assert query("select sum(n) as n from minutes")[0]["n"] == 41
        assert migrate() == {
            settings().database(layer): [] for layer in ("hot", "cold", "features", "serving")
        }  # type: ignore[arg-type]

        with pytest.raises(UserError, match=r"the store is not empty \(hot\.trades, .*--force drops"):
            backup.restore(name)
        assert query("select sum(n) as n from minutes")[0]["n"] == 41, "and is left alone"
        backup.restore(name, force=True)
        assert _hashes() == before
    assert query("select sum(n) as n from minutes")[0]["n"] == 41, (
        "nor is the store that it came from touched"
    )


def _every_table() -> dict[str, object]:
    """Rows and checksum of everything that is stored, as merged, by name without the prefix."""
    prefix = settings().db_prefix
    found = query(
        "select database, name, engine from system.tables where startsWith(database, %(start)s) and endsWith(engine, 'MergeTree')",
        start=f"{prefix}marketprism_",
    )
    return {
        f"{t['database'].removeprefix(prefix)}.{t['name']}": table_hash(
            f"{t['database']}.`{t['name']}`" + ("" if t["engine"] == "MergeTree" else " final")
        )
        for t in found
    }


def test_a_backup_comes_back_on_another_server(
    filled: Settings, environment: Environment, tmp_path: Path, free_ports: Callable[[int], list[int]]
) -> None:
    name = filled.db_prefix
    backup.create(name)
    before = _every_table()
    assert len(before) > 20
    port, http_port = map(str, free_ports(2))
    other = {"port": port, "http_port": http_port, "data_dir": str(tmp_path), "db_prefix": ""}
    with environment(**other, backup_dir=str(filled.backups)):
        start()
        try:
            back = CliRunner().invoke(app, ["backup", "restore", name])
            assert back.exit_code == 0, back.output
            assert _every_table() == before
            assert str(query("select t from newest")[0]["t"]).startswith("2026-01-05 00:00:39")
            assert not any(migrate().values()), "every migration is there"
        finally:
            stop()
    assert _every_table() == before


def test_what_came_back_otherwise_is_named(
    filled: Settings, elsewhere: Callable[[], AbstractContextManager[None]]
) -> None:
    name = filled.db_prefix
    manifest = Path(f"{backup.create(name).path}.json")
    record = json.loads(manifest.read_text())
    [trades] = [t for t in record["tables"] if (t["layer"], t["table"]) == ("hot", "trades")]
    assert trades["rows"] == 40
    trades["checksum"] += 1
    record["tables"].append({"layer": "hot", "table": "lost", "rows": 1, "checksum": 1})
    manifest.write_text(json.dumps(record))
    with (
        elsewhere(),
        pytest.raises(
            UserError, match=r"hot\.trades has other rows than it had; hot\.lost is missing\. Do not use"
        ),
    ):
        backup.restore(name)


def test_what_is_no_backup_is_refused(filled: Settings) -> None:
    name = filled.db_prefix
    with pytest.raises(UserError, match="a backup is complete once it is"):
        backup.restore("nowhere")
    with pytest.raises(UserError, match="the only place that the local server may use"):
        backup.create("/tmp/elsewhere")
    backup.create(name)
    with pytest.raises(UserError, match="choose another name"):
        backup.create(name)
    with db.connect() as c:
        assert c.execute(f"select count() from {filled.database('hot')}.trades") == [(40,)]


def test_a_table_that_is_written_to_meanwhile_is_named(
    filled: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = backup._run

    def busy(c: object, sql: str) -> None:
        run(c, sql)  # type: ignore[arg-type]
        insert_trades([_trade(50)])

    monkeypatch.setattr(backup, "_run", busy)
    assert backup.create(filled.db_prefix).changing == ["hot.trades", "features.minutes"]
