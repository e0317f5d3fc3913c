{%- set appends = is_incremental() and not is_ranged() %}
{{ config(**bucket_grain(order_by='(exchange, market_type, symbol, known_at, timestamp, last_update_id)', day='known_at')) }}

-- The best level as this system came to know it, in the order of knowledge, with what each update adds to order-flow imbalance.
with
{% if appends %}
-- the last state of each instrument that is published already: what the first new update is compared with
published as (
    select
        exchange,
        market_type,
        symbol,
        timestamp,
        last_update_id,
        bid_price,
        ask_price,
        bid_quantity,
        ask_quantity,
        known_at
    from {{ this }}
    order by known_at desc, timestamp desc, last_update_id desc
    limit 1 by exchange, market_type, symbol
),

-- says nothing new beside the condition on p.known_at below, but lets ClickHouse skip what every instrument has published
unpublished as (
    select *
    from {{ ref('stg_orderbooks') }}
    where
        known_at >= (select min(known_at) from published)
        or (exchange, market_type, symbol) not in (select (exchange, market_type, symbol) from published)
),
{% endif %}

-- A state that is already too old to use when it becomes known is no update.
incoming as (
    select
        b.exchange as exchange,
        b.market_type as market_type,
        b.symbol as symbol,
        b.timestamp as timestamp,
        b.last_update_id as last_update_id,
        b.bid_price as bid_price,
        b.ask_price as ask_price,
        b.bid_quantity as bid_quantity,
        b.ask_quantity as ask_quantity,
        b.known_at as known_at,
        {% if is_ranged() %}b.known_at >= {{ range_start() }}{% else %}true{% endif %} as is_new
    from {{ 'unpublished' if appends else ref('stg_orderbooks') }} as b
    {% if appends %}
    left join published as p
        on b.exchange = p.exchange
        and b.market_type = p.market_type
        and b.symbol = p.symbol
    {% endif %}
    where
        true
        {%- if is_ranged() %}
        and b.known_at >= {{ range_start() }} - toIntervalMillisecond({{ var('book_max_lag_ms') }})
        and b.known_at < {{ range_end() }}
        {%- elif appends %}
        and (p.known_at is null or b.known_at > p.known_at)
        {%- endif %}
        and b.known_at <= b.timestamp + toIntervalMillisecond({{ var('book_max_lag_ms') }})
    {% if appends %}
    union all
    select
        *,
        false as is_new
    from published
    {% endif %}
),

in_order_of_knowledge as (
    select
        *,
        max((timestamp, last_update_id)) over (
            partition by exchange, market_type, symbol
            order by known_at, timestamp, last_update_id
            rows between unbounded preceding and current row
        ) as newest_so_far
    from incoming
),

-- What arrives after something newer is known is stale on arrival.
kept as (
    select
        *,
        row_number() over known as position,
        lagInFrame((bid_price, ask_price, bid_quantity, ask_quantity, known_at)) over known as before
    from in_order_of_knowledge
    where (timestamp, last_update_id) = newest_so_far
    window known as (
        partition by exchange, market_type, symbol
        order by known_at, timestamp, last_update_id
        rows between unbounded preceding and current row
    )
),

-- Both sides have to be there, now and before, and the state before must not be from before a gap.
compared as (
    select
        * except (before, position, newest_so_far),
        toDecimal128(bid_price, 8) as bid,
        toDecimal128(ask_price, 8) as ask,
        toDecimal128(bid_quantity, 8) as bid_qty,
        toDecimal128(ask_quantity, 8) as ask_qty,
        toDecimal128(before.1, 8) as bid_before,
        toDecimal128(before.2, 8) as ask_before,
        toDecimal128(before.3, 8) as bid_qty_before,
        toDecimal128(before.4, 8) as ask_qty_before,
        position > 1 and known_at <= before.5 + toIntervalMillisecond({{ var('book_max_lag_ms') }}) as follows,
        bid + ask + bid_qty + ask_qty is not null as is_valid
    from kept
)

select
    exchange,
    market_type,
    symbol,
    timestamp,
    last_update_id,
    known_at,
    bid_price,
    ask_price,
    bid_quantity,
    ask_quantity,
    if(is_valid, toFloat64(bid + ask) / 2, null) as mid,
    if(is_valid, toFloat64(ask - bid) / (toFloat64(bid + ask) / 2) * 10000, null) as spread_bps,
    if(is_valid, toFloat64(bid_qty - ask_qty) / toFloat64(bid_qty + ask_qty), null) as tob_imbalance,
    if(
        is_valid,
        (toFloat64(ask) * toFloat64(bid_qty) + toFloat64(bid) * toFloat64(ask_qty)) / toFloat64(bid_qty + ask_qty),
        null
    ) as microprice,
    -- Cont, Kukanov, Stoikov (2014), eq. 2: what was added at or above the old bid, less what left it; mirrored for the ask
    if(
        follows and is_valid,
        if(bid >= bid_before, bid_qty, 0)
        - if(bid <= bid_before, bid_qty_before, 0)
        - if(ask <= ask_before, ask_qty, 0)
        + if(ask >= ask_before, ask_qty_before, 0)
        -- NULL where the state before had an empty side
        + 0 * (bid_before + ask_before + bid_qty_before + ask_qty_before),
        null
    ) as ofi_increment
from compared
where is_new
