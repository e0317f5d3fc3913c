"""What Prometheus gets of a store: nothing yet, planted health, a store that is down; and a real Prometheus that scrapes it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from python_udfs.errors import UserError
from python_udfs.exporter import alerts
from python_udfs.exporter.cli import exporter_command
from python_udfs.exporter.collector import StoreCollector
from python_udfs.exporter.queries import SOURCES, Source
from python_udfs.settings import REPOSITORY, Settings
from tests.support import execute
from tests.unit.test_operations_files import EXPORTED, EXPRESSIONS

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
INSTRUMENT = {"exchange": "x", "market_type": "spot", "symbol": 'S"1\\'}
_KEYS = "exchange String, market_type String, symbol String"
_WHO = "'x', 'spot', 'S\"1\\\\'"


def scrape(collector: StoreCollector | None = None) -> Samples:
    """Every sample by name and labels, through the text format."""
    registry = CollectorRegistry()
    registry.register(collector or StoreCollector())
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(s.name, frozenset(s.labels.items())): s.value for f in families for s in f.samples}


def value(samples: Samples, name: str, /, **labels: str) -> float:
    return samples[f"marketprism_{name}", frozenset(labels.items())]


def fill(layer: str = "features") -> None:
    """Small relations of the shape of the models: one instrument that is degraded."""
    for sql in (
        f"create table unified_buckets ({_KEYS}, bucket_id UInt64, bucket_ts_start DateTime64(6, 'UTC'), "
        "bucket_ts_end DateTime64(6, 'UTC'), cut_trigger String, trade_count UInt32, duration_s Float64) engine = Memory",
        # ten minutes ago and older: 8 by volume of 10 s, one by time of 60 s, one by anchor; and one from long before
        f"insert into unified_buckets select {_WHO}, number, now64(6) - toIntervalSecond(600 + number * 100) as starts, "
        "starts + toIntervalSecond(duration_s), ['time', 'anchor', 'volume'][least(number + 1, 3)] as t, 10 + number, "
        "if(t = 'time', 60, 10) as duration_s from numbers(10)",
        f"insert into unified_buckets select {_WHO}, 99, now64(6) - toIntervalHour(5), now64(6) - toIntervalHour(4), 'time', 9, 3600",
        f"create table health_metrics (metric String, {_KEYS}, detail String, value Nullable(Float64), as_of DateTime64(3, 'UTC')) "
        "engine = Memory",
        f"insert into health_metrics select 'bucket_duration_p90_s', {_WHO}, '', 130, now64(3)",
        f"insert into health_metrics select 'feature_psi_week', {_WHO}, 'ofi', 0.05, now64(3)",
        "insert into health_metrics select 'prediction_ic', '', '', '', 'm:v', null, now64(3)",
        "create table health_findings as health_metrics",
        "alter table health_findings add column severity String, add column threshold Float64, add column runbook String",
        "insert into health_findings select *, 'critical', 120, 'docs/runbook/bucket_duration_p90_s.md' from health_metrics "
        "where metric = 'bucket_duration_p90_s'",
        f"create table instrument_states ({_KEYS}, state String, reasons Array(String), since DateTime64(3, 'UTC'), "
        "as_of DateTime64(3, 'UTC')) engine = Memory",
        f"insert into instrument_states select {_WHO}, 'degraded', ['bucket_duration_p90_s'], now64(3), now64(3)",
        "create table view_refreshes (name String, status String, last_success_at Nullable(DateTime64(3, 'UTC')), exception String, "
        "rows UInt64) engine = Memory",
        "insert into view_refreshes values ('good', 'Scheduled', now64(3), '', 5), ('bad', 'Scheduled', null, 'DB::Exception', 0)",
        "create table freshness (feature_vector String, exchange String, market_type String, symbol String, row_count UInt64, p50_s Float64, "
        "p99_s Float64, max_s Float64, last_arrived_at DateTime64(3, 'UTC')) engine = Memory",
        "insert into freshness values ('feature_vector_v2', '', '', '', 9, 0.8, 1.5, 2, now64(3))",
    ):
        execute(sql, layer=layer)
    execute(
        "insert into predictions (request_id, predicted_at, exchange, market_type, symbol, model_name, role, served, score, read_us, "
        "prepare_us, run_us, total_us, read_budget_us, prepare_budget_us, run_budget_us, total_budget_us, over_budget) "
        f"select generateUUIDv4(), now64(6) - number, {_WHO}, 'm', 'champion', 1, 0.5, 1000, 2000, 3000, 6000, 8000, 2000, 5000, 20000, "
        "if(number = 0, ['run'], []) from numbers(4)",
        layer="serving",
    )
    execute(
        "insert into quality_runs (run_id, finished_at, success, expectations, failed) select generateUUIDv4(), now64(3), 0, 9, ['a: b']",
        layer="serving",
    )


def wait_for(url: str, process: subprocess.Popen[bytes]) -> str:
    """The answer of a server that is starting."""
    for _ in range(600):
        assert process.poll() is None, process.stderr.read() if process.stderr else "it ended"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return str(answer.read().decode())
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} does not answer")


def test_a_new_store_has_missing_relations_and_no_error(store: Settings) -> None:
    samples = scrape()
    assert value(samples, "up") == 1
    missing = {
        dict(labels)["relation"]
        for (name, labels), v in samples.items()
        if name.endswith("relation_missing") and v
    }
    assert missing >= {s.relation for s in SOURCES if s.layer == "features"}
    assert not any(v for (name, _), v in samples.items() if name.endswith("unreadable"))


def test_planted_health_is_exported(store: Settings) -> None:
    fill()
    samples = scrape()
    assert {name for name, _ in samples} - {"marketprism_job_failed"} <= EXPORTED
    assert value(samples, "relation_missing", relation="unified_buckets") == 0
    assert value(samples, "buckets_last_hour", **INSTRUMENT) == 10
    cuts = {t: value(samples, f"bucket_cuts_{t}_last_hour", **INSTRUMENT) for t in ("own", "time", "anchor")}
    assert cuts == {"own": 8, "time": 1, "anchor": 1}
    assert value(samples, "bucket_duration_seconds_p50", **INSTRUMENT) == 10
    assert value(samples, "bucket_duration_seconds_p99", **INSTRUMENT) > 50
    assert value(samples, "bucket_trades_mean", **INSTRUMENT) == 14.5
    assert 540 < value(samples, "latest_bucket_lag_seconds", **INSTRUMENT) < 3600
    health = {"metric": "bucket_duration_p90_s", "detail": "", **INSTRUMENT}
    assert value(samples, "health_value", **health) == 130
    assert value(samples, "health_finding", severity="critical", **health) == 1
    assert not any(
        dict(labels).get("metric") == "prediction_ic" for _, labels in samples
    )  # NULL: nothing to say
    assert value(samples, "instrument_state", state="degraded", **INSTRUMENT) == 1
    assert (
        value(samples, "view_refresh_failed", name="good"),
        value(samples, "view_refresh_failed", name="bad"),
    ) == (0, 1)
    assert ("marketprism_view_refresh_age_seconds", frozenset({("name", "bad")})) not in samples
    stages = {
        s: value(samples, "score_stage_seconds_p99", model="m", stage=s)
        for s in ("read", "prepare", "run", "total")
    }
    assert stages == {"read": 0.001, "prepare": 0.002, "run": 0.003, "total": 0.006}
    assert value(samples, "score_over_budget_ratio", model="m", stage="run") == 0.25
    assert value(samples, "score_stage_budget_seconds", model="m", stage="total") == 0.02
    assert value(samples, "quality_failed_expectations") == 1


def test_time_is_bounded_and_a_failure_is_said(store: Settings) -> None:
    slow = Source(
        "features",
        "slow",
        "select sleepEachRow(1) from numbers(30) settings function_sleep_max_microseconds_per_block = 60000000",
        (),
    )
    wrong = Source("features", "wrong", "select nothing", ())
    samples = scrape(StoreCollector(1.0, (wrong, slow, *SOURCES)))
    assert value(samples, "up") == 1
    unreadable = {
        dict(labels)["relation"] for (name, labels), v in samples.items() if name.endswith("unreadable") and v
    }
    assert unreadable >= {"wrong", "slow", "unified_buckets"}  # the last for lack of time
    assert value(samples, "relation_read_seconds", relation="slow") < 25


def test_a_store_that_is_down_is_said(
    store: Settings, environment: Callable[..., Any], free_ports: Callable[[int], list[int]]
) -> None:
    with environment(port=str(free_ports(1)[0])):
        samples = scrape()
    assert samples == {("marketprism_up", frozenset()): 0}


def test_the_command_serves_until_it_is_told_to_stop(
    store: Settings, free_ports: Callable[[int], list[int]]
) -> None:
    [port] = free_ports(1)
    words = [sys.executable, "-m", "python_udfs.exporter", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        words, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert "marketprism_up 1.0" in wait_for(f"http://127.0.0.1:{port}/metrics", process)
        with pytest.raises(UserError, match="Give another --port"):
            exporter_command(port)
        process.terminate()
        assert process.wait(60) == 0


def test_a_real_prometheus_scrapes_alerts_and_answers_the_dashboard(
    store: Settings, tmp_path: Path, free_ports: Callable[[int], list[int]]
) -> None:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian: apt-get install prometheus)")
    fill()
    port, own = free_ports(2)
    config = yaml.safe_load((REPOSITORY / "docs/operations/prometheus/prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s", "scrape_timeout": "1s"}
    config["scrape_configs"][0] |= {"scrape_interval": "3s", "scrape_timeout": "3s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{port}"]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(alerts.FILE, tmp_path)
    words = [
        program,
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{own}",
    ]
    api = f"http://127.0.0.1:{own}/api/v1/"

    def ask(path: str) -> Any:
        with urllib.request.urlopen(api + path, timeout=30) as answer:
            return json.load(answer)["data"]

    registry = CollectorRegistry()
    registry.register(StoreCollector())
    server, _ = start_http_server(port, "127.0.0.1", registry)
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as prometheus:
        try:
            wait_for(f"http://127.0.0.1:{own}/-/ready", prometheus)
            for _ in range(300):
                found = {a["labels"]["alertname"]: a for a in ask("alerts")["alerts"]}
                if found:
                    break
                time.sleep(0.2)
            assert {(a["labels"]["severity"], a["labels"]["threshold"]) for a in ask("alerts")["alerts"]} == {
                ("warning", "90"),
                ("critical", "120"),
            }
            assert (
                found["bucket_duration_p90_s"]["annotations"]["runbook"]
                == "docs/runbook/bucket_duration_p90_s.md"
            )
            [target] = ask("targets")["activeTargets"]
            assert (target["health"], target["lastError"]) == ("up", "")
            for variables in EXPRESSIONS:
                expression = (
                    variables.replace("$exchange", ".*")
                    .replace("$market_type", ".*")
                    .replace("$symbol", ".*")
                )
                answer = ask("query?" + urllib.parse.urlencode({"query": expression}))
                assert answer["resultType"] == "vector", expression
            [lag] = ask("query?query=marketprism_latest_bucket_lag_seconds")["result"]
            assert {k: lag["metric"][k] for k in INSTRUMENT} == INSTRUMENT
        finally:
            prometheus.terminate()
            prometheus.wait(60)
            server.shutdown()
