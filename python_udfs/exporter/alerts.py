"""Prometheus rules from `seeds/health_thresholds.csv`, so that a threshold stands in one place."""

from __future__ import annotations

import csv
from typing import Any, Final, NamedTuple

import yaml

from python_udfs.settings import REPOSITORY

SEED: Final = REPOSITORY / "seeds" / "health_thresholds.csv"
FILE: Final = REPOSITORY / "docs" / "operations" / "prometheus" / "alerts.yml"
_WHERE: Final = "{{ $labels.exchange }} {{ $labels.market_type }} {{ $labels.symbol }} {{ $labels.detail }}"
# What no row of the store can say, because it is about reading the store.
_OWN: Final[list[dict[str, Any]]] = [
    {
        "alert": "store_down",
        "expr": 'marketprism_up == 0 or up{job="marketprism"} == 0',
        "for": "1m",
        "labels": {"severity": "critical"},
        "annotations": {
            "summary": "the store or its exporter does not answer",
            "runbook": "docs/runbook/store_down.md",
        },
    },
    {
        "alert": "relation_unreadable",
        "expr": "marketprism_relation_unreadable == 1",
        "for": "5m",
        "labels": {"severity": "warning"},
        "annotations": {
            "summary": "{{ $labels.relation }} cannot be read in time: its alerts are blind",
            "runbook": "docs/runbook/relation_unreadable.md",
        },
    },
]


class Threshold(NamedTuple):
    """A row of the seed: the metric alerts where `value comparison threshold` holds."""

    metric: str
    severity: str
    comparison: str
    threshold: float
    unit: str
    runbook: str


def thresholds() -> list[Threshold]:
    """Every row of the seed, in its order."""
    with SEED.open(newline="") as f:
        return [
            Threshold(
                r["metric"], r["severity"], r["comparison"], float(r["threshold"]), r["unit"], r["runbook"]
            )
            for r in csv.DictReader(f)
        ]


def rules() -> dict[str, Any]:
    """The rules as Prometheus' file format has them."""
    return {
        "groups": [
            {"name": "marketprism store", "rules": _OWN},
            {"name": "marketprism health", "rules": [_rule(t) for t in thresholds()]},
        ]
    }


def _rule(t: Threshold) -> dict[str, Any]:
    return {
        "alert": t.metric,
        "expr": f'marketprism_health_value{{metric="{t.metric}"}} {t.comparison} {t.threshold:g}',
        # two thresholds of one severity are two alerts
        "labels": {"severity": t.severity, "threshold": f"{t.threshold:g}"},
        "annotations": {
            "summary": f"{t.metric} is {{{{ $value }}}} {t.unit} ({t.comparison} {t.threshold:g}): {_WHERE}",
            "runbook": t.runbook,
        },
    }


def render() -> str:
    """The file's text."""
    head = "# Written by `marketprism alerts` from seeds/health_thresholds.csv: change it there.\n"
    return head + yaml.safe_dump(rules(), sort_keys=False, width=160)
