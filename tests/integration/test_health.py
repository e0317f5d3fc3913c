"""Every threshold fires on what is planted for it and is silent on clean data, and breaches fail data tests by severity."""

from __future__ import annotations

import csv
import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
import pytest
from dbt.cli.main import dbtRunner
from dbt.node_types import NodeType

from python_udfs.scorer.relation import Instrument
from python_udfs.settings import REPOSITORY, Settings, settings
from tests.health import SECOND, buckets, create_relations, insert, key, normal
from tests.support import dbt, query

NOW: Final = datetime(2026, 1, 19, 12, tzinfo=UTC)
HOUR: Final = timedelta(hours=1)
START: Final = NOW - 6 * HOUR
N: Final = 360  # rows of features in each of three spans of two hours: training, the week, now
CLEAN: Final = Instrument("x", "spot", "CLEAN")
MILD: Final = Instrument("x", "spot", "MILD")
BAD: Final = Instrument("x", "spot", "BAD")
VARS: Final = {
    "health_now": NOW.isoformat(),
    "drift_window_s": 7200,
    "drift_step_s": 60,
    "drift_min_rows": 200,
}
HEALTH: Final = "bucket_health source_health health_metrics health_findings instrument_signals"
DRIFT: Final = "scored_buckets prediction_days drift_spans drift_bins feature_drift prediction_drift"
SEEDS: Final = "health_thresholds health_states health_jobs sparse_features feature_catalog"
# a shift of a normal by so much has a PSI over 0.1, over 0.15 and over 0.25 (and a KS over 0.2)
SHIFTS: Final = {"spread_bps_close": 0.37, "kyle_lambda": 0.45, "amihud": 0.6}
MODELS: Final = {"fine": 0.0, "off": 0.37, "further": 0.45, "gone": 0.6}

with (REPOSITORY / "seeds" / "health_thresholds.csv").open() as file:
    THRESHOLDS: Final = [(r["metric"], r["severity"], float(r["threshold"])) for r in csv.DictReader(file)]

# Where each threshold must fire: (instrument or none, detail). A row of the seed without its place here fails the test.
Place = tuple[Instrument | None, str]
PLANTED: Final[dict[tuple[str, str, float], Place]] = {
    ("bucket_duration_p90_s", "warning", 90): (MILD, ""),
    ("bucket_duration_p90_s", "critical", 120): (BAD, ""),
    ("buckets_over_90s", "warning", 5): (MILD, ""),
    ("bucket_lag_s", "warning", 60): (MILD, ""),
    ("bucket_lag_s", "critical", 300): (BAD, ""),
    ("bucket_id_anomalies", "critical", 0): (BAD, ""),
    ("source_gap_s", "warning", 0): (BAD, "orderbooks"),
    ("stuck_value_s", "warning", 0): (BAD, "open_interests"),
    ("duplicate_trades", "warning", 0): (BAD, ""),
    ("late_trade_share", "warning", 0.01): (MILD, ""),
    ("late_trade_share", "critical", 0.05): (BAD, ""),
    ("clock_skew_ms", "warning", 100): (MILD, "trades"),
    ("clock_skew_ms", "critical", 1000): (BAD, "trades"),
    ("crossed_books", "warning", 0): (None, "orderbooks:feed"),
    ("quarantined_lines", "warning", 0): (None, "trades:feed:bad_number"),
    ("missing_share", "warning", 0.05): (BAD, "vpin"),
    ("venue_off_share", "warning", 0.2): (MILD, "y:spot:REF"),
    ("venue_off_share", "critical", 0.8): (BAD, "y:spot:REF"),
    ("udf_failures", "warning", 0): (BAD, "hawkes_fits"),
    ("stale_candidates_share", "warning", 0): (BAD, ""),
    ("score_latency_p99_ms", "warning", 50): (None, "off:v"),
    ("score_latency_p99_ms", "critical", 80): (None, "gone:v"),
    **{
        (f"{subject}_psi_{reference}", severity, limit): (BAD, detail)
        for reference in ("week", "training")
        for subject, details in (("feature", list(SHIFTS)), ("prediction", ["off:v", "further:v", "gone:v"]))
        for (severity, limit), detail in zip(
            [("warning", 0.1), ("warning", 0.15), ("critical", 0.25)], details, strict=True
        )
    },
    **{
        (f"{subject}_ks_{reference}", "warning", 0.2): (BAD, detail)
        for reference in ("week", "training")
        for subject, detail in (("feature", "amihud"), ("prediction", "gone:v"))
    },
    ("prediction_ic", "warning", 0): (None, "gone:v"),
    ("prediction_ece", "warning", 0.1): (None, "gone:v"),
    ("prediction_turnover", "warning", 0.5): (None, "gone:v"),
    ("live_view_failed", "warning", 0): (None, "failed_live"),
    ("live_view_age_s", "warning", 60): (None, "slow_live"),
    ("live_view_age_s", "critical", 300): (None, "failed_live"),
    ("job_failures", "warning", 0): (None, "parity"),
    ("job_failures", "critical", 2): (None, "drift"),
    ("job_overdue", "warning", 2): (None, "archive"),
}


