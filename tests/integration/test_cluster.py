"""A cluster is a setting: what is rendered for one, and two servers joined by Distributed tables that answer as one does.

The wheel's engine has a Keeper of memory, in which replicated tables can be made; it reads no port for replicas to meet at, so that they
stay readonly, and no ON CLUSTER. So the test stands in for a Keeper: what says ON CLUSTER is run on both servers, with the plain engine
of a replicated one, and what is inserted into a table that is the same on all nodes goes to both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from clickhouse_driver import Client
from clickhouse_migrations.migration import MigrationStorage

from python_udfs.cluster import on_cluster
from python_udfs.ingest.generator import GeneratedReader, MarketConfig, write
from python_udfs.ingest.loader import load
from python_udfs.migrate import FOLDERS, MIGRATIONS, migrate
from python_udfs.server import start, stop
from python_udfs.settings import settings
from tests.support import dbt, query, table_hash

Environment = Callable[..., AbstractContextManager[None]]
CLUSTER = "two"
ON_CLUSTER = f' ON CLUSTER "{CLUSTER}"'
# As long as those of the other tests: tests.support.dbt has the project parsed already, or parses it once for both.
ONE, TWO = "tcluster1_", "tcluster2_"
MODELS = "stg_trades stg_orderbooks stg_watermarks bucket_config bucket_tapes unified_buckets book_updates book_asof trade_flow"
INCREMENTAL, TABLE = "trade_flow", "markouts"


def rendered(folders: tuple[str, ...]) -> str:
    """The scripts of a database's migrations, for the cluster."""
    migrations = [m for folder in folders for m in MigrationStorage(MIGRATIONS / folder).migrations()]
    return ";\n".join(m.script for m in on_cluster(migrations, CLUSTER))


def test_raw_rows_are_sharded_by_instrument_and_the_rest_is_the_same_everywhere() -> None:
    hot, serving = rendered(FOLDERS["hot"]), rendered(FOLDERS["serving"])
    assert 'CREATE TABLE IF NOT EXISTS trades_local ON CLUSTER "two"' in hot
    assert (
        'CREATE TABLE IF NOT EXISTS trades ON CLUSTER "two" AS trades_local\n'
        "ENGINE = Distributed('two', currentDatabase(), 'trades_local', cityHash64(exchange, market_type, symbol))"
    ) in hot
    assert "ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')" in hot
    assert (
        "ReplicatedReplacingMergeTree('/clickhouse/tables/all/{database}/{table}', '{shard}-{replica}', finished_at)"
        in hot
    )
    assert "non_replicated" not in hot
    # a column that was added later is added to both
    for table in ("predictions_local", "predictions"):
        assert f'ALTER TABLE {table} ON CLUSTER "two"\n    ADD COLUMN IF NOT EXISTS role' in serving
    assert 'CREATE TABLE IF NOT EXISTS deployments ON CLUSTER "two"' in serving
    access = rendered(("access",))
    assert 'CREATE ROLE IF NOT EXISTS ${PREFIX}marketprism_reader ON CLUSTER "two"' in access
    assert 'GRANT ON CLUSTER "two" SELECT ON ${PREFIX}marketprism_features.*' in access


@dataclass
class Keeper:
    """Runs on every node what a cluster runs there, and remembers it as it was said."""

    ports: tuple[int, int]
    execute: Callable[..., Any]
    said: list[str] = field(default_factory=list)
    everywhere: set[str] = field(default_factory=set)

    def __call__(self, client: Client, sql: str, *args: Any, **more: Any) -> Any:
        inserted = re.search(r"(?:^|\*/)\s*insert into [`\w]*?\.?`?(\w+)`?\s", sql, re.IGNORECASE)
        if inserted and inserted[1] in self.everywhere:
            self.on(self.ports[1], client, sql, *args, **more)
        if "ON CLUSTER" not in sql.upper():
            return self.execute(client, sql, *args, **more)
        self.said.append(" ".join(sql.split()))
        if found := re.search(
            r'create table(?: if not exists)? [`\w]*?\.?`?(\w+)`?\s+ON CLUSTER "two"[^;]*/tables/all/',
            sql,
            re.IGNORECASE,
        ):
            self.everywhere.add(found[1])
        nothing: Any = ([], []) if more.get("with_column_types") else []
        if "SYSTEM SYNC REPLICA" in sql.upper():
            return nothing
        plain = re.sub(r"ON CLUSTER [\"`]?two[\"`]?", " ", sql, flags=re.IGNORECASE)
        plain = re.sub(r"Replicated(\w*MergeTree)\('[^']*', '[^']*'(?:, )?", r"\1(", plain)
        for port in self.ports:
            self.on(port, client, plain, *args, **more)
        return nothing

    def on(self, port: int, client: Client, sql: str, *args: Any, **more: Any) -> None:
        database = client.connection.database
        with Client("127.0.0.1", port, database=database, settings={"join_use_nulls": 1}) as c:
            self.execute(c, sql, *args, **more)


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("market") / "m"
    write(MarketConfig(minutes=2, book_levels=1, truths=()), folder)
    return folder


