{%- set appends = is_incremental() and not is_ranged() %}
{%- set key = 'exchange, market_type, symbol, known_at, is_book, timestamp, event_seq, event_text_id, is_ask' %}
{{ config(**bucket_grain(order_by='(' ~ key ~ ')', day='known_at')) }}
{%- set fresh = 'toIntervalMillisecond(' ~ var('book_max_lag_ms') ~ ')' %}
{#- How far back a row can matter: to an event within 10 s (before that is one class), told by a state at most book_max_lag_ms older. -#}
{%- set context = 'toIntervalMillisecond(' ~ (var('book_max_lag_ms') + 10000) ~ ')' %}
{#- As in seeds/event_vocabulary.csv. -#}
{%- set type_of = {
    'trade_buy': 0, 'trade_sell': 1, 'bid_up': 2, 'bid_down': 3, 'ask_up': 4, 'ask_down': 5,
    'bid_add': 6, 'bid_cancel': 7, 'ask_add': 8, 'ask_cancel': 9, 'book_opened': 10, 'book_lost': 11,
} %}
{%- set no_event = 255 %}
{%- set never = "toDateTime64('2200-01-01 00:00:00', 6, 'UTC')" %}

-- Order flow as a sequence of integers: every on-time trade, and every change of the best level, in the order in which they became known.
-- Of one instant: trades first, for a trade makes the book change, then the book's states in their order, the bid before the ask.
-- Prices and quantities are integers of 1e-8 here: where a class ends is then no matter of rounding.
with
{% if appends %}
known as (
    select
        (exchange, market_type, symbol) as instrument,
        max(known_at) as last_known_at,
        last_known_at - {{ context }} as resume_at
    from {{ this }}
    group by instrument
),
{% endif %}

on_time_trades as (
    select
        exchange,
        market_type,
        symbol,
        known_at,
        timestamp,
        trade_seq,
        -- numeric ids order by themselves; only venues without them carry the text along
        if(trade_seq = 0, trade_id, '') as text_id,
        side = 'buy' as is_buy,
        reinterpret(price, 'Int64') as price,
        reinterpret(quantity, 'Int64') as quantity
    from {{ ref('stg_trades') }}
    where
        is_on_time
        {%- if is_ranged() %}
        and timestamp >= {{ range_start() }} - {{ context }}
        {%- elif appends %}
        and ((exchange, market_type, symbol) not in (select instrument from known) or timestamp >= (select min(resume_at) from known))
        {%- endif %}
),

states as (
    select
        exchange,
        market_type,
        symbol,
        known_at,
        timestamp,
        last_update_id,
        reinterpret(ifNull(bid_price, 0), 'Int64') as bid,
        reinterpret(ifNull(ask_price, 0), 'Int64') as ask,
        reinterpret(ifNull(bid_quantity, 0), 'Int64') as bid_size,
        reinterpret(ifNull(ask_quantity, 0), 'Int64') as ask_size,
        mid is not null as is_valid,
        lagInFrame((is_valid, bid, ask, bid_size, ask_size, known_at)) over (
            partition by exchange, market_type, symbol
            order by known_at, timestamp, last_update_id
            rows between 1 preceding and current row
        ) as before,
        before.1 and known_at <= before.6 + {{ fresh }} as follows
    from {{ ref('book_updates') }}
    {% if is_ranged() -%}
    where known_at >= {{ range_start() }} - {{ context }}
    {%- elif appends -%}
    where
        known_at >= (select min(resume_at) from known)
        or (exchange, market_type, symbol) not in (select instrument from known)
    {%- endif %}
),

-- (type, price, quantity, is it on the ask) each. What was there before is measured at its old price, what is there now at the new one.
changes as (
    select
        exchange,
        market_type,
        symbol,
        known_at,
        timestamp,
        last_update_id,
        is_valid,
        bid,
        ask,
        before.1 as was_valid,
        before.2 as old_bid,
        before.3 as old_ask,
        before.4 as old_bid_size,
        before.5 as old_ask_size,
        multiIf(
            bid > old_bid,
            ({{ type_of['bid_up'] }}, bid, bid_size, 0),
            bid < old_bid,
            ({{ type_of['bid_down'] }}, old_bid, old_bid_size, 0),
            bid_size > old_bid_size,
            ({{ type_of['bid_add'] }}, bid, bid_size - old_bid_size, 0),
            bid_size < old_bid_size,
            ({{ type_of['bid_cancel'] }}, bid, old_bid_size - bid_size, 0),
            ({{ no_event }}, toInt64(0), toInt64(0), 0)
        ) as at_bid,
        multiIf(
            ask > old_ask,
            ({{ type_of['ask_up'] }}, old_ask, old_ask_size, 1),
            ask < old_ask,
            ({{ type_of['ask_down'] }}, ask, ask_size, 1),
            ask_size > old_ask_size,
            ({{ type_of['ask_add'] }}, ask, ask_size - old_ask_size, 1),
            ask_size < old_ask_size,
            ({{ type_of['ask_cancel'] }}, ask, old_ask_size - ask_size, 1),
            ({{ no_event }}, toInt64(0), toInt64(0), 1)
        ) as at_ask,
        arrayFilter(
            e -> e.1 != {{ no_event }},
            multiIf(
                is_valid and follows,
                [at_bid, at_ask],
                is_valid,
                [({{ type_of['book_opened'] }}, toInt64(0), toInt64(0), 0)],
                follows,
                [({{ type_of['book_lost'] }}, toInt64(0), toInt64(0), 0)],
                []
            )
        ) as order_events
    from states
),

happened as (
    select
        exchange,
        market_type,
        symbol,
        known_at,
        toUInt8(0) as is_book,
        timestamp,
        trade_seq as event_seq,
        text_id as event_text_id,
        [(if(is_buy, {{ type_of['trade_buy'] }}, {{ type_of['trade_sell'] }}), price, quantity, 0)] as order_events,
        -- the mid, doubled, and is there one: before a state, and after it
        (toUInt8(0), toInt64(0)) as mid_before,
        (toUInt8(0), toInt64(0)) as mid_after
    from on_time_trades
    union all
    select
        exchange,
        market_type,
        symbol,
        known_at,
        toUInt8(1) as is_book,
        timestamp,
        last_update_id as event_seq,
        '' as event_text_id,
        order_events,
        (was_valid, old_bid + old_ask) as mid_before,
        (is_valid, bid + ask) as mid_after
    from changes
),

in_order as (
    select
        exchange,
        market_type,
        symbol,
        known_at,
        is_book,
        timestamp,
        event_seq,
        event_text_id,
        order_events,
        mid_before,
        anyLastIf((mid_after.1, mid_after.2, timestamp), is_book) over earlier as last_state,
        anyLastIf(known_at, notEmpty(order_events)) over earlier as event_before_at
    from happened
    {% if is_ranged() %}where known_at < {{ range_end() }}{% endif %}
    window earlier as (
        partition by exchange, market_type, symbol
        order by known_at, is_book, timestamp, event_seq, event_text_id
        rows between unbounded preceding and 1 preceding
    )
),

-- Book states that are there, but were not when book_updates was built: events wait for them.
newest_states as (
    select
        exchange,
        market_type,
        symbol,
        max(known_at) as last_known_at,
        max((timestamp, last_update_id)) as newest
    from {{ ref('book_updates') }}
    group by exchange, market_type, symbol
),

unseen_states as (
    select
        b.exchange as exchange,
        b.market_type as market_type,
        b.symbol as symbol,
        min(b.known_at) as first_known_at
    from {{ ref('stg_orderbooks') }} as b
    left join newest_states as s
        on b.exchange = s.exchange
        and b.market_type = s.market_type
        and b.symbol = s.symbol
    where
        b.known_at <= b.timestamp + {{ fresh }}
        and (s.last_known_at is null or (b.known_at > s.last_known_at and (b.timestamp, b.last_update_id) > s.newest))
        and (
            b.timestamp >= (select min(newest.1) from newest_states)
            or (b.exchange, b.market_type, b.symbol) not in (select (exchange, market_type, symbol) from newest_states)
        )
    group by exchange, market_type, symbol
),

-- An event is out once both feeds have passed it, by a later row or by their watermark: nothing can come before it any more. A feed that
-- has never been seen is not waited for.
feeds as (
    select
        exchange,
        market_type,
        symbol,
        least(
            if(countIf(kind = 'trades') = 0, {{ never }}, maxIf(passed, kind = 'trades')),
            if(countIf(kind = 'orderbooks') = 0, {{ never }}, maxIf(passed, kind = 'orderbooks')),
            if(countIf(kind = 'unseen') = 0, {{ never }}, minIf(passed, kind = 'unseen'))
        ) as passed_by_both
    from (
        select
            exchange,
            market_type,
            symbol,
            'trades' as kind,
            max(known_at) as passed
        from on_time_trades
        group by exchange, market_type, symbol
        union all
        select
            exchange,
            market_type,
            symbol,
            'orderbooks' as kind,
            last_known_at as passed
        from newest_states
        union all
        select
            exchange,
            market_type,
            symbol,
            'unseen' as kind,
            first_known_at as passed
        from unseen_states
        union all
        select
            exchange,
            market_type,
            symbol,
            toString(kind) as kind,
            watermark as passed
        from {{ ref('stg_watermarks') }}
        where kind in ('trades', 'orderbooks')
    )
    group by exchange, market_type, symbol
),

instruments as (
    select
        exchange,
        market_type,
        symbol,
        toFloat64(contract_value) as contract_value,
        reinterpret(tick_size, 'Int64') as tick
    from {{ ref('instruments') }}
),

unrolled as (
    select
        exchange,
        market_type,
        symbol,
        known_at,
        is_book,
        timestamp,
        event_seq,
        event_text_id,
        order_event.1 as type_class,
        order_event.2 as price,
        order_event.3 as quantity,
        toUInt8(order_event.4) as is_ask,
        -- the mid before it, doubled
        if(is_book = 1, mid_before.2, last_state.2) as mid_2,
        if(is_book = 1, mid_before.1, last_state.1 and last_state.3 >= known_at - {{ fresh }}) and price > 0 as has_mid,
        if(place = 1, dateDiff('microsecond', event_before_at, known_at), 0) as waited_us
    from in_order
    array join
        order_events as order_event,
        arrayEnumerate(order_events) as place
),

measured as (
    select
        u.exchange as exchange,
        u.market_type as market_type,
        u.symbol as symbol,
        u.known_at as known_at,
        u.is_book as is_book,
        u.timestamp as timestamp,
        u.event_seq as event_seq,
        u.event_text_id as event_text_id,
        u.is_ask as is_ask,
        u.type_class as type_class,
        u.waited_us as waited_us,
        -- in the quote currency; for inverse in USD
        ifNull(i.contract_value, 1) * (u.quantity / 1e8) * if(u.market_type = 'inverse', 1, u.price / 1e8) as worth,
        ifNull(i.tick, 0) as tick,
        u.has_mid and tick > 0 as has_distance,
        -- outwards from the mid, doubled as it
        if(u.type_class = {{ type_of['trade_buy'] }} or u.is_ask, 2 * u.price - u.mid_2, u.mid_2 - 2 * u.price) as outwards_2
    from unrolled as u
    inner join feeds as f
        on u.exchange = f.exchange
        and u.market_type = f.market_type
        and u.symbol = f.symbol
    left join instruments as i
        on u.exchange = i.exchange
        and u.market_type = i.market_type
        and u.symbol = i.symbol
    {%- if appends %}
    left join known as p on (u.exchange, u.market_type, u.symbol) = p.instrument
    {%- endif %}
    where
        u.known_at < f.passed_by_both
        {%- if is_ranged() %}
        and u.known_at >= {{ range_start() }}
        {%- elif appends %}
        and (p.last_known_at is null or u.known_at > p.last_known_at)
        {%- endif %}
),

-- Where classes start, and what a class adds to the token.
vocabulary as (
    select
        arraySort(groupArrayIf(assumeNotNull(lower_bound), field = 'size' and lower_bound is not null)) as size_bounds,
        arraySort(groupArrayIf(assumeNotNull(lower_bound), field = 'distance' and lower_bound is not null)) as distance_bounds,
        arraySort(groupArrayIf(assumeNotNull(lower_bound), field = 'interval' and lower_bound is not null)) as interval_bounds,
        anyIf(weight, field = 'type') as type_weight,
        anyIf(weight, field = 'size') as size_weight,
        anyIf(weight, field = 'distance') as distance_weight,
        anyIf(weight, field = 'interval') as interval_weight
    from {{ ref('event_vocabulary') }}
),

classes as (
    select
        *,
        arrayCount(bound -> worth >= bound, (select size_bounds from vocabulary)) as size_class,
        -- class 0: no distance; class 1: across the mid
        arrayCount(bound -> outwards_2 >= bound * 2 * tick, (select distance_bounds from vocabulary)) as whole_ticks_class,
        if(has_distance, 1 + whole_ticks_class, 0) as distance_class,
        arrayCount(bound -> waited_us >= bound, (select interval_bounds from vocabulary)) as interval_class
    from measured
)

select
    exchange,
    market_type,
    symbol,
    known_at,
    is_book,
    timestamp,
    event_seq,
    event_text_id,
    is_ask,
    toUInt16(
        type_class * assumeNotNull((select type_weight from vocabulary))
        + size_class * assumeNotNull((select size_weight from vocabulary))
        + distance_class * assumeNotNull((select distance_weight from vocabulary))
        + interval_class * assumeNotNull((select interval_weight from vocabulary))
    ) as token
from classes
