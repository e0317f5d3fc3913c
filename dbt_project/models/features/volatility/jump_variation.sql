{{ config(**bucket_grain()) }}
{%- set n = var('rolling_buckets') %}

-- Jumps of the mid's log returns from bucket to bucket, and which way the variance goes.
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
        abs(log({{ before('mid_close', 1) }} / {{ before('mid_close', 2) }})) as size_before,
        abs(log({{ before('mid_close', 2) }} / {{ before('mid_close', 3) }})) as size_before_that
    from {{ new_buckets(ref('bucket_moves'), context=n + 2) }}
),

windows as (
    select
        *,
        groupArray(r) over {{ past(n) }} as rs,
        arraySum(x -> x * x, rs) as squares,
        arraySum(x -> if(x > 0, x * x, 0), rs) as squares_up,
        arraySum(x -> if(x < 0, x * x, 0), rs) as squares_down,
        -- neighbouring returns before this one: a jump must not hide in its own yardstick
        groupArray(size_before * size_before_that) over {{ past(n) }} as products_before,
        if(length(products_before) >= 10, sqrt(arrayAvg(products_before)), null) as local_volatility,
        r / nullIf(local_volatility, 0) as ratio,
        -- Lee, Mykland (2008), lemma 1: the largest of m such ratios without a jump is about centre + width x Gumbel
        length(products_before) as m,
        sqrt(2 / pi()) as c,
        sqrt(2 * log(m)) as reach,
        reach / c - (log(pi()) + log(log(m))) / (2 * c * reach) as centre,
        1 / (c * reach) as width,
        centre - width * log(-log(1 - {{ var('jump_significance') }})) as threshold
    from returns
)

select
    w.exchange as exchange,
    w.market_type as market_type,
    w.symbol as symbol,
    w.bucket_id as bucket_id,
    w.bucket_ts_start as bucket_ts_start,
    w.bucket_ts_end as bucket_ts_end,
    v.jump / nullIf(v.rv, 0) as jump_ratio,
    w.ratio as lee_mykland,
    abs(w.ratio) > w.threshold as lee_mykland_flag,
    if(length(w.rs) >= 10, w.squares_up, null) as realized_semivariance_up,
    if(length(w.rs) >= 10, w.squares_down, null) as realized_semivariance_down,
    if(length(w.rs) >= 10, w.squares_up - w.squares_down, null) as signed_jump_variation
from windows as w
inner join {{ ref('realized_variance') }} as v
    on w.exchange = v.exchange
    and w.market_type = v.market_type
    and w.symbol = v.symbol
    and w.bucket_id = v.bucket_id
where w.is_new = 1
