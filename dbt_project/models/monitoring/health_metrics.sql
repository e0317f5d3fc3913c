{{ config(tags=['health']) }}
{%- set by_instrument = [
    ('recent_buckets', 'window_to', {'bucket_duration_p90_s': 'duration_p90_s', 'buckets_over_90s': 'toFloat64(over_90s)'}),
    ('clocks', 'judged_at', {'bucket_lag_s': 'least_lag_s', 'bucket_id_anomalies': 'toFloat64(anomalies)'}),
] %}
{%- set model = "concat(model_name, ':', model_version)" %}
{%- set by_detail = [
    ('latencies', model, 'last_at', {'score_latency_p99_ms': 'p99_ms'}),
    (
        'prediction_day',
        model,
        'last_at',
        {'prediction_ic': 'ic', 'prediction_ece': 'ece', 'prediction_turnover': 'toNullable(turnover_per_bucket)'},
    ),
    ('live_views', 'name', '(select judged_at from bounds)', {'live_view_failed': 'toNullable(toFloat64(failed))', 'live_view_age_s': 'age_s'}),
    ('jobs', 'job', 'last_at', {'job_failures': 'toFloat64(failures)'}),
    ('overdue_jobs', 'job', '(select judged_at from bounds)', {'job_overdue': 'periods'}),
] %}
-- One row per metric, instrument and detail: its newest value. What alerts, what does not: health_findings.
with judged as (
    select {{ health_now() }} as judged_at
),

bounds as (
    select
        judged_at,
        least(judged_at, assumeNotNull((select toDateTime64(max(bucket_ts_end), 3, 'UTC') from {{ ref('unified_buckets') }}))) as window_to,
        window_to - toIntervalSecond({{ var('health_window_s') }}) as window_from
    from judged
),

recent_buckets as (
    select
        exchange,
        market_type,
        symbol,
        quantileExactInclusive(0.9)(duration_s) as duration_p90_s, -- noqa: LT01
        countIf(duration_s > 90) as over_90s
    from {{ ref('unified_buckets') }}
    where
        -- whole days can be skipped; no bucket is longer than one
        bucket_ts_start > (select window_from - toIntervalDay(1) from bounds)
        and bucket_ts_end > (select window_from from bounds)
        and bucket_ts_end <= (select window_to from bounds)
    group by exchange, market_type, symbol
),

-- An unsound id stays a finding until it is repaired, or leaves `health_days`.
clocks as (
    select
        exchange,
        market_type,
        symbol,
        min(lag_s) as least_lag_s,
        sum(id_anomalies) as anomalies
    from {{ ref('bucket_health') }}
    group by exchange, market_type, symbol
),

-- The newest whole or begun day of each model.
prediction_day as (
    select
        model_name,
        model_version,
        last_at,
        ic,
        ece,
        turnover_per_bucket
    from {{ ref('prediction_days') }}
    where day <= (select toDate(judged_at) from bounds) -- noqa: RF04
    order by day desc
    limit 1 by model_name, model_version
),

latencies as (
    select
        model_name,
        model_version,
        max(predicted_at) as last_at,
        quantileExactInclusive(0.99)(total_us) / 1000 as p99_ms -- noqa: LT01
    from {{ source('serving', 'predictions') }}
    where
        predicted_at <= (select judged_at from bounds)
        and predicted_at > (select judged_at - toIntervalSecond({{ var('health_window_s') }}) from bounds)
    group by model_name, model_version
),

live_views as (
    select
        name,
        exception != '' as failed,
        dateDiff('millisecond', last_success_at, (select judged_at from bounds)) / 1000 as age_s
    from {{ ref('view_refreshes') }}
),

runs as (
    select
        job,
        started_at,
        status
    from {{ source('serving', 'job_runs') }} final
    where started_at <= (select judged_at from bounds)
),

-- A job that never succeeded is as old as its first run.
jobs as (
    select
        job,
        groupArray((started_at, status)) as all_runs,
        maxOrNullIf(started_at, status = 'ok') as ok_at,
        arrayCount(run -> run.2 = 'failed' and (ok_at is null or run.1 > ok_at), all_runs) as failures,
        ifNull(ok_at, min(started_at)) as ok_or_first_at,
        max(started_at) as last_at
    from runs
    group by job
),

overdue_jobs as (
    select
        j.job as job,
        dateDiff('millisecond', j.ok_or_first_at, (select judged_at from bounds)) / 1000 / s.every_s as periods
    from jobs as j
    inner join {{ ref('health_jobs') }} as s on j.job = s.job
),

measured as (
    {%- for relation, as_of, values in by_instrument %}
    select
        metric,
        exchange,
        market_type,
        symbol,
        '' as detail,
        value,
        (select {{ as_of }} from bounds) as as_of
    from {{ relation }}
    array join
        ['{{ values | join("', '") }}'] as metric,
        [{{ values.values() | join(', ') }}] as value
    union all
    {%- endfor %}
    select
        metric,
        exchange,
        market_type,
        symbol,
        detail,
        value,
        as_of
    from {{ ref('source_health') }}
    {%- for drift, subject in [('feature_drift', 'feature'), ('prediction_drift', 'prediction')] %}
    union all
    select
        concat('{{ subject }}_', statistic, '_', reference) as metric,
        exchange,
        market_type,
        symbol,
        {{ 'feature' if subject == 'feature' else model }} as detail,
        value,
        current_to as as_of
    from {{ ref(drift) }}
    array join
        ['psi', 'ks'] as statistic,
        [toNullable(psi), ks] as value
    {%- if subject == 'feature' %}
    -- a price never comes back to where it was: that is no fault of the feature
    where not is_price
    {%- endif %}
    {%- endfor %}
    {%- for relation, detail, as_of, values in by_detail %}
    union all
    select
        metric,
        '' as exchange,
        '' as market_type,
        '' as symbol,
        {{ detail }} as detail,
        value,
        {{ as_of }} as as_of
    from {{ relation }}
    array join
        ['{{ values | join("', '") }}'] as metric,
        [{{ values.values() | join(', ') }}] as value
    {%- endfor %}
)

select
    toString(metric) as metric,
    toString(exchange) as exchange,
    toString(market_type) as market_type,
    toString(symbol) as symbol,
    toString(detail) as detail,
    toNullable(toFloat64(value)) as value,
    assumeNotNull(toDateTime64(as_of, 3, 'UTC')) as as_of
from measured
