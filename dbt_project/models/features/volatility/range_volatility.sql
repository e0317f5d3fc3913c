{{ config(**bucket_grain()) }}
{%- set n = var('rolling_buckets') %}

-- Variance of a bucket from the range of its trade prices.
with ranges as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        is_new,
        pow(log(high_price / low_price), 2) as range_squared,
        pow(log(close_price / open_price), 2) as move_squared,
        range_squared / (4 * log(2)) as parkinson,
        range_squared / 2 - (2 * log(2) - 1) * move_squared as garman_klass
    from {{ new_buckets(ref('trade_flow'), context=n) }}
),

windows as (
    select
        *,
        groupArray(parkinson) over {{ past(n) }} as parkinsons,
        groupArray(garman_klass) over {{ past(n) }} as garman_klasses
    from ranges
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    parkinson,
    garman_klass,
    if(length(parkinsons) >= 10, arrayAvg(parkinsons), null) as parkinson_mean,
    if(length(garman_klasses) >= 10, arrayAvg(garman_klasses), null) as garman_klass_mean
from windows
where is_new = 1
