"""What is exported: one query a relation, and the gauges that its columns become. All logic is in the models read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from python_udfs.settings import Layer, settings

INSTRUMENT: Final = ("exchange", "market_type", "symbol")


@dataclass(frozen=True, slots=True)
class Gauge:
    """A family: `marketprism_<name>`, its value from one column, its labels from others. NULL values are left out."""

    name: str
    help: str
    value: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """A relation, the query that reads it (`{relation}` stands for it), and its gauges."""

    layer: Layer
    relation: str
    sql: str
    gauges: tuple[Gauge, ...]

    def query(self) -> str:
        return self.sql.format(relation=f"`{settings().database(self.layer)}`.`{self.relation}`")


_BUCKETS = """
    with
    newest as (
        select max(bucket_ts_start) as newest_start
        from {relation}
    )
    select
        exchange,
        market_type,
        symbol,
        dateDiff('millisecond', max(bucket_ts_end), now64(3, 'UTC')) / 1000 as lag_s,
        quantileTDigestIf(0.5)(duration_s, is_last_hour) as duration_p50,
        quantileTDigestIf(0.9)(duration_s, is_last_hour) as duration_p90,
        quantileTDigestIf(0.99)(duration_s, is_last_hour) as duration_p99,
        avgIf(trade_count, is_last_hour) as trades_mean,
        countIf(is_last_hour) as buckets,
        countIf(is_last_hour and cut_trigger = 'time') as cuts_time,
        countIf(is_last_hour and cut_trigger = 'anchor') as cuts_anchor,
        countIf(is_last_hour and cut_trigger not in ('time', 'anchor')) as cuts_own
    from (
        select
            *,
            bucket_ts_start > (select newest_start from newest) - toIntervalHour(1) as is_last_hour
        from {relation}
        where bucket_ts_start > (select newest_start from newest) - toIntervalDay(1)
    )
    group by exchange, market_type, symbol
"""

_PREDICTIONS = """
    select
        model_name as model,
        toString(part.1) as stage,
        quantileTDigest(0.5)(part.2) / 1e6 as p50_s,
        quantileTDigest(0.99)(part.2) / 1e6 as p99_s,
        max(part.3) / 1e6 as budget_s,
        countIf(has(over_budget, part.1)) / count() as over_budget_share,
        uniqExact(request_id) as requests,
        dateDiff('millisecond', max(predicted_at), now64(3, 'UTC')) / 1000 as age_s
    from {relation}
    array join
        [
            ('read', read_us, read_budget_us),
            ('prepare', prepare_us, prepare_budget_us),
            ('run', run_us, run_budget_us),
            ('total', total_us, total_budget_us)
        ] as part
    where predicted_at > (select max(predicted_at) from {relation}) - toIntervalHour(1)
    group by model, stage
