{{ config(tags=['health']) }}
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

measured as (
    select
        metric,
        exchange,
        market_type,
        symbol,
        '' as detail,
        value,
        (select window_to from bounds) as as_of
    from recent_buckets
    array join
        ['bucket_duration_p90_s', 'buckets_over_90s'] as metric,
        [duration_p90_s, toFloat64(over_90s)] as value
    union all
    select
        metric,
        exchange,
        market_type,
        symbol,
        '' as detail,
        value,
        (select judged_at from bounds) as as_of
    from clocks
    array join
        ['bucket_lag_s', 'bucket_id_anomalies'] as metric,
        [least_lag_s, toFloat64(anomalies)] as value
    union all
    select
        metric,
        exchange,
        market_type,
        symbol,
        detail,
        value,
        as_of
    from {{ ref('source_health') }}
    union all
    select
        'score_latency_p99_ms' as metric,
        '' as exchange,
        '' as market_type,
        '' as symbol,
        concat(model_name, ':', model_version) as detail,
        p99_ms as value,
        last_at as as_of
    from latencies
    {%- for model, subject in [('feature_drift', 'feature'), ('prediction_drift', 'prediction')] %}
    union all
    select
        concat('{{ subject }}_', statistic, '_', reference) as metric,
        exchange,
        market_type,
        symbol,
        {{ 'feature' if subject == 'feature' else "concat(model_name, ':', model_version)" }} as detail,
        value,
        current_to as as_of
    from {{ ref(model) }}
    array join
        ['psi', 'ks'] as statistic,
        [toNullable(psi), ks] as value
    {%- if subject == 'feature' %}
    -- a price never comes back to where it was: that is no fault of the feature
    where not is_price
    {%- endif %}
    {%- endfor %}
    union all
    select
        metric,
        '' as exchange,
        '' as market_type,
        '' as symbol,
        concat(model_name, ':', model_version) as detail,
        value,
        last_at as as_of
    from prediction_day
    array join
        ['prediction_ic', 'prediction_ece', 'prediction_turnover'] as metric,
        [ic, ece, toNullable(turnover_per_bucket)] as value
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