@pytest.fixture(scope="module")
def nodes(
    tmp_path_factory: pytest.TempPathFactory, environment: Environment, free_ports
) -> Iterator[tuple[int, int]]:  # type: ignore[no-untyped-def]
    """Two servers that know each other as the shards of one cluster; the settings name the first."""
    ports = free_ports(4)
    shards = "".join(
        f"<shard><replica><host>127.0.0.1</host><port>{port}</port></replica></shard>" for port in ports[:2]
    )
    started = []
    try:
        for i in (1, 0):
            folder = tmp_path_factory.mktemp(f"node{i}")
            extra = folder / "clickhouse" / "config" / "config.d"
            extra.mkdir(parents=True)
            (extra / "cluster.xml").write_text(
                f"<clickhouse><remote_servers><{CLUSTER}>{shards}</{CLUSTER}></remote_servers>"
                f"<macros><shard>{i}</shard><replica>only</replica></macros>"
                "<zookeeper><implementation>testkeeper</implementation></zookeeper></clickhouse>"
            )
            plain = {"target": "local", "host": "127.0.0.1", "user": "default", "password": "", "secure": "0"}
            own = {"port": str(ports[i]), "http_port": str(ports[i + 2]), "data_dir": str(folder)}
            with environment(**plain, **own, db_prefix=TWO):
                start()
                started.append(settings())
        with environment(**plain, **own, db_prefix=TWO):
            yield ports[0], ports[1]
    finally:
        for s in started:
            stop(s=s)


def test_the_engine_takes_all_that_is_rendered(nodes: tuple[int, int]) -> None:
    """Tables are made, the replicated ones with the paths of their node; the rest is parsed."""
    made = 0
    with Client("127.0.0.1", nodes[0]) as c:
        for name, folders in (*FOLDERS.items(), ("access", ("access",))):
            c.execute(f"create database rendered_{name}")
            c.execute(f"use rendered_{name}")
            for statement in filter(None, rendered(folders).replace("${PREFIX}", "x_").split(";\n")):
                assert ON_CLUSTER in statement
                is_table = statement.startswith("CREATE TABLE")
                c.execute(statement.replace(ON_CLUSTER, "") if is_table else f"explain ast {statement}")
                made += "ENGINE = Replicated" in statement
        replicas = dict(
            c.execute("select (database, table), (zookeeper_path, replica_name) from system.replicas")
        )
        for name in (*FOLDERS, "access"):  # or they go on trying to become writable
            c.execute(f"detach database rendered_{name}")
    assert len(replicas) == made
    assert replicas["rendered_hot", "trades_local"] == (
        "/clickhouse/tables/0/rendered_hot/trades_local",
        "only",
    )
    assert replicas["rendered_hot", "loads"] == ("/clickhouse/tables/all/rendered_hot/loads", "0-only")


def build(market: Path) -> dict[str, dict[str, Any]]:
    """Loads, builds, then appends: the second run finds its place through what the first wrote."""
    migrate()
    assert load(GeneratedReader(market)).rows["trades"] > 1000
    dbt("seed", select="source_availability instruments bucket_defaults")
    clock = {"t_target_s": 5, "t_max_s": 10}
    dbt("run", select=f"{MODELS} {TABLE}", **clock)
    tables = [*(m for m in MODELS.split() if not m.startswith("stg_")), TABLE]
    first = {table: table_hash(table) for table in tables}
    dbt("run", select="bucket_tapes book_updates trade_flow", **clock)
    assert {table: table_hash(table) for table in tables} == first
    return first


def test_two_servers_joined_by_distributed_answer_as_one(
    nodes: tuple[int, int], market: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    with environment(db_prefix=ONE):
        one = build(market)
    assert one[INCREMENTAL]["n"] > 50
    keeper = Keeper(nodes, Client.execute)
    with environment(target="server", cluster=CLUSTER), monkeypatch.context() as patch:
        # a plain function, which binds the client as a method does
        patch.setattr(Client, "execute", lambda *args, **more: keeper(*args, **more))  # noqa: PLW0108
        two = build(market)
        shards = query(
            f"select _shard_num as shard, uniqExact(exchange, market_type, symbol) as n from {INCREMENTAL} group by shard"
        )
        whole = query(f"select uniqExact(exchange, market_type, symbol) as n from {INCREMENTAL}")
    assert two == one
    assert sorted(row["shard"] for row in shards) == [1, 2]
    assert sum(row["n"] for row in shards) == whole[0]["n"]  # no instrument lies in two
    said = "\n".join(keeper.said)
    for table in (INCREMENTAL, TABLE):
        assert re.search(
            rf"create table \S*`{table}_local` ON CLUSTER \"two\" \(.* "
            r"engine = ReplicatedMergeTree\('/clickhouse/tables/{shard}/{database}/{table}/{uuid}', '{replica}'\)",
            said,
        )
        assert re.search(
            rf"create or replace table \S*`{table}` ON CLUSTER \"two\" .*"
            rf"Distributed\( 'two', '{TWO}marketprism_features', '{table}_local', cityHash64\(exchange, market_type, symbol\) \)",
            said,
        )
    assert re.search(r"create or replace view \S*`stg_trades` ON CLUSTER \"two\"", said)
    assert re.search(
        r"create table \S*`instruments` ON CLUSTER \"two\" .*ReplicatedMergeTree\('/clickhouse/tables/all/",
        said,
    )
