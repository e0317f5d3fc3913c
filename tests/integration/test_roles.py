"""Each role can do its work and nothing else; an analyst's query ends at its limits. On a server of its own, whose prefix applies."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors

from python_udfs import access, db
from python_udfs.dashboard.panels import snapshot
from python_udfs.exporter.collector import StoreCollector
from python_udfs.ingest.generator import GeneratedReader, MarketConfig, write
from python_udfs.ingest.loader import load
from python_udfs.migrate import migrate
from python_udfs.quality import checkpoint
from python_udfs.quality.contract import limits
from python_udfs.scorer import deployment, registry
from python_udfs.scorer.scorer import Deployments, Scorer
from python_udfs.server import render_users, start, stop
from python_udfs.settings import Settings, settings
from tests.scoring import NOON, ONE, bucket, create, follow_flow, insert, make_model
from tests.support import dbt, shorten_the_readers_queries

Environment = Callable[..., AbstractContextManager[None]]
PREFIX = "roles_"
DENIED, READONLY, TOO_SLOW, FIXED = 497, 164, 159, 452
MODELS = "stg_trades stg_orderbooks stg_watermarks bucket_config bucket_tapes unified_buckets trade_minutes_stored trade_minutes_mv late_trades"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, environment: Environment, free_ports) -> Iterator[Settings]:  # type: ignore[no-untyped-def]
    """A store that the admin built, with a market that the ingester loaded."""
    folder = tmp_path_factory.mktemp("roles")
    first = MarketConfig(minutes=2, book_levels=1, truths=())
    write(first, folder / "first")
    write(replace(first, start=first.end), folder / "second")
    port, http_port = free_ports(2)
    with environment(
        target="local", host="127.0.0.1", port=str(port), http_port=str(http_port), user="default", password="",
        secure="0", db_prefix=PREFIX, data_dir=str(folder),
    ):  # fmt: skip
        shorten_the_readers_queries(folder, PREFIX, 2)
        start()
        try:
            with acting("admin"):
                migrate()
            with acting("ingester"):
                assert load(GeneratedReader(folder / "first")).rows["trades"] > 1000
                assert load(GeneratedReader(folder / "first")).skipped
            with acting("admin"):
                dbt("seed", select="source_availability instruments bucket_defaults")
                dbt("run", select=MODELS, t_target_s=5, t_max_s=10)
            with acting("ingester"):
                assert load(GeneratedReader(folder / "second")).rows["trades"] > 1000
            with acting("admin"):
                create(table="feature_vector_v9")
                insert(bucket(ONE, NOON, 1.0), table="feature_vector_v9")
            yield settings()
        finally:
            stop(s=settings())


@contextmanager
def acting(role: str) -> Iterator[None]:
    """The settings name the role's user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARKETPRISM_USER", access.role(role, PREFIX))
        patch.setenv("MARKETPRISM_TARGET", "server")
        settings.cache_clear()
        try:
            yield
        finally:
            patch.undo()
            settings.cache_clear()


def run(role: str, sql: str) -> list[tuple[object, ...]]:
    with acting(role), db.connect() as c:
        return list(c.execute(re.sub(r"\b(hot|cold|features|serving)\.", rf"{PREFIX}marketprism_\1.", sql)))


def test_a_reader_sees_features_and_monitoring_though_their_views_read_raw_rows(own: Settings) -> None:
    assert run("reader", "select count() > 5 from features.unified_buckets") == [(1,)]
    assert run("reader", "select count() >= 0 from features.late_trades") == [(1,)]
    # the ingester's second load went through the materialized view, though it has no rights there
    assert run("reader", "select sum(trade_count) from features.trade_minutes_stored") == run(
        "admin", "select count() from hot.trades"
    )