def plant_clock(instrument: Instrument, seconds: float, lag_s: float) -> None:
    """Ten-second buckets until the last hour, then so long ones; the last one ended `lag_s` before now."""
    rows = buckets(instrument, START, NOW - HOUR, 10)
    rows += buckets(instrument, NOW - HOUR, NOW - lag_s * SECOND, seconds)
    if instrument == BAD:
        rows.append(rows[-2])
    insert("unified_buckets", rows)


def plant_features(instrument: Instrument) -> None:
    """The same quantiles in each span; the bad one's last span is shifted, and one feature goes missing."""
    rows = []
    for i in range(3 * N):
        span, place = divmod(i, N)
        shifted = instrument == BAD and span == 2
        z = float(Z[place])
        row = {name: z + (shift if shifted else 0.0) for name, shift in SHIFTS.items()}
        row["vpin"] = None if shifted and place % 4 == 0 else 0.5
        # a price moves, and that is no finding
        row["mid_close"] = 100.0 + i
        start = START + 20 * i * SECOND
        times = {"bucket_id": i, "bucket_ts_start": start, "bucket_ts_end": start + 20 * SECOND}
        rows.append(key(instrument) | times | row)
    insert("feature_vector_v2", rows)


def plant_feeds(instrument: Instrument, received_ms: float, late: int, off: int) -> None:
    """An hour of trades received so long after their event, late ones of a thousand, buckets of ten without a reference."""
    at = key(instrument)
    hour, times = NOW - HOUR, {"first_at": NOW - HOUR, "last_at": NOW}
    trades = [
        at
        | {"timestamp": (t := hour + 30 * (i + 1) * SECOND), "trade_id": str(i), "price": 1, "quantity": 1}
        | {
            "side": "buy",
            "trade_time": t,
            "known_at": t,
            "received_at": t + timedelta(milliseconds=received_ms),
        }
        | {"data_source": "feed"}
        for i in range(100)
    ]
    if instrument == BAD:
        trades.append(trades[5] | {"timestamp": (t := hour + 3000 * SECOND), "known_at": t})
    insert("trades", trades, layer="hot")
    insert("late_trades", [at | {"hour": hour, "trades": 1000, "late_trades": late}])
    reference = {"reference_exchange": "y", "reference_market_type": "spot", "reference_symbol": "REF"}
    verdicts = [("on", 10 - off), ("few_trades", off)]
    insert(
        "cross_verdicts",
        [at | reference | {"hour": hour, "verdict": v, "buckets": n} | times for v, n in verdicts if n],
    )
    if instrument == BAD:
        stopped = [("orderbooks", "stale"), ("open_interests", "stuck")]
        insert(
            "stale_sources",
            [at | {"kind": k, "hour": hour, "reason": r, "worst_age_s": 500.0} | times for k, r in stopped],
        )
        insert("udf_failures", [at | {"model_name": "hawkes_fits", "hour": hour, "failed_rows": 2}])
        insert("stale_candidates", [at | {"hour": hour, "buckets": 10, "stale_buckets": 1}])


def plant_model(name: str, instrument: Instrument) -> None:
    """Scores of six hours on an instrument. `gone` says the contrary of what comes, too sure, too slowly, and to and fro."""
    is_bad = name == "gone"
    model = {"model_name": name, "model_version": "v"}
    rows = []
    for i in range(3 * N):
        span, place = divmod(i, N)
        shift = MODELS[name] if span == 2 else 0.0
        score = float(np.clip(0.2 * (Z[place] + shift), -0.99, 0.99))
        p = [(1 - score) / 2, 0.0, (1 + score) / 2]
        if is_bad:
            # as likely as it should be, the wrong way round: both shares add up to one
            p = p[::-1]
        end = START + 20 * (i + 1) * SECOND
        rows.append(
            key(instrument)
            | model
            | {"bucket_id": i, "bucket_ts_end": end, "predicted_at": end, "role": "champion"}
            | {"probabilities": p, "signal": (i % 2 if is_bad else 1)}
            | {"total_us": {"off": 60_000, "gone": 90_000}.get(name, 5_000)}
        )
    insert("predictions", rows, layer="serving")


