{{ config(**bucket_grain()) }}
{%- set horizons = [1, 5, 30] %}

-- What the mid did after trades, counted where it is known: a trade settles for a horizon of h seconds in the first bucket that ends
-- no earlier than h seconds after it. Sums over the trades that settle in the bucket.
with positions as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        is_new,
        row_number() over (partition by exchange, market_type, symbol order by bucket_id) as bucket_position
    from {{ new_buckets(ref('unified_buckets'), context=1) }}
),

-- Several buckets can end in one instant: the last of them is the one before the next.
ends as (
    select
        exchange,
        market_type,
        symbol,
        bucket_ts_end as timestamp,
        bucket_ts_end as known_at,
        max(bucket_position) as bucket_position
    from positions
    group by exchange, market_type, symbol, bucket_ts_end
),

progress as (
    select
        exchange,
        market_type,
        symbol,
        max(bucket_id) as last_bucket_id,
        maxIf(bucket_ts_end, is_new = 0) as settled_to
    from positions
    group by exchange, market_type, symbol
    having max(is_new) = 1
),

-- Each instrument's trades that were not settled, for the longest horizon, when the bucket before the first new one ended.
unsettled as (
    select
        t.exchange as exchange,
        t.market_type as market_type,
        t.symbol as symbol,
        t.bucket_id as bucket_id,
        t.tape_us as tape_us,
        t.tape_price as tape_price,
        t.tape_quantity as tape_quantity,
        t.tape_is_buy as tape_is_buy,
        q.tape_bid as tape_bid,
        q.tape_ask as tape_ask,
        p.bucket_position as own_position
    from {{ ref('bucket_tapes') }} as t
    inner join progress as s
        on t.exchange = s.exchange
        and t.market_type = s.market_type
        and t.symbol = s.symbol
    inner join {{ ref('tape_quotes') }} as q
        on t.exchange = q.exchange
        and t.market_type = q.market_type
        and t.symbol = q.symbol
        and t.bucket_id = q.bucket_id
    left join positions as p
        on t.exchange = p.exchange
        and t.market_type = p.market_type
        and t.symbol = p.symbol
        and t.bucket_id = p.bucket_id
    where
        t.bucket_id <= s.last_bucket_id
        and t.bucket_ts_end > s.settled_to - toIntervalSecond({{ horizons | max }})
),

trades as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        own_position,
        position,
        horizon,
        toFloat64(quantity) as weight,
        2 * if(is_buy, 1, -1) as twice_side,
        toFloat64(price) as traded,
        toFloat64(bid + ask) / 2 as mid_before,
        fromUnixTimestamp64Micro(trade_us, 'UTC') + toIntervalSecond(horizon) as settles_at,
        settles_at - toIntervalMicrosecond(1) as before_settling
    from unsettled
    array join
        arrayEnumerate(tape_us) as position,
        tape_us as trade_us,
        tape_price as price,
        tape_quantity as quantity,
        tape_is_buy as is_buy,
        tape_bid as bid,
        tape_ask as ask
    array join {{ horizons }} as horizon
    where bid is not null
),

reached as (
    {{ as_of('trades', ref('book_asof'), {'mid': 'mid_then'}, var('book_max_lag_ms'), prefix='then', at='settles_at') }}
),

-- The bucket that ended last before the trade settles is the trade's own or one after it: no more than a horizon ago. None: the
-- trade's own has not ended yet.
placed as (
    {{ as_of(
        'reached',
        'ends',
        {'bucket_position': 'ended_position'},
        1000 * horizons | max,
        prefix='ended',
        at='before_settling',
    ) }}
),

settled as (
    select
        exchange,
        market_type,
        symbol,
        coalesce(ended_position + 1, own_position) as bucket_position,
        {%- for h in horizons %}
        arraySort(groupArrayIf((
            bucket_id,
            position,
            weight,
            weight * twice_side * (traded - assumeNotNull(mid_then)) / assumeNotNull(mid_before),
            weight * twice_side * (assumeNotNull(mid_then) - assumeNotNull(mid_before)) / assumeNotNull(mid_before)
        ), horizon = {{ h }} and mid_then is not null)) as settled_{{ h }}s{%- if not loop.last %},{% endif %}
        {%- endfor %}
    from placed
    where bucket_position is not null
    group by exchange, market_type, symbol, bucket_position
)

select
    p.exchange as exchange,
    p.market_type as market_type,
    p.symbol as symbol,
    p.bucket_id as bucket_id,
    p.bucket_ts_start as bucket_ts_start,
    p.bucket_ts_end as bucket_ts_end,
    {%- for h in horizons %}
    arraySum(s.settled_{{ h }}s.3) as settled_volume_{{ h }}s,
    arraySum(s.settled_{{ h }}s.4) as realized_{{ h }}s,
    arraySum(s.settled_{{ h }}s.5) as impact_{{ h }}s{%- if not loop.last %},{% endif %}
    {%- endfor %}
from positions as p
left join settled as s
    on p.exchange = s.exchange
    and p.market_type = s.market_type
    and p.symbol = s.symbol
    and p.bucket_position = s.bucket_position
where p.is_new = 1
