{{ config(materialized='table', partition_by='toYYYYMMDD(bucket_ts_start)', order_by='(exchange, market_type, symbol, bucket_id)') }}
{%- set horizons = [1, 5, 30] %}

-- What takers had gained some seconds after they traded. Looks forward: a markout is NULL until the book is complete up to h seconds
-- after the bucket's end.
with books as (
    {{ book_complete_to() }}
),

trades as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        position,
        horizon,
        toFloat64(quantity) as weight,
        is_buy,
        toFloat64(price) as traded,
        fromUnixTimestamp64Micro(trade_us, 'UTC') + toIntervalSecond(horizon) as target_at
    from {{ ref('bucket_tapes') }}
    array join
        arrayEnumerate(tape_us) as position,
        tape_us as trade_us,
        tape_price as price,
        tape_quantity as quantity,
        tape_is_buy as is_buy
    array join {{ horizons }} as horizon
),

reached as (
    {{ as_of('trades', ref('book_asof'), {'mid': 'mid_then'}, var('book_max_lag_ms'), prefix='then', at='target_at') }}
),

-- In the order of the tape, so that sums of floats are the same bits in every build.
gains as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        {%- for h in horizons %}
        arraySort(groupArrayIf(
            (position, is_buy, weight, weight * if(is_buy, 1, -1) * (assumeNotNull(mid_then) / traded - 1)),
            horizon = {{ h }} and mid_then is not null
        )) as gains_{{ h }}s,
        arrayFilter(gain -> gain.2, gains_{{ h }}s) as buys_{{ h }}s,
        arrayFilter(gain -> not gain.2, gains_{{ h }}s) as sells_{{ h }}s{%- if not loop.last %},{% endif %}
        {%- endfor %}
    from reached
    group by exchange, market_type, symbol, bucket_id
),

means as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        {%- for h in horizons %}
        arraySum(gains_{{ h }}s.4) / nullIf(arraySum(gains_{{ h }}s.3), 0) as markout_{{ h }}s,
        arraySum(buys_{{ h }}s.4) / nullIf(arraySum(buys_{{ h }}s.3), 0) as buy_markout_{{ h }}s,
        arraySum(sells_{{ h }}s.4) / nullIf(arraySum(sells_{{ h }}s.3), 0) as sell_markout_{{ h }}s{%- if not loop.last %},{% endif %}
        {%- endfor %}
    from gains
)

select
    u.exchange as exchange,
    u.market_type as market_type,
    u.symbol as symbol,
    u.bucket_id as bucket_id,
    u.bucket_ts_start as bucket_ts_start,
    u.bucket_ts_end as bucket_ts_end,
    {%- for h in horizons %}
    if(label_known_at_markout_{{ h }}s <= b.complete_to, m.markout_{{ h }}s, null) as label_ret_markout_{{ h }}s,
    if(label_known_at_markout_{{ h }}s <= b.complete_to, m.buy_markout_{{ h }}s, null) as label_ret_buy_markout_{{ h }}s,
    if(label_known_at_markout_{{ h }}s <= b.complete_to, m.sell_markout_{{ h }}s, null) as label_ret_sell_markout_{{ h }}s,
    u.bucket_ts_end + toIntervalSecond({{ h }}) as label_known_at_markout_{{ h }}s{%- if not loop.last %},{% endif %}
    {%- endfor %}
from {{ ref('unified_buckets') }} as u
inner join means as m
    on u.exchange = m.exchange
    and u.market_type = m.market_type
    and u.symbol = m.symbol
    and u.bucket_id = m.bucket_id
left join books as b
    on u.exchange = b.exchange
    and u.market_type = b.market_type
    and u.symbol = b.symbol