def plant_labels(instrument: Instrument) -> None:
    """What the score of `fine` says comes, with its probability."""
    rng = np.random.default_rng(5)
    rows = []
    for i in range(3 * N):
        score = float(np.clip(0.2 * Z[i % N], -0.99, 0.99))
        came = 1 if rng.random() < (1 + score) / 2 else -1
        end = {"bucket_id": i, "bucket_ts_end": START + 20 * (i + 1) * SECOND}
        rows.append(key(instrument) | end | {"label_cls_3": came, "label_ret_ps_3": came * 1e-5})
    insert("bucket_labels", rows)


def plant_views(ages_s: dict[str, float], exception: str = "") -> None:
    """Live views that were refreshed so long before now."""
    rows = [
        {"name": name, "last_success_at": NOW - age * SECOND, "exception": exception}
        for name, age in ages_s.items()
    ]
    insert("view_refreshes", rows)


def plant_jobs(job: str, every: timedelta, *statuses: str) -> None:
    """Runs of a job, the last one a period before now; two rows each, as a run writes them."""
    for i, status in enumerate(reversed(statuses), 1):
        run = {"job": job, "run_id": uuid.uuid4(), "started_at": NOW - i * every}
        insert("job_runs", [run | {"status": "running"}], layer="serving")
        insert("job_runs", [run | {"finished_at": NOW, "status": status}], layer="serving")


def deploy(names: list[str]) -> None:
    """Cards with the first two hours as training span; the first model is the champion."""
    card = {
        "label": "label_cls_3",
        "training_first_as_of": (START + 20 * SECOND).isoformat(),
        "training_last_as_of": (START + 2 * HOUR).isoformat(),
    }
    models = [{"model_name": name, "model_version": "v"} for name in names]
    insert(
        "models",
        [m | {"card": json.dumps(card), "available": True, "at": START} for m in models],
        layer="serving",
    )
    insert("scored_models", [m | {"classes": [-1, 0, 1]} for m in models], layer="serving")
    deployed = {"sequence": 1, "at": START, "action": "promote"}
    champion = {"champion_name": names[0], "champion_version": "v"}
    insert("deployments", [deployed | champion], layer="serving")


Z: Final = normal(N, 3)
Finding = tuple[str, str, float]


def findings() -> dict[Finding, set[Place]]:
    found: dict[Finding, set[Place]] = {}
    for r in query("select * from health_findings"):
        instrument = Instrument(r["exchange"], r["market_type"], r["symbol"]) if r["symbol"] else None
        found.setdefault((r["metric"], r["severity"], r["threshold"]), set()).add((instrument, r["detail"]))
    return found


def severities(**variables: object) -> dict[str, str]:
    """The tests that fail on a breach: name -> status; none where they are switched off."""
    target = str(settings().data_dir / "dbt" / settings().db_prefix)
    words = [
        "test",
        "--select",
        "no_warning",
        "nothing_critical",
        "--quiet",
        "--project-dir",
        str(REPOSITORY),
    ]
    words += ["--profiles-dir", str(REPOSITORY), "--target-path", target, "--log-path", target]
    result = dbtRunner().invoke([*words, "--vars", json.dumps(VARS | variables)])
    tests = [r for r in result.result or [] if r.node.resource_type == NodeType.Test]  # type: ignore[union-attr]
    return {r.node.name: str(r.status) for r in tests}


@pytest.fixture(scope="module")
def clean(module_store: Settings) -> dict[Finding, set[Place]]:
    """The findings on a clean instrument and a model that is fine."""
    create_relations()
    plant_clock(CLEAN, 10, 4)
    plant_features(CLEAN)
    plant_feeds(CLEAN, 20, 0, 0)
    plant_labels(CLEAN)
    plant_model("fine", CLEAN)
    deploy(["fine"])
    plant_views({"good_live": 50})
    plant_jobs("candidates", timedelta(minutes=5), "failed", "ok")
    plant_jobs("calibration", timedelta(days=1), "ok", "ok", "skipped")
    plant_jobs("build", timedelta(days=30), "ok")  # on demand: never overdue
    dbt("build", "--exclude-resource-type", "test", "unit_test", select=f"{SEEDS} {DRIFT} {HEALTH}", **VARS)
    return findings()


def test_clean_data_is_silent_though_it_is_measured(clean: dict[Finding, set[Place]]) -> None:
    assert clean == {}
    measured = {r["metric"] for r in query("select distinct metric from health_metrics")}
    # what has a row only where something happened
    happened = {
        "source_gap_s",
        "stuck_value_s",
        "crossed_books",
        "quarantined_lines",
        "udf_failures",
        "stale_candidates_share",
    }
    assert {metric for metric, *_ in THRESHOLDS} - measured == happened
    assert query("select symbol, signal_rank, reasons from instrument_signals") == [
        {"symbol": "CLEAN", "signal_rank": 0, "reasons": []}
    ]


