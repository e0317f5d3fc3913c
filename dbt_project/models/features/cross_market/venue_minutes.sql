{%- set appends = is_incremental() and not is_ranged() %}
{%- set keep_s = var('cross_window_s') %}
{%- set steps = 60000 // var('lead_lag_step_ms') %}
{{ config(**bucket_grain(order_by='(exchange, market_type, symbol, known_at)', day='known_at')) }}

-- What came from a venue in each closed minute: how often, with what silences, and the mid as ticks and on the lead-lag grid.
with
{% if appends %}
published as (
    select
        exchange,
        market_type,
        symbol,
        (exchange, market_type, symbol) as market,
        max(known_at) as resume_at,
        resume_at - toIntervalSecond({{ keep_s + 60 }}) as read_from
    from {{ this }}
    group by exchange, market_type, symbol
),
{% endif %}

trades as (
    select
        exchange,
        market_type,
        symbol,
        timestamp,
        trade_seq,
        trade_id,
        price
    from {{ ref('stg_trades') }}
    where
        is_on_time
        {%- if is_ranged() %}
        and timestamp >= {{ range_start() }} - toIntervalSecond({{ keep_s + 60 }})
        and timestamp < {{ range_end() }}
        {%- elif appends %}
        and (timestamp >= (select min(read_from) from published) or (exchange, market_type, symbol) not in (select market from published))
        {%- endif %}
),

states as (
    select
        exchange,
        market_type,
        symbol,
        known_at,
        mid
    from {{ ref('book_asof') }}
    where
        true
        {%- if is_ranged() %}
        and known_at >= {{ range_start() }} - toIntervalSecond({{ keep_s + 60 }})
        and known_at < {{ range_end() }}
        {%- elif appends %}
        and (known_at >= (select min(read_from) from published) or (exchange, market_type, symbol) not in (select market from published))
        {%- endif %}
),

seconds as (
    select
        exchange,
        market_type,
        symbol,
        toStartOfMinute(timestamp) + toIntervalMinute(1) as minute_end,
        toSecond(timestamp) as second_of_minute,
        groupArray(toUnixTimestamp64Micro(timestamp)) as times,
        argMax(price, (timestamp, trade_seq, if(trade_seq = 0, trade_id, ''))) as last_price
    from trades
    group by exchange, market_type, symbol, minute_end, second_of_minute
),

trade_minutes as (
    select
        exchange,
        market_type,
        symbol,
        minute_end,
        arraySort(groupArrayArray(times)) as trade_times,
        groupArray((second_of_minute, toFloat64(last_price))) as priced,
        arrayMap(s -> arrayFirst(x -> x.1 = s, arrayPushBack(priced, (toUInt8(s), nan))).2, range(60)) as second_prices
    from seconds
    group by exchange, market_type, symbol, minute_end
),

book_minutes as (
    select
        exchange,
        market_type,
        symbol,
        toStartOfMinute(known_at) + toIntervalMinute(1) as minute_end,
        arraySort(groupArray(toUnixTimestamp64Micro(known_at))) as book_times,
        arraySort(groupArrayIf((toUnixTimestamp64Micro(known_at), assumeNotNull(mid)), mid is not null)) as ticks
    from states
    group by exchange, market_type, symbol, minute_end
),

-- A minute is told when something came in it or in the window before it: silence counts, too, until no window looks at it any more.
minutes as (
    select distinct
        e.exchange as exchange,
        e.market_type as market_type,
        e.symbol as symbol,
        e.minute_end + toIntervalMinute(arrayJoin(range({{ keep_s // 60 + 1 }}))) as known_at
    from (
        select
            exchange,
            market_type,
            symbol,
            minute_end
        from trade_minutes
        union distinct
        select
            exchange,
            market_type,
            symbol,
            minute_end
        from book_minutes
    ) as e
),

closed as (
    select
        m.exchange as exchange,
        m.market_type as market_type,
        m.symbol as symbol,
        toDateTime64(m.known_at, 6, 'UTC') as known_at
    from minutes as m
    inner join {{ ref('closed_feeds') }} as f
        on m.exchange = f.exchange
        and m.market_type = f.market_type
        and m.symbol = f.symbol
    {% if appends %}
    left join published as p
        on m.exchange = p.exchange
        and m.market_type = p.market_type
        and m.symbol = p.symbol
    {% endif %}
    where
        m.known_at < f.closed_to
        {%- if is_ranged() %}
        and m.known_at >= {{ range_start() }}
        and m.known_at < {{ range_end() }}
        {%- elif appends %}
        and (p.resume_at is null or m.known_at > p.resume_at)
        {%- endif %}
),

grid as (
    select
        exchange,
        market_type,
        symbol,
        known_at as minute_end,
        known_at - toIntervalMicrosecond(arrayJoin(range(1, {{ steps }} + 1)) * {{ var('lead_lag_step_ms') * 1000 }}) as at
    from closed
),

mids as (
    {{ as_of('grid', ref('book_asof'), {'mid': 'mid'}, var('book_max_lag_ms'), prefix='grid_book', at='at') }}
),

paths as (
    select
        exchange,
        market_type,
        symbol,
        minute_end,
        arraySort(groupArray((at, ifNull(mid, nan)))).2 as grid_mids
    from mids
    group by exchange, market_type, symbol, minute_end
)

select
    c.exchange as exchange,
    c.market_type as market_type,
    c.symbol as symbol,
    c.known_at as timestamp,
    c.known_at as known_at,
    toUInt32(length(t.trade_times)) as minute_trades,
    toUInt32(length(b.book_times)) as minute_book_updates,
    {%- for kind in ['trade', 'book'] %}
    {%- set times = 't.trade_times' if kind == 'trade' else 'b.book_times' %}
    arrayMax(
        arrayPopFront(arrayDifference(arrayConcat(
            [toUnixTimestamp64Micro(c.known_at) - 60000000], {{ times }}, [toUnixTimestamp64Micro(c.known_at)]
        )))
    ) / 1000 as minute_{{ kind }}_gap_max_ms,
    if(
        length({{ times }}) > 1,
        arrayReduce('quantileExactInclusive(0.5)', arrayPopFront(arrayDifference({{ times }}))) / 1000,
        null
    ) as minute_{{ kind }}_gap_median_ms,
    {%- endfor %}
    if(empty(t.second_prices), arrayWithConstant(60, toFloat64('nan')), t.second_prices) as second_prices,
    b.ticks.1 as tick_us,
    b.ticks.2 as tick_mids,
    p.grid_mids as grid_mids
from closed as c
inner join paths as p
    on c.exchange = p.exchange
    and c.market_type = p.market_type
    and c.symbol = p.symbol
    and c.known_at = p.minute_end
left join trade_minutes as t
    on c.exchange = t.exchange
    and c.market_type = t.market_type
    and c.symbol = t.symbol
    and c.known_at = t.minute_end
left join book_minutes as b
    on c.exchange = b.exchange
    and c.market_type = b.market_type
    and c.symbol = b.symbol
    and c.known_at = b.minute_end
