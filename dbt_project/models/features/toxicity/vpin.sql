{{ config(**bucket_grain()) }}
{%- set n = var('rolling_buckets') %}

-- Volume-synchronised probability of informed trading: a ratio of sums, so that a time-cut bucket weighs what it traded.
with windows as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        is_new,
        count() over {{ past(n) }} as points,
        arraySum(groupArray(abs(signed_volume)) over {{ past(n) }}) as imbalance,
        arraySum(groupArray(volume) over {{ past(n) }}) as traded
    from {{ new_buckets(ref('bucket_moves'), context=n) }}
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    if(points >= 10, imbalance / traded, null) as vpin
from windows
where is_new = 1
