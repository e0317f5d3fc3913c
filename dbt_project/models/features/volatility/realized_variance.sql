{{ config(**bucket_grain()) }}
{%- set n = var('rolling_buckets') %}

-- Variance of the mid's log returns from bucket to bucket, its continuous part and its jumps.
with returns as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        is_new,
        log(mid_close / {{ before('mid_close', 1) }}) as r,
        log({{ before('mid_close', 1) }} / {{ before('mid_close', 2) }}) as r_before
    from {{ new_buckets(ref('bucket_moves'), context=n + 1) }}
),

windows as (
    select
        *,
        count(r) over {{ past(n) }} as points,
        arraySum(groupArray(r * r) over {{ past(n) }}) as squares,
        count(r * r_before) over {{ past(n) }} as pairs,
        pi() / 2 * arraySum(groupArray(abs(r) * abs(r_before)) over {{ past(n) }}) as products
    from returns
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    if(points >= 10, squares, null) as rv,
    if(pairs >= 10, products, null) as bv,
    if(points >= 10 and pairs >= 10, greatest(squares - products, 0), null) as jump
from windows
where is_new = 1
