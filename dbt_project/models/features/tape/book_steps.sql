{{ config(**bucket_grain(order_by='(exchange, market_type, symbol, known_at)')) }}
{%- set max_lag = 'toIntervalMillisecond(' ~ var('book_max_lag_ms') ~ ')' %}
{%- set half_wall = var('wall_multiple') / 2 %}

-- The book on a grid of 100 ms steps: the last state of each step, against the one before it and the trades between the two. A bucket's
-- end cuts a step in two: what comes later in the step is not known yet.
with new_ones as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end
    from {{ new_buckets(ref('unified_buckets')) }}
),

-- A step is compared with one up to the allowed age before it, and steps between two buckets count from that long before the second.
bounds as (
    select
        minOrNull(bucket_ts_start) - toIntervalMillisecond({{ 2 * var('book_max_lag_ms') }}) as seen_from,
        maxOrNull(bucket_ts_end) as seen_to
    from new_ones
),

-- Several buckets can end in one instant: a state belongs to the first that had not ended before it. Unique per instrument and end.
ends as (
    select
        exchange,
        market_type,
        symbol,
        bucket_ts_end,
        min(bucket_id) as bucket_id,
        min(bucket_ts_start) as bucket_ts_start
    from {{ ref('unified_buckets') }}
    where
        bucket_ts_end >= (select seen_from from bounds)
        and bucket_ts_end <= (select seen_to from bounds)
    group by exchange, market_type, symbol, bucket_ts_end
),

grid as (
    select
        u.exchange as exchange,
        u.market_type as market_type,
        u.symbol as symbol,
        e.bucket_id as bucket_id,
        u.known_at as known_at,
        u.timestamp as timestamp,
        u.last_update_id as last_update_id,
        u.bid_price as bid_price,
        u.ask_price as ask_price,
        u.bid_quantity as bid_quantity,
        u.ask_quantity as ask_quantity
    from {{ ref('book_updates') }} as u
    asof join ends as e
        on u.exchange = e.exchange
        and u.market_type = e.market_type
        and u.symbol = e.symbol
        and u.known_at <= e.bucket_ts_end
    where
        u.known_at >= e.bucket_ts_start - {{ max_lag }}
        and u.known_at >= (select seen_from from bounds)
        and u.known_at <= (select seen_to from bounds)
    order by known_at desc, timestamp desc, last_update_id desc
    limit 1 by exchange, market_type, symbol, bucket_id, intDiv(toUnixTimestamp64Micro(known_at), {{ var('tape_step_ms') * 1000 }})
),

-- A trade is counted for the first step behind it: that has the number of the steps before the trade, and one.
numbered as (
    select
        *,
        sum(is_step) over before_this + not is_step as place
    from (
        select
            exchange,
            market_type,
            symbol,
            bucket_id,
            known_at,
            timestamp,
            last_update_id,
            bid_price,
            ask_price,
            bid_quantity,
            ask_quantity,
            true as is_step,
            toDecimal64(0, 8) as price,
            toDecimal64(0, 8) as quantity,
            false as is_buy
        from grid
        union all
        select
            exchange,
            market_type,
            symbol,
            bucket_id,
            timestamp as known_at,
            timestamp,
            0 as last_update_id,
            null as bid_price,
            null as ask_price,
            null as bid_quantity,
            null as ask_quantity,
            false as is_step,
            price,
            quantity,
            side = 'buy' as is_buy
        from {{ ref('bucket_trades') }}
        where
            timestamp >= (select seen_from from bounds)
            and timestamp <= (select seen_to from bounds)
    )
    window before_this as (
        partition by exchange, market_type, symbol
        order by bucket_id, known_at, is_step
        rows between unbounded preceding and current row
    )
),

with_trades as (
    select
        exchange,
        market_type,
        symbol,
        place,
        anyIf(bucket_id, is_step) as bucket_id,
        anyIf(known_at, is_step) as known_at,
        anyIf(timestamp, is_step) as timestamp,
        anyIf(last_update_id, is_step) as last_update_id,
        {%- for side in ['bid', 'ask'] %}
        anyIf({{ side }}_price, is_step) as {{ side }}_price,
        anyIf({{ side }}_quantity, is_step) as {{ side }}_quantity,
        {%- endfor %}
        -- of no order: exact sums and extremes are all that is taken of them
        groupArrayIf((price, quantity), not is_step and not is_buy) as sales,
        groupArrayIf((price, quantity), not is_step and is_buy) as purchases
    from numbered
    group by exchange, market_type, symbol, place
    having max(is_step)
),

