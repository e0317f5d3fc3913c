{{ config(materialized='table', partition_by='toYYYYMMDD(bucket_ts_start)', order_by='(exchange, market_type, symbol, bucket_id)') }}
{%- set horizons = [1, 5, 30] %}
{%- set wait = var('label_fill_wait_s') %}
{%- set or_at = '=' if var('label_fill_first_in_queue') else '' %}
{%- set sides = [('buy', 'bid_price', 1), ('sell', 'ask_price', -1)] %}

-- What a fill is worth some seconds later. A maker rests at the best price from the bucket's end and is filled by takers of the other
-- side; last in the queue, only by one who trades through the price: then all before it were filled, too. A taker crosses at once.
with ends as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end
    from {{ ref('unified_buckets') }}
),

quotes as (
    {{ as_of(
        'ends',
        ref('book_asof'),
        {'bid_price': 'bid_price', 'ask_price': 'ask_price', 'mid': 'mid'},
        var('book_max_lag_ms'),
        prefix='book',
    ) }}
),

-- Trades in slots as long as the wait: a quote looks into two.
slots as (
    select
        exchange,
        market_type,
        symbol,
        intDiv(toUnixTimestamp64Micro(timestamp), {{ wait * 1000000 }}) as slot,
        {%- for side, price, sign in sides %}
        arraySort(groupArrayIf((toUnixTimestamp64Micro(timestamp), price), side = '{{ side }}')) as {{ side }}s
        {%- if not loop.last %},{% endif %}
        {%- endfor %}
    from {{ ref('stg_trades') }}
    where is_on_time
    group by exchange, market_type, symbol, slot
),

looks as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bid_price,
        ask_price,
        mid,
        toUnixTimestamp64Micro(bucket_ts_end) as end_us,
        arrayJoin([0, 1]) + intDiv(end_us, {{ wait * 1000000 }}) as slot
    from quotes
),

paired as (
    select
        l.exchange as exchange,
        l.market_type as market_type,
        l.symbol as symbol,
        l.bucket_id as bucket_id,
        l.end_us as from_us,
        l.end_us + {{ wait * 1000000 }} as to_us,
        assumeNotNull(l.bid_price) as bid,
        assumeNotNull(l.ask_price) as ask,
        s.buys as buys,
        s.sells as sells
    from looks as l
    inner join slots as s
        on l.exchange = s.exchange
        and l.market_type = s.market_type
        and l.symbol = s.symbol
        and l.slot = s.slot
    where l.mid is not null
),

seen as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        arrayFirst(t -> t.1 > from_us and t.1 <= to_us and t.2 <{{ or_at }} bid, sells) as sell,
        arrayFirst(t -> t.1 > from_us and t.1 <= to_us and t.2 >{{ or_at }} ask, buys) as buy,
        sell.1 as buy_us,
        buy.1 as sell_us
    from paired
),

-- 0: no fill.
fills as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        minIf(buy_us, buy_us > 0) as buy_us,
        minIf(sell_us, sell_us > 0) as sell_us
    from seen
    group by exchange, market_type, symbol, bucket_id
),

filled as (
    select
        q.exchange as exchange,
        q.market_type as market_type,
        q.symbol as symbol,
        q.bucket_id as bucket_id,
        [('taker', toUnixTimestamp64Micro(q.bucket_ts_end)), ('buy', f.buy_us), ('sell', f.sell_us)] as begins
    from quotes as q
    left join fills as f
        on q.exchange = f.exchange
        and q.market_type = f.market_type
        and q.symbol = f.symbol
        and q.bucket_id = f.bucket_id
),

-- Whose mid is wanted when: of a maker from its fill on, of a taker from the bucket's end on.
targets as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        begin_at.1 as side,
        arrayJoin(if(side = 'taker', {{ horizons }}, {{ [0] + horizons }})) as horizon,
        fromUnixTimestamp64Micro(begin_at.2, 'UTC') + toIntervalSecond(horizon) as target_at
    from filled
    array join begins as begin_at
    where begin_at.2 > 0
),

reached as (
    {{ as_of('targets', ref('book_asof'), {'mid': 'mid_then'}, var('book_max_lag_ms'), prefix='then', at='target_at') }}
),

books as (
    {{ book_complete_to() }}
),

known as (
    select
        r.exchange as exchange,
        r.market_type as market_type,
        r.symbol as symbol,
        r.bucket_id as bucket_id,
        {%- for side in ['taker', 'buy', 'sell'] %}
        {%- for h in (horizons if side == 'taker' else [0] + horizons) %}
        anyIf(r.mid_then, r.side = '{{ side }}' and r.horizon = {{ h }} and r.target_at <= b.complete_to) as {{ side }}_mid_{{ h }},
        {%- endfor %}
        {%- endfor %}
        minIf(toNullable(r.target_at), r.side = 'buy' and r.horizon = 0) as buy_at,
        minIf(toNullable(r.target_at), r.side = 'sell' and r.horizon = 0) as sell_at,
        any(b.complete_to) as complete_to
    from reached as r
    left join books as b
        on r.exchange = b.exchange
        and r.market_type = b.market_type
        and r.symbol = b.symbol
    group by exchange, market_type, symbol, bucket_id
),

waited as (
    select
        q.exchange as exchange,
        q.market_type as market_type,
        q.symbol as symbol,
        q.bucket_id as bucket_id,
        q.bucket_ts_start as bucket_ts_start,
        q.bucket_ts_end as bucket_ts_end,
        if(q.mid is null, null, q.bid_price) as bid_price,
        if(q.mid is null, null, q.ask_price) as ask_price,
        k.* except (exchange, market_type, symbol, bucket_id),
        q.bucket_ts_end + toIntervalSecond({{ wait }}) as give_up_at,
        -- that nothing came is known once no trade before it can be missing
        if(q.mid is not null and give_up_at < f.closed_to, give_up_at, null) as unfilled_at
    from quotes as q
    inner join known as k
        on q.exchange = k.exchange
        and q.market_type = k.market_type
        and q.symbol = k.symbol
        and q.bucket_id = k.bucket_id
    inner join {{ ref('closed_feeds') }} as f
        on q.exchange = f.exchange
        and q.market_type = f.market_type
        and q.symbol = f.symbol
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    {%- for side, price, sign in sides %}
    {{ sign }} * ({{ side }}_mid_0 / toFloat64({{ price }}) - 1) as label_ret_{{ side }}_fill,
    dateDiff('microsecond', bucket_ts_end, {{ side }}_at) / 1e6 as label_wait_s_{{ side }}_fill,
    coalesce({{ side }}_at, unfilled_at) as label_known_at_{{ side }}_fill,
    {%- for h in horizons %}
    {{ sign }} * ({{ side }}_mid_{{ h }} / toFloat64({{ price }}) - 1) as label_ret_{{ side }}_maker_{{ h }}s,
    coalesce({{ side }}_at + toIntervalSecond({{ h }}), unfilled_at) as label_known_at_{{ side }}_maker_{{ h }}s,
    {%- endfor %}
    {%- endfor %}
    {%- for h in horizons %}
    taker_mid_{{ h }} / toFloat64(ask_price) - 1 as label_ret_buy_taker_{{ h }}s,
    1 - taker_mid_{{ h }} / toFloat64(bid_price) as label_ret_sell_taker_{{ h }}s,
    bucket_ts_end + toIntervalSecond({{ h }}) as label_known_at_taker_{{ h }}s{%- if not loop.last %},{% endif %}
    {%- endfor %}
from waited
