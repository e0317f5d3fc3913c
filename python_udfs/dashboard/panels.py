"""What the page shows: one query a panel. A relation that is not there yet is a panel that says how to make it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.exporter.queries import SOURCES
from python_udfs.settings import settings

Row = dict[str, Any]
_CODES: Final = driver_errors.ErrorCodes
_ABSENT: Final = (_CODES.UNKNOWN_TABLE, _CODES.UNKNOWN_DATABASE)
# Seconds that all queries of one look may take.
BUDGET_S: Final = 8.0
HEADLINES: Final = (
    ("mid_close", "mid"),
    ("spread_bps_close", "spread, bps"),
    ("tob_imbalance_close", "book imb."),
    ("flow_imbalance", "flow imb."),
    ("ofi", "OFI"),
    ("vpin", "VPIN"),
    ("rv", "RV"),
    ("kyle_lambda", "Kyle λ"),
)
_DAY: Final = "bucket_ts_start > (select max(bucket_ts_start) from {f}.%s) - toIntervalDay(1)"
_BY_INSTRUMENT: Final = "exchange, market_type, symbol"

# {f}: features, {s}: serving
_QUERIES: Final[Mapping[str, str]] = {
    "states": "select exchange, market_type, symbol, state, reasons, since from {f}.instrument_states",
    "findings": """
        select severity, metric, exchange, market_type, symbol, detail, value, threshold, runbook, as_of
        from {f}.health_findings
        order by severity = 'critical' desc, metric, exchange, market_type, symbol, detail, threshold desc
        limit 1 by severity, metric, exchange, market_type, symbol, detail
        limit 200
    """,
    "features": f"""
        select {_BY_INSTRUMENT}, bucket_ts_end, {", ".join(name for name, _ in HEADLINES)}
        from {{f}}.feature_vector_v2
        where {_DAY % "feature_vector_v2"}
        order by bucket_ts_end desc
        limit 1 by {_BY_INSTRUMENT}
    """,
    "prices": f"""
        select {_BY_INSTRUMENT}, arrayReverse(groupArray(close_price)) as prices
        from (
            select {_BY_INSTRUMENT}, close_price
            from {{f}}.feature_vector_v2
            where {_DAY % "feature_vector_v2"}
            order by bucket_ts_end desc
            limit 60 by {_BY_INSTRUMENT}
        )
        group by {_BY_INSTRUMENT}
    """,
    "scores": f"""
        select {_BY_INSTRUMENT}, predicted_at, model_name, model_version, toString(role) as played, score, confidence,
            signal, fallback, fallback_reason, total_us, missing_features,
            dateDiff('millisecond', predicted_at, now64(3, 'UTC')) / 1000 as age_s
        from {{s}}.predictions
        where served and predicted_at > (select max(predicted_at) from {{s}}.predictions) - toIntervalDay(1)
        order by predicted_at desc
        limit 1 by {_BY_INSTRUMENT}
    """,
    "drift": f"""
        select feature, reference, psi, ks, {_BY_INSTRUMENT}, current_known, current_to
        from {{f}}.feature_drift
        where not is_price and isFinite(psi)
        order by psi desc
        limit 1 by feature
        limit 15
    """,
    "comparison": "select * from {f}.rollout_comparison order by sequence desc limit 1",
    "deployments": """
        select sequence, at, toString(action) as command, champion_name, champion_version, challenger_name,
            challenger_version, baseline_name, baseline_version, share, who, reason
        from {s}.deployments
        order by sequence desc
        limit 6
    """,
    "jobs": """
        select job, started_at, finished_at, toString(status) as ended, detail, host,
            dateDiff('millisecond', started_at, finished_at) / 1000 as duration_s,
            dateDiff('millisecond', started_at, now64(3, 'UTC')) / 1000 as age_s
        from {s}.job_runs final
        order by started_at desc
        limit 1 by job
    """,
    "views": "select name, status, last_success_at, exception, "
    "dateDiff('millisecond', last_success_at, now64(3, 'UTC')) / 1000 as age_s from {f}.view_refreshes order by name",
    "freshness": """
        select feature_vector, p50_s, p99_s, max_s, row_count
        from {f}.freshness
        where symbol = ''
        order by feature_vector
    """,
    "quality": """
        select finished_at, success, relations, expectations, failed,
            dateDiff('millisecond', finished_at, now64(3, 'UTC')) / 1000 as age_s
        from {s}.quality_runs
        order by finished_at desc
        limit 1
    """,
}


@dataclass(frozen=True, slots=True)
class Panel:
    """rows of a query; or why there are none, in words for the page (`…`: a command)."""

    rows: list[Row] = field(default_factory=list)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the store says at a moment. down: why nothing could be asked at all."""

    at: datetime
    panels: Mapping[str, Panel]
    took_s: float = 0.0
    down: str = ""


def queries() -> dict[str, str]:
    """The query of each panel, on the databases of the current prefix."""
    s = settings()
    places = {"f": f"`{s.database('features')}`", "s": f"`{s.database('serving')}`"}
    exported = {source.relation: source.query() for source in SOURCES}
    return {
        "buckets": exported["unified_buckets"],
        "latency": exported["predictions"],
        **{name: sql.format(**places) for name, sql in _QUERIES.items()},
    }


def snapshot() -> Snapshot:
    """Asks every panel's query, within BUDGET_S together. Never raises for what the store is or lacks."""
    began = time.monotonic()
    try:
        with db.connect(readonly=2) as c:
            panels = {
                name: _panel(c, sql, BUDGET_S - (time.monotonic() - began)) for name, sql in queries().items()
            }
    except UserError as e:
        return Snapshot(datetime.now(UTC), {}, time.monotonic() - began, str(e))
    return Snapshot(datetime.now(UTC), panels, time.monotonic() - began)


def _panel(c: Client, sql: str, left_s: float) -> Panel:
    if left_s <= 0:
        return Panel(problem="There was no time left to ask: the queries before took too long.")
    bounded = f"{sql} settings join_use_nulls = 1, max_threads = 2, max_execution_time = {left_s:.1f}"
    try:
        return Panel(db.rows(c, bounded))
    except driver_errors.ServerException as e:
        if e.code in _ABSENT:
            command = "make migrate" if settings().database("serving") in sql else "make build"
            return Panel(problem=f"Not there yet: `{command}` makes it.")
        if e.code == _CODES.UNKNOWN_IDENTIFIER:
            return Panel(
                problem="It is of another version than this page: `make build` brings it up to date."
            )
        if e.code in (_CODES.TIMEOUT_EXCEEDED, _CODES.MEMORY_LIMIT_EXCEEDED):
            return Panel(problem="It could not be read in time.")
        return Panel(problem=str(e.message).split("Stack trace")[0].strip())
