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
)

select
    u.exchange as exchange,
    u.market_type as market_type,
    u.symbol as symbol,
    u.bucket_id as bucket_id,
    u.bucket_ts_start as bucket_ts_start,
    u.bucket_ts_end as bucket_ts_end,
    {%- for h in horizons %}
    u.bucket_ts_end + toIntervalSecond({{ h }}) as label_known_at_markout_{{ h }}s,
    {%- for of, name in {'gains': 'markout', 'buys': 'buy_markout', 'sells': 'sell_markout'}.items() %}
    if(
        label_known_at_markout_{{ h }}s <= b.complete_to,
        arraySum(g.{{ of }}_{{ h }}s.4) / nullIf(arraySum(g.{{ of }}_{{ h }}s.3), 0),
        null
    ) as label_ret_{{ name }}_{{ h }}s{%- if not loop.last %},{% endif %}
    {%- endfor %}
    {%- if not loop.last %},{% endif %}
    {%- endfor %}
from {{ ref('unified_buckets') }} as u
inner join gains as g
    on u.exchange = g.exchange
    and u.market_type = g.market_type
    and u.symbol = g.symbol
    and u.bucket_id = g.bucket_id
left join books as b
    on u.exchange = b.exchange
    and u.market_type = b.market_type
    and u.symbol = b.symbol
