"""Alert rules, dashboards and the runbook say what seeds and exporter say; Prometheus' own tool reads the rules."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from python_udfs.errors import UserError
from python_udfs.exporter import alerts
from python_udfs.exporter.alerts import thresholds
from python_udfs.exporter.cli import alerts_command
from python_udfs.exporter.queries import SOURCES
from python_udfs.settings import REPOSITORY

OPERATIONS = REPOSITORY / "docs" / "operations"
RUNBOOK = REPOSITORY / "docs" / "runbook"
EXPORTED = {f"marketprism_{g.name}" for s in SOURCES for g in s.gauges} | {
    f"marketprism_{name}"
    for name in ("up", "relation_missing", "relation_unreadable", "relation_read_seconds")
}
PANELS: list[dict[str, Any]] = json.loads(
    (OPERATIONS / "grafana" / "dashboards" / "marketprism.json").read_text()
)["panels"]
EXPRESSIONS = [t["expr"] for p in PANELS for t in p.get("targets", [])]


def promtool(*words: str, cwd: Path) -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    done = subprocess.run([program, *words], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_are_those_of_the_seed() -> None:
    assert alerts.FILE.read_text() == alerts.render(), "run `marketprism alerts`"
    rules = yaml.safe_load(alerts.FILE.read_text())["groups"][1]["rules"]
    assert len(rules) == len(thresholds()) > 20
    names = [(r["alert"], tuple(r["labels"].items())) for r in rules]
    assert len(set(names)) == len(names)


def test_an_old_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `marketprism alerts`"):
        alerts_command(tmp_path / "alerts.yml", check=True)
    alerts_command(tmp_path / "alerts.yml")
    alerts_command(tmp_path / "alerts.yml", check=True)
    assert (tmp_path / "alerts.yml").read_text() == alerts.render()


def test_every_alert_has_its_page_with_meaning_query_and_fix() -> None:
    pages = {t.runbook for t in thresholds()} | {r["annotations"]["runbook"] for r in alerts._OWN}
    listed = (RUNBOOK / "README.md").read_text()
    for page in pages:
        text = (REPOSITORY / page).read_text()
        title, meaning = text.split("\n\n")[:2]
        assert title == f"# {Path(page).stem}"
        assert len(meaning) > 40
        assert len(re.findall(r"```sql\n.+?```", text, re.DOTALL)) == 1, page
        assert text.split("## Fix\n")[1].strip(), page
        assert f"({Path(page).name})" in listed
    assert {f"docs/runbook/{p.name}" for p in RUNBOOK.glob("*.md")} - {"docs/runbook/README.md"} == pages


def test_links_of_the_runbook_lead_somewhere() -> None:
    for path in [*RUNBOOK.glob("*.md"), OPERATIONS / "README.md"]:
        for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
            assert (path.parent / target).is_file(), f"{path.name}: {target}"


def test_dashboards_and_rules_ask_only_for_what_is_exported() -> None:
    rules = [r["expr"] for g in alerts.rules()["groups"] for r in g["rules"]]
    assert len(EXPRESSIONS) > 15
    for expression in [*EXPRESSIONS, *rules]:
        assert set(re.findall(r"marketprism_\w+", expression)) <= EXPORTED, expression
    metrics = {t.metric for t in thresholds()}
    for name in re.findall(r'metric="(\w+)"', " ".join(EXPRESSIONS)):
        assert name in metrics


def test_prometheus_reads_the_rules_and_the_configuration() -> None:
    said = promtool("check", "config", "prometheus.yml", cwd=OPERATIONS / "prometheus")
    assert f"{len(thresholds()) + len(alerts._OWN)} rules found" in said


def test_each_rule_fires_beyond_its_threshold_and_not_at_it(tmp_path: Path) -> None:
    shutil.copy(alerts.FILE, tmp_path)
    tests = []
    for t in thresholds():
        labels = f'metric="{t.metric}",exchange="x",market_type="spot",symbol="S",detail=""'
        beyond = t.threshold + (1 if t.comparison == ">" else -1)
        for value, fires in ((t.threshold, False), (beyond, True)):
            query = f'count(ALERTS{{alertname="{t.metric}",severity="{t.severity}",threshold="{t.threshold:g}"}}) or vector(0)'
            tests.append(
                {
                    "interval": "1m",
                    "input_series": [
                        {"series": f"marketprism_health_value{{{labels}}}", "values": f"{value}x3"}
                    ],
                    "promql_expr_test": [
                        {
                            "expr": query,
                            "eval_time": "1m",
                            "exp_samples": [{"labels": "{}", "value": int(fires)}],
                        }
                    ],
                }
            )
    (tmp_path / "tests.yml").write_text(
        yaml.safe_dump({"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": tests})
    )
    assert "SUCCESS" in promtool("test", "rules", "tests.yml", cwd=tmp_path)