@pytest.mark.parametrize(
    ("role", "sql"),
    [
        ("reader", "select count() from hot.trades"),
        ("reader", "select count() from features.stg_trades"),
        ("reader", "select count() from serving.predictions"),
        ("reader", "insert into features.bucket_config (exchange) values ('x')"),
        ("reader", "drop table features.bucket_config"),
        ("reader", "create table features.mine (a Int8) engine = MergeTree order by a"),
        ("reader", "select * from url('http://127.0.0.1', LineAsString)"),
        ("reader", "select * from file('x', LineAsString)"),
        ("scorer", "select count() from hot.trades"),
        ("scorer", "select count() from features.unified_buckets"),
        ("scorer", "insert into serving.models (model_name) values ('x')"),
        ("scorer", "insert into serving.deployments (sequence) values (1)"),
        ("scorer", "insert into features.feature_vector_v9 (symbol) values ('x')"),
        ("scorer", "alter table serving.predictions delete where 1"),
        ("scorer", "truncate table serving.predictions"),
        ("ingester", "select count() from features.unified_buckets"),
        ("ingester", "select count() from serving.models"),
        ("ingester", "insert into cold.trades (symbol) values ('x')"),
        ("ingester", "truncate table hot.trades"),
        ("ingester", "alter table hot.trades delete where 1"),
        ("ingester", "drop table hot.trades"),
        ("ingester", "create table hot.mine (a Int8) engine = MergeTree order by a"),
        ("monitor", "select price from hot.trades"),
        ("monitor", "select count() from features.stg_trades"),
        ("monitor", "select count() from serving.models"),
        ("monitor", "insert into serving.job_runs (job) values ('x')"),
        ("monitor", "insert into features.bucket_config (exchange) values ('x')"),
        ("monitor", "truncate table serving.quality_runs"),
        ("monitor", "alter table serving.quality_runs delete where 1"),
        ("admin", "create database elsewhere"),
        ("admin", "create user somebody"),
        ("admin", "system shutdown"),
    ],
)  # fmt: skip
def test_the_forbidden_is_refused(own: Settings, role: str, sql: str) -> None:
    with pytest.raises(driver_errors.ServerException) as refusal:
        run(role, sql)
    assert refusal.value.code in (DENIED, READONLY), refusal.value.message


def test_the_scorer_scores_what_an_admin_put_in_service(own: Settings, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", follow_flow(1, 3.0), version=9)
    with acting("admin"), db.connect() as c:
        registry.register(c, model)
        deployment.promote(c, "m")
    source = Deployments(deployment.current_deployment, deployment.load, deployment.served_by)
    with acting("scorer"), Scorer(source) as scorer:
        assert [p.signal for p in scorer.score(as_of=NOON)] == [1]
        assert [p.deployment for p in scorer.score(as_of=NOON)] == [1]
    assert run("admin", "select signal, count() from serving.predictions group by signal") == [(1, 2)]


def test_exporter_dashboard_and_quality_work_as_monitor(
    own: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not built here is said to be missing, by each; nothing is denied."""
    built = {"unified_buckets", "predictions"}
    monkeypatch.setattr(checkpoint, "limits", lambda: [li for li in limits() if li.relation in built])
    with acting("monitor"):
        exported = {
            (s.name, s.labels.get("relation")): s.value for f in StoreCollector().collect() for s in f.samples
        }
        panels = snapshot().panels
        with db.connect() as c:
            found = checkpoint.run(c)
    assert exported["marketprism_up", None] == 1
    read = {"unified_buckets", "predictions", "job_runs", "quality_runs"}
    assert {r for r in read if exported["marketprism_relation_missing", r]} == set()
    assert [k for k, bad in exported.items() if k[0] == "marketprism_relation_unreadable" and bad] == []
    assert {p.problem for p in panels.values()} == {"", "Not there yet: `make build` makes it."}
    assert panels["buckets"].rows
    assert not any(
        p.problem for name, p in panels.items() if name in ("buckets", "jobs", "deployments", "quality")
    )
    # the generated market is years old, which is no breach: its buckets are held against its own trades
    assert found.failed == []
    assert run("admin", "select success, who != '' from serving.quality_runs") == [(True, True)]


def test_an_analysts_cross_join_is_killed_and_others_go_on(own: Settings) -> None:
    """At the reader's own limit: 60 s, here 2."""
    assert "<max_execution_time>60</max_execution_time>" in render_users(PREFIX)
    limits = "select getSetting('max_execution_time'), getSetting('max_memory_usage'), getSetting('max_concurrent_queries_for_user')"
    assert run("reader", limits) == [(2.0, 4_000_000_000, 8)]
    for change in ("max_execution_time = 0", "max_memory_usage = 0", "readonly = 0"):
        with pytest.raises(driver_errors.ServerException) as refusal:
            run("reader", f"select 1 settings {change}")
        assert refusal.value.code in (FIXED, READONLY)
    killed: list[int] = []

    product = (
        f"select sum(cityHash64(a.bucket_id, n.number, m.number)) from {PREFIX}marketprism_features.unified_buckets as a "
        "cross join numbers(10000000) as n cross join numbers(10000000) as m"
    )

    def cross_join() -> None:
        with Client(own.host, own.port, user=access.role("reader", PREFIX)) as c:
            try:
                c.execute(product)
            except driver_errors.ServerException as e:
                killed.append(e.code)

    thread = threading.Thread(target=cross_join)
    thread.start()
    others = 0
    while thread.is_alive():
        assert run("ingester", "select count() > 1000 from hot.trades") == [(1,)]
        others += 1
    thread.join()
    assert killed == [TOO_SLOW]
    assert others > 2
    assert run("reader", "select count() > 5 from features.unified_buckets") == [(1,)]
