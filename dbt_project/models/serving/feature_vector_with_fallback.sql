{{ config(materialized='view') }}
{%- set by_clock = ['exchange', 'market_type', 'symbol', 'bucket_id', 'bucket_ts_start', 'bucket_ts_end', 'clock'] %}
{%- set vector = ref('feature_vector', v=1) %}
{#- What a minute can say: a feature x for which minute_bars has minute_x. -#}
{%- set minute_columns = [
    'trade_count', 'buy_count', 'sell_count', 'volume', 'buy_volume', 'sell_volume', 'flow_imbalance', 'vwap', 'notional', 'open_price',
    'high_price', 'low_price', 'close_price', 'mean_trade_size', 'max_trade_size', 'trades_per_second', 'mid_close', 'mid_mean',
    'spread_bps_close', 'spread_bps_mean', 'tob_imbalance_close', 'tob_imbalance_mean', 'microprice_close', 'microprice_gap_bps',
    'book_age_ms', 'book_update_count',
] %}

-- The feature rows of the logical clock, and of each minute in which that clock stalled. Which features: the yml's columns.
with minute_ends as (
    select
        exchange,
        market_type,
        symbol,
        minute_start,
        toDateTime64(minute_start, 6, 'UTC') + toIntervalMinute(1) as bucket_ts_end
    from {{ ref('trade_minutes_stored') }}
    union distinct
    select
        exchange,
        market_type,
        symbol,
        minute_start,
        toDateTime64(minute_start, 6, 'UTC') + toIntervalMinute(1) as bucket_ts_end
    from {{ ref('book_minutes_stored') }}
),

-- Several buckets can end in one instant.
bucket_ends as (
    select
        exchange,
        market_type,
        symbol,
        bucket_ts_end as timestamp,
        bucket_ts_end as known_at,
        max(bucket_id) as last_bucket_id
    from {{ vector }}
    group by exchange, market_type, symbol, bucket_ts_end
),

minutes_and_the_clock as (
    {{ as_of('minute_ends', 'bucket_ends', {'last_bucket_id': 'last_bucket_id'}, 1000 * var('fallback_after_s'), prefix='clock') }}
),

stalled as (
    select
        exchange,
        market_type,
        symbol,
        minute_start
    from minutes_and_the_clock
    where last_bucket_id is null
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    {%- for column in listed_columns() if column not in by_clock %}
    toNullable({{ column }}) as {{ column }},
    {%- endfor %}
    toLowCardinality('bucket') as clock
from {{ vector }}
union all
select
    exchange,
    market_type,
    symbol,
    toUInt64(toUInt64(toUnixTimestamp(minute_start)) * 100000 + 99999) as bucket_id,
    toDateTime64(minute_start, 6, 'UTC') as bucket_ts_start,
    known_at as bucket_ts_end,
    {%- for column in listed_columns() if column not in by_clock %}
    {{ '60.' if column == 'duration_s' else 'minute_' ~ column if column in minute_columns else 'null' }} as {{ column }},
    {%- endfor %}
    toLowCardinality('minute') as clock
from {{ ref('minute_bars') }}
where (exchange, market_type, symbol, minute_start) in (select * from stalled)
