{{ config(**bucket_grain()) }}
{%- set n = var('rolling_buckets') %}

-- How far the mid moves for the square root of what trades.
with joined as (
    select
        m.exchange as exchange,
        m.market_type as market_type,
        m.symbol as symbol,
        m.bucket_id as bucket_id,
        m.bucket_ts_start as bucket_ts_start,
        m.bucket_ts_end as bucket_ts_end,
        m.is_new as is_new,
        m.signed_volume as signed_volume,
        m.mid_close as mid_close,
        t.tape_price as tape_price,
        t.tape_quantity as tape_quantity,
        t.tape_is_buy as tape_is_buy,
        toFloat64(ifNull(i.contract_value, 1)) as contract_value
    from {{ new_buckets(ref('bucket_moves'), context=n) }} as m
    inner join {{ ref('bucket_tapes') }} as t
        on m.exchange = t.exchange
        and m.market_type = t.market_type
        and m.symbol = t.symbol
        and m.bucket_id = t.bucket_id
    left join {{ ref('instruments') }} as i
        on m.exchange = i.exchange
        and m.market_type = i.market_type
        and m.symbol = i.symbol
),

moves as (
    select
        * except (tape_price, tape_quantity, tape_is_buy),
        sign(signed_volume) * sqrt(abs(signed_volume)) as root_volume,
        arrayMap(
            (price, quantity) -> contract_value * toFloat64(quantity) * if(market_type = 'inverse', 1, toFloat64(price)),
            tape_price, tape_quantity
        ) as notionals,
        arraySum((notional, is_buy) -> if(is_buy, 1, -1) * sqrt(notional), notionals, tape_is_buy) as root_notional,
        mid_close - {{ before('mid_close', 1) }} as mid_change,
        log(mid_close / {{ before('mid_close', 1) }}) as mid_return
    from joined
),

regressions as (
    select
        * except (notionals),
        count(mid_change) over {{ past(n) }} as points,
        covarPopStableIf(root_volume, assumeNotNull(mid_change), mid_change is not null) over {{ past(n) }} as volume_covariance,
        varPopStableIf(root_volume, mid_change is not null) over {{ past(n) }} as volume_variance,
        covarPopStableIf(root_notional, assumeNotNull(mid_return), mid_return is not null) over {{ past(n) }} as notional_covariance,
        varPopStableIf(root_notional, mid_return is not null) over {{ past(n) }} as notional_variance
    from moves
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    if(points >= 10 and volume_variance > 0, volume_covariance / volume_variance, null) as kyle_lambda_sqrt,
    if(points >= 10 and notional_variance > 0, notional_covariance / notional_variance, null) as hasbrouck_lambda
from regressions
where is_new = 1