@pytest.fixture(scope="module")
def planted(clean: object) -> Iterator[dict[Finding, set[Place]]]:
    """The findings with a mild and a bad instrument beside the clean one, and three models that are off."""
    plant_clock(MILD, 100, 100)
    plant_clock(BAD, 130, 400)
    plant_feeds(MILD, -200, 20, 5)
    plant_feeds(BAD, -2000, 100, 10)
    plant_features(BAD)
    plant_labels(BAD)
    for name in ("off", "further", "gone"):
        plant_model(name, BAD)
    insert(
        "scored_models",
        [{"model_name": n, "model_version": "v", "classes": [-1, 0, 1]} for n in MODELS],
        layer="serving",
    )
    card = json.dumps({"label": "label_cls_3"})
    others = [
        {"model_name": n, "model_version": "v", "card": card, "at": START} for n in MODELS if n != "fine"
    ]
    insert("models", others, layer="serving")
    refused = [("orderbooks", "crossed_book"), ("trades", "bad_number")]
    insert(
        "quarantine", [{"kind": k, "data_source": "feed", "reason_code": r} for k, r in refused], layer="hot"
    )
    plant_views({"slow_live": 100})
    plant_views({"failed_live": 301}, "Code: 241")
    insert("view_refreshes", [{"name": "never_live", "exception": "Code: 60"}])
    plant_jobs("parity", timedelta(hours=12), "failed", "ok", "failed", "failed")
    plant_jobs("drift", timedelta(hours=8), "failed", "skipped", "failed", "failed")
    plant_jobs("archive", timedelta(hours=1), "ok", "running", "skipped")
    states = "instrument_state_changes instrument_states"
    dbt("run", select=f"drift_bins feature_drift prediction_drift source_health {states}", **VARS)
    yield findings()


@pytest.mark.parametrize("threshold", THRESHOLDS, ids=lambda t: "-".join(map(str, t)))
def test_a_threshold_fires_where_it_is_planted(
    planted: dict[Finding, set[Place]], threshold: tuple[str, str, float]
) -> None:
    assert threshold in PLANTED, "a new row of the seed needs a planted case"
    assert PLANTED[threshold] in planted.get(threshold, set())
    assert not any(instrument == CLEAN for instrument, _ in planted[threshold])


def test_a_warning_is_not_yet_critical(planted: dict[Finding, set[Place]]) -> None:
    critical = {
        place for (_, severity, _), places in planted.items() if severity == "critical" for place in places
    }
    assert not any(instrument == MILD for instrument, _ in critical)
    assert (None, "off:v") not in critical
    critical_jobs = {
        detail
        for (metric, severity, _), places in planted.items()
        for _, detail in places
        if metric.startswith(("job", "live")) and severity == "critical"
    }
    assert critical_jobs == {"failed_live", "drift"}
    assert not any(
        detail in ("good_live", "candidates", "calibration", "build")
        for places in planted.values()
        for _, detail in places
    )
    # one that never succeeded fails, and has no age
    assert query("select metric, value from health_metrics where detail = 'never_live' order by metric") == [
        {"metric": "live_view_age_s", "value": None},
        {"metric": "live_view_failed", "value": 1},
    ]
    # a price that moves is seen, and alerts nobody
    assert not any(detail == "mid_close" for places in planted.values() for _, detail in places)
    assert query("select max(psi) > 0.25 as moved from feature_drift where feature = 'mid_close'") == [
        {"moved": 1}
    ]


def test_the_worst_finding_decides_what_is_asked_for(planted: dict[Finding, set[Place]]) -> None:
    rows = {r["symbol"]: (r["signal_rank"], r["reasons"]) for r in query("select * from instrument_signals")}
    assert rows["CLEAN"] == (0, [])
    assert rows["MILD"] == (1, ["bucket_lag_s"])
    rank, reasons = rows["BAD"]
    assert rank == 3
    assert {"bucket_id_anomalies", "bucket_lag_s", "bucket_duration_p90_s", "venue_off_share"} <= set(reasons)
    states = {
        r["symbol"]: (r["state"], r["since"], r["as_of"]) for r in query("select * from instrument_states")
    }
    assert states == {"CLEAN": ("ok", NOW, NOW), "MILD": ("degraded", NOW, NOW), "BAD": ("halted", NOW, NOW)}


def test_breaches_fail_by_severity_where_a_feed_is_live(planted: object) -> None:
    assert severities() == {}
    assert severities(health_tests=True) == {"no_warning": "warn", "nothing_critical": "fail"}