-- A wall is a level of many times the median of its side. Half of that is kept, too: what falls below half is gone.
with_levels as (
    select
        g.exchange as exchange,
        g.market_type as market_type,
        g.symbol as symbol,
        g.bucket_id as bucket_id,
        g.place as place,
        g.known_at as known_at,
        g.sales as sales,
        g.purchases as purchases,
        {%- for side in ['bid', 'ask'] %}
        g.{{ side }}_price as {{ side }}_price,
        g.{{ side }}_quantity as {{ side }}_quantity,
        arraySum(arraySlice(l.{{ side }}_quantities, 1, {{ var('vacuum_depth_levels') }})) as {{ side }}_depth,
        l.{{ side }}_prices[1] as {{ side }}_best,
        l.{{ side }}_prices[-1] as {{ side }}_last,
        arraySort(l.{{ side }}_quantities)[intDiv(length(l.{{ side }}_quantities) + 1, 2)] as {{ side }}_median,
        arrayMap(
            level -> (level.1, level.2 / {{ side }}_median),
            arrayFilter(
                level -> level.2 >= {{ half_wall }} * {{ side }}_median, arrayZip(l.{{ side }}_prices, l.{{ side }}_quantities)
            )
        ) as {{ side }}_walls{{ ',' if not loop.last }}
        {%- endfor %}
    from {{ ref('book_levels') }} as l
    inner join with_trades as g
        on l.exchange = g.exchange
        and l.market_type = g.market_type
        and l.symbol = g.symbol
        and l.known_at = g.known_at
        and l.timestamp = g.timestamp
        and l.last_update_id = g.last_update_id
    where
        l.known_at >= (select seen_from from bounds)
        and l.known_at <= (select seen_to from bounds)
),

steps as (
    select
        *,
        known_at <= lagInFrame(known_at) over known + {{ max_lag }} as follows,
        {%- for side in ['bid', 'ask'] %}
        lagInFrame({{ side }}_price) over known as {{ side }}_price_before,
        lagInFrame({{ side }}_quantity) over known as {{ side }}_quantity_before,
        lagInFrame({{ side }}_depth) over known as {{ side }}_depth_before,
        lagInFrame({{ side }}_best) over known as {{ side }}_best_before,
        lagInFrame({{ side }}_last) over known as {{ side }}_last_before,
        lagInFrame({{ side }}_walls) over known as {{ side }}_walls_before{{ ',' if not loop.last }}
        {%- endfor %}
    from with_levels
    window known as (partition by exchange, market_type, symbol order by place rows between unbounded preceding and current row)
)

select
    s.exchange as exchange,
    s.market_type as market_type,
    s.symbol as symbol,
    s.bucket_id as bucket_id,
    n.bucket_ts_start as bucket_ts_start,
    n.bucket_ts_end as bucket_ts_end,
    s.known_at as known_at,
    {%- for side, prints, behind, within in [('bid', 'sales', '<', '>='), ('ask', 'purchases', '>', '<=')] %}
    s.{{ side }}_depth as {{ side }}_depth,
    if(s.follows, s.{{ side }}_depth_before, null) as {{ side }}_depth_before,
    if(s.follows, toFloat64(arraySum(s.{{ prints }}.2)), 0.) as {{ side }}_executed,
    -- more was executed at the best than was displayed there, and the best is still there
    if(
        s.follows and s.{{ side }}_price = s.{{ side }}_price_before,
        greatest(toFloat64(arraySum(arrayFilter(
            (quantity, price) -> ifNull(price = s.{{ side }}_price, false), s.{{ prints }}.2, s.{{ prints }}.1
        )) - ifNull(s.{{ side }}_quantity_before, 0)), 0.),
        0.
    ) as {{ side }}_hidden,
    -- behind the best, at a price that was in view before without a wall
    arrayFilter(
        wall -> s.follows
        and wall.2 >= {{ var('wall_multiple') }}
        and wall.1 {{ behind }} s.{{ side }}_best
        and wall.1 {{ behind }} s.{{ side }}_best_before
        and wall.1 {{ within }} s.{{ side }}_last_before
        and not has(s.{{ side }}_walls_before.1, wall.1),
        s.{{ side }}_walls
    ) as {{ side }}_walls_up,
    -- behind the best, in view, and nothing was executed there
    arrayFilter(
        price -> s.follows
        and price {{ behind }} s.{{ side }}_best
        and price {{ within }} s.{{ side }}_last
        and not has(s.{{ side }}_walls.1, price)
        and not arrayExists(executed_at -> toFloat64(executed_at) {{ behind }}= price, s.{{ prints }}.1),
        s.{{ side }}_walls_before.1
    ) as {{ side }}_walls_gone{{ ',' if not loop.last }}
    {%- endfor %}
from steps as s
inner join new_ones as n
    on s.exchange = n.exchange
    and s.market_type = n.market_type
    and s.symbol = n.symbol
    and s.bucket_id = n.bucket_id
