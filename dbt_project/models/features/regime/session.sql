{{ config(materialized='view') }}

-- When in the day and the week the bucket ended.
select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    toLowCardinality(multiIf(toHour(bucket_ts_end) < 8, 'asia', toHour(bucket_ts_end) < 14, 'europe', 'us')) as trading_session,
    toUInt8(toDayOfWeek(bucket_ts_end) >= 6) as is_weekend
from {{ ref('unified_buckets') }}
