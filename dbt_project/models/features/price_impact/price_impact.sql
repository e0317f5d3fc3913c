{{ config(**bucket_grain()) }}
{%- set n = var('rolling_buckets') %}

-- How far the mid moves for what trades.
with moves as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        is_new,
        notional,
        signed_volume,
        mid_close - {{ before('mid_close', 1) }} as mid_change,
        log(mid_close / {{ before('mid_close', 1) }}) as mid_return
    from {{ new_buckets(ref('bucket_moves'), context=n) }}
),

regressions as (
    select
        *,
        count(mid_change) over {{ past(n) }} as points,
        covarPopStableIf(signed_volume, assumeNotNull(mid_change), mid_change is not null) over {{ past(n) }} as covariance,
        varPopStableIf(signed_volume, mid_change is not null) over {{ past(n) }} as variance
    from moves
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    mid_return,
    if(points >= 10 and variance > 0, covariance / variance, null) as kyle_lambda,
    if(notional > 0, abs(mid_return) / notional, null) as amihud
from regressions
where is_new = 1