"""

SOURCES: Final = (
    Source(
        "features",
        "unified_buckets",
        _BUCKETS,
        (
            Gauge("latest_bucket_lag_seconds", "Age of the newest bucket's end.", "lag_s", INSTRUMENT),
            *(
                Gauge(
                    f"bucket_duration_seconds_{q}",
                    f"Duration of the last hour's buckets: {q}.",
                    f"duration_{q}",
                    INSTRUMENT,
                )
                for q in ("p50", "p90", "p99")
            ),
            Gauge("bucket_trades_mean", "Trades per bucket of the last hour.", "trades_mean", INSTRUMENT),
            Gauge("buckets_last_hour", "Buckets of the last hour.", "buckets", INSTRUMENT),
            *(
                Gauge(
                    f"bucket_cuts_{trigger}_last_hour",
                    f"Buckets of the last hour that {what} cut.",
                    f"cuts_{trigger}",
                    INSTRUMENT,
                )
                for trigger, what in (
                    ("own", "volume (or the mode's own measure)"),
                    ("time", "time"),
                    ("anchor", "an anchor"),
                )
            ),
        ),
    ),
    Source(
        "serving",
        "predictions",
        _PREDICTIONS,
        (
            Gauge(
                "score_stage_seconds_p50", "Median time of a stage of scoring.", "p50_s", ("model", "stage")
            ),
            Gauge("score_stage_seconds_p99", "99th percentile of the same.", "p99_s", ("model", "stage")),
            Gauge("score_stage_budget_seconds", "What the stage may take.", "budget_s", ("model", "stage")),
            Gauge(
                "score_over_budget_ratio",
                "Share of predictions whose stage took longer.",
                "over_budget_share",
                ("model", "stage"),
            ),
            Gauge("score_requests_last_hour", "Requests scored.", "requests", ("model", "stage")),
            Gauge(
                "last_prediction_age_seconds", "Age of the newest prediction.", "age_s", ("model", "stage")
            ),
        ),
    ),
    Source(
        "features",
        "health_metrics",
        "select metric, exchange, market_type, symbol, detail, value from {relation}",
        (
            Gauge(
                "health_value",
                "Newest value of a health metric; its alert is a row of seeds/health_thresholds.csv.",
                "value",
                ("metric", *INSTRUMENT, "detail"),
            ),
        ),
    ),
    Source(
        "features",
        "health_findings",
        "select metric, severity, exchange, market_type, symbol, detail, 1 as found from {relation}",
        (
            Gauge(
                "health_finding",
                "A health metric is beyond its threshold.",
                "found",
                ("metric", "severity", *INSTRUMENT, "detail"),
            ),
        ),
    ),
    Source(
        "features",
        "instrument_states",
        "select exchange, market_type, symbol, state, 1 as found from {relation}",
        (Gauge("instrument_state", "The state an instrument is in.", "found", (*INSTRUMENT, "state")),),
    ),
    Source(
        "features",
        "view_refreshes",
        """
        select
            name,
            exception != '' as is_failed,
            dateDiff('millisecond', last_success_at, now64(3, 'UTC')) / 1000 as age_s
        from {relation}
        """,
        (
            Gauge("view_refresh_failed", "The last refresh of a live view failed.", "is_failed", ("name",)),
            Gauge("view_refresh_age_seconds", "Time since a live view was refreshed.", "age_s", ("name",)),
        ),
    ),
    Source(
        "features",
        "freshness",
        "select feature_vector, exchange, market_type, symbol, p50_s, p99_s from {relation}",
        (
            Gauge(
                "feature_freshness_seconds_p50",
                "From the closing trade's insert to the feature row: median. No instrument named: all together.",
                "p50_s",
                ("feature_vector", *INSTRUMENT),
            ),
            Gauge(
                "feature_freshness_seconds_p99",
                "99th percentile of the same.",
                "p99_s",
                ("feature_vector", *INSTRUMENT),
            ),
        ),
    ),
    Source(
        "serving",
        "job_runs",
        """
        select
            job,
            argMax(toString(status), started_at) as last_status,
            last_status = 'failed' as is_failed,
            dateDiff('millisecond', maxIf(finished_at, status = 'ok'), now64(3, 'UTC')) / 1000 as success_age_s,
            dateDiff('millisecond', max(started_at), argMax(finished_at, started_at)) / 1000 as duration_s
        from {relation} final
        group by job
        """,
        (
            Gauge("job_failed", "The last run of a job failed.", "is_failed", ("job",)),
            Gauge("job_success_age_seconds", "Time since a job's last success.", "success_age_s", ("job",)),
            Gauge("job_duration_seconds", "Duration of a job's last run.", "duration_s", ("job",)),
        ),
    ),
    Source(
        "serving",
        "quality_runs",
        """
        select
            argMax(length(failed), finished_at) as failed_expectations,
            argMax(toUInt32(expectations), finished_at) as all_expectations,
            dateDiff('millisecond', max(finished_at), now64(3, 'UTC')) / 1000 as age_s
        from {relation}
        having count() > 0
        """,
        (
            Gauge("quality_failed_expectations", "Of the newest quality run.", "failed_expectations"),
            Gauge("quality_expectations", "Of the newest quality run.", "all_expectations"),
            Gauge("quality_run_age_seconds", "Time since it.", "age_s"),
        ),
    ),
)
