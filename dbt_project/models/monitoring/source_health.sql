{{ config(materialized='table', order_by='(metric, exchange, market_type, symbol, detail)', tags=['health', 'sources']) }}
{%- set features = feature_names('feature_vector', 2) %}
{%- set window = "toIntervalSecond(" ~ var('health_window_s') ~ ")" %}
{%- set nowhere = "'' as exchange, '' as market_type, '' as symbol" %}
-- One row per metric, instrument and detail: what the raw feeds and what was made of them were like in the last window.
with judged as (
    select {{ health_now() }} as judged_at
),

-- Recorded data is judged as of its own end: the window ends with the newest bucket.
bounds as (
    select
        judged_at,
        least(judged_at, assumeNotNull((select toDateTime64(max(bucket_ts_end), 3, 'UTC') from {{ ref('unified_buckets') }}))) as window_to,
        window_to - {{ window }} as window_from
    from judged
),

stopped as (
    select
        if(reason = 'stuck', 'stuck_value_s', 'source_gap_s') as metric,
        exchange,
        market_type,
        symbol,
        kind as detail,
        max(worst_age_s) as value
    from {{ ref('stale_sources') }}
    where last_at > (select window_from from bounds) and first_at <= (select window_to from bounds)
    group by metric, exchange, market_type, symbol, detail
),

-- Before merges: an id that came twice, at one time or at two.
recent_trades as (
    select
        exchange,
        market_type,
        symbol,
        trade_id,
        timestamp,
        received_at
    from {{ source('hot', 'trades') }}
    where timestamp > (select window_from from bounds) and timestamp <= (select window_to from bounds)
),

duplicates as (
    select
        'duplicate_trades' as metric,
        exchange,
        market_type,
        symbol,
        '' as detail,
        count() - uniqExact(trade_id) as value
    from recent_trades
    where trade_id != ''
    group by exchange, market_type, symbol
),

late as (
    select
        'late_trade_share' as metric,
        exchange,
        market_type,
        symbol,
        '' as detail,
        sum(late_trades) / sum(trades) as value
    from {{ ref('late_trades') }}
    where hour >= (select toStartOfHour(window_from) from bounds) and hour <= (select window_to from bounds)
    group by exchange, market_type, symbol
),

-- A receive time before the event time: the recorder's clock is slow by at least that much.
received as (
    select
        'trades' as kind,
        exchange,
        market_type,
        symbol,
        dateDiff('microsecond', received_at, timestamp) / 1000 as ahead_ms
    from recent_trades
    where received_at is not null
    union all
    select
        'orderbooks' as kind,
        exchange,
        market_type,
        symbol,
        dateDiff('microsecond', received_at, timestamp) / 1000 as ahead_ms
    from {{ source('hot', 'orderbooks') }}
    where
        received_at is not null
        and timestamp > (select window_from from bounds)
        and timestamp <= (select window_to from bounds)
),

skew as (
    select
        'clock_skew_ms' as metric,
        exchange,
        market_type,
        symbol,
        kind as detail,
        assumeNotNull(quantileExactInclusive(0.5)(ahead_ms)) as value -- noqa: LT01
    from received
    group by exchange, market_type, symbol, kind
),

-- What was refused has no time of its own, but the one at which it came.
refused as (
    select
        if(reason_code = 'crossed_book', 'crossed_books', 'quarantined_lines') as metric,
        {{ nowhere }},
        concat(kind, ':', data_source, if(reason_code = 'crossed_book', '', concat(':', reason_code))) as detail,
        count() as value
    from {{ source('hot', 'quarantine') }} final
    where created_at > now64(3, 'UTC') - {{ window }}
    group by metric, detail
),

feature_rows as (
    select
        exchange,
        market_type,
        symbol,
        bucket_ts_end > (select window_from from bounds) as is_recent,
        ['{{ features | join("', '") }}'] as all_features,
        [
            {%- for feature in features %}
            {{ feature }} is null{{ ',' if not loop.last }}
            {%- endfor %}
        ] as are_missing
    from {{ ref('feature_vector', v=2) }}
    where
        bucket_ts_start > (select window_to - toIntervalSecond({{ var('missing_lookback_s') }}) from bounds)
        and bucket_ts_end <= (select window_to from bounds)
),

-- What was never known in the lookback is none of the instrument's features (funding of spot), or a source's silence: that has its own row.
missing as (
    select
        'missing_share' as metric,
        exchange,
        market_type,
        symbol,
        feature as detail,
        countIf(is_missing and is_recent) / countIf(is_recent) as value
    from feature_rows
    array join
        all_features as feature,
        are_missing as is_missing
    where feature not in (select s.name from {{ ref('sparse_features') }} as s)
    group by exchange, market_type, symbol, feature
    having countIf(is_recent) > 0 and countIf(not is_missing) > 0
),

venues as (
    select
        'venue_off_share' as metric,
        exchange,
        market_type,
        symbol,
        concat(reference_exchange, ':', reference_market_type, ':', reference_symbol) as detail,
        sumIf(buckets, verdict != 'on') / sum(buckets) as value
    from {{ ref('cross_verdicts') }}
    where
        verdict != 'no_partner'
        and hour >= (select toStartOfHour(window_from) from bounds)
        and hour <= (select window_to from bounds)
    group by exchange, market_type, symbol, detail
),

failed as (
    select
        'udf_failures' as metric,
        exchange,
        market_type,
        symbol,
        model_name as detail,
        sum(failed_rows) as value
    from {{ ref('udf_failures') }}
    where hour >= (select toStartOfHour(window_from) from bounds) and hour <= (select window_to from bounds)
    group by exchange, market_type, symbol, detail
),

without_candidates as (
    select
        'stale_candidates_share' as metric,
        exchange,
        market_type,
        symbol,
        '' as detail,
        sum(stale_buckets) / sum(buckets) as value
    from {{ ref('stale_candidates') }}
    where hour >= (select toStartOfHour(window_from) from bounds) and hour <= (select window_to from bounds)
    group by exchange, market_type, symbol
),

measured as (
    {%- for part in ['stopped', 'duplicates', 'late', 'skew', 'refused', 'missing', 'venues', 'failed', 'without_candidates'] %}
    {{ 'union all' if not loop.first }}
    select
        metric,
        toString(exchange) as exchange,
        toString(market_type) as market_type,
        toString(symbol) as symbol,
        toString(detail) as detail,
        toFloat64(value) as value
    from {{ part }}
    {%- endfor %}
)

select
    metric,
    exchange,
    market_type,
    symbol,
    detail,
    value,
    assumeNotNull((select window_to from bounds)) as as_of
from measured
