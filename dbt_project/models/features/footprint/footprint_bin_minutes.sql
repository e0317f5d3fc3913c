{{ config(**bucket_grain(order_by='(exchange, market_type, symbol, minute)', day='minute')) }}
{%- set appends = is_incremental() and not is_ranged() %}
-- built after the buckets, so that no bucket is published before the minutes up to its end: depends_on: {{ ref('bucket_tapes') }}

-- What takers bought and sold in each price bin of a closed minute. A minute without a trade has a row too if there was one in the hour
-- before: rows say how far an instrument is complete, and the runs of the candidates hang on them.
with
{% if appends %}
published as (
    select
        exchange,
        market_type,
        symbol,
        max(minute) as last_minute,
        maxIf(minute, trade_count > 0) as last_traded
    from {{ this }}
    group by exchange, market_type, symbol
),

-- says nothing new beside the condition on last_minute below, but lets ClickHouse skip what every instrument has published
unpublished as (
    select *
    from {{ ref('stg_trades') }}
    where
        timestamp >= (select min(last_minute) from published)
        or (exchange, market_type, symbol) not in (select (exchange, market_type, symbol) from published)
),
{% endif %}

prints as (
    select
        t.exchange as exchange,
        t.market_type as market_type,
        t.symbol as symbol,
        t.timestamp as timestamp,
        toStartOfMinute(t.timestamp) as minute,
        {{ price_bin('t.price', 'i.tick_size') }} as price_bin,
        t.price as price,
        t.quantity as quantity,
        t.side = 'buy' as is_buy,
        (t.timestamp, t.trade_seq, if(t.trade_seq = 0, t.trade_id, '')) as place
    from {{ 'unpublished' if appends else ref('stg_trades') }} as t
    left join {{ ref('instruments') }} as i
        on t.exchange = i.exchange
        and t.market_type = i.market_type
        and t.symbol = i.symbol
    {% if appends %}
    left join published as p
        on t.exchange = p.exchange
        and t.market_type = p.market_type
        and t.symbol = p.symbol
    {% endif %}
    where
        t.is_on_time
        {%- if appends %}
        and (p.last_minute is null or t.timestamp >= p.last_minute + toIntervalMinute(1))
        {%- elif is_ranged() %}
        -- the hour before says which of the first minutes have a row; a trade after the range closes its last minute
        and t.timestamp >= {{ range_start() }} - toIntervalHour(1)
        {%- endif %}
),

bins as (
    select
        exchange,
        market_type,
        symbol,
        minute,
        price_bin,
        count() as trades,
        sumIf(quantity, is_buy) as bought,
        sumIf(quantity, not is_buy) as sold,
        sum(toDecimal128(price, 8) * quantity) as price_times_quantity,
        min(price) as low,
        max(price) as high,
        max(place) as last_place,
        argMax(price, place) as last_price
    from prints
    group by exchange, market_type, symbol, minute, price_bin
),

traded as (
    select
        exchange,
        market_type,
        symbol,
        minute,
        sum(trades) as trade_count,
        min(low) as low_price,
        max(high) as high_price,
        argMax(last_price, last_place) as close_price,
        arraySort(groupArray((price_bin, bought, sold, price_times_quantity))) as bins_of_minute
    from bins
    group by exchange, market_type, symbol, minute
),

-- How far each feed has come: what closes its last minutes.
feeds as (
    select
        exchange,
        market_type,
        symbol,
        max(last_at) as last_trade_at,
        max(complete_to) as watermark
    from (
        select
            exchange,
            market_type,
            symbol,
            max(timestamp) as last_at,
            toDateTime64(0, 6, 'UTC') as complete_to
        from prints
        group by exchange, market_type, symbol
        union all
        select
            exchange,
            market_type,
            symbol,
            toDateTime64(0, 6, 'UTC') as last_at,
            watermark as complete_to
        from {{ ref('stg_watermarks') }}
        where kind = 'trades'
    )
    group by exchange, market_type, symbol
),

minutes as (
    select distinct
        exchange,
        market_type,
        symbol,
        traded_minute + toIntervalMinute(later) as minute
    from (
        select
            exchange,
            market_type,
            symbol,
            minute as traded_minute
        from traded
        {% if appends %}
        union all
        select
            exchange,
            market_type,
            symbol,
            last_traded as traded_minute
        from published
        {% endif %}
    )
    array join range(60) as later
)

select
    m.exchange as exchange,
    m.market_type as market_type,
    m.symbol as symbol,
    m.minute as minute,
    toDateTime64(m.minute + toIntervalMinute(1), 6, 'UTC') as known_at,
    toUInt32(ifNull(t.trade_count, 0)) as trade_count,
    t.low_price as low_price,
    t.high_price as high_price,
    t.close_price as close_price,
    t.bins_of_minute.1 as price_bins,
    t.bins_of_minute.2 as buy_volumes,
    t.bins_of_minute.3 as sell_volumes,
    t.bins_of_minute.4 as turnovers
from minutes as m
inner join feeds as f
    on m.exchange = f.exchange
    and m.market_type = f.market_type
    and m.symbol = f.symbol
left join traded as t
    on m.exchange = t.exchange
    and m.market_type = t.market_type
    and m.symbol = t.symbol
    and m.minute = t.minute
{% if appends %}
left join published as p
    on m.exchange = p.exchange
    and m.market_type = p.market_type
    and m.symbol = p.symbol
{% endif %}
-- closed: by a later trade, or by the feed having passed its end
where
    (f.last_trade_at >= known_at or f.watermark > known_at)
    {%- if appends %}
    and (p.last_minute is null or m.minute > p.last_minute)
    {%- elif is_ranged() %}
    and m.minute >= {{ range_start() }}
    and m.minute < {{ range_end() }}
    {%- endif %}
