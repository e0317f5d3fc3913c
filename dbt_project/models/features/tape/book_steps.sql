{{ config(**bucket_grain(order_by='(exchange, market_type, symbol, known_at)')) }}
{# sort for the windows what is computed, not the levels it is computed from #}
{{ config(query_settings={'query_plan_execute_functions_after_sorting': 0}) }}
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

ends as (
    select *
    from {{ ref('bucket_ends') }}
    where
        bucket_ts_end >= (select seen_from from bounds)
        and bucket_ts_end <= (select seen_to from bounds)
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
        u.ask_quantity as ask_quantity,
        intDiv(toUnixTimestamp64Micro(u.known_at), {{ var('tape_step_ms') * 1000 }}) as grid_step
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
    limit 1 by exchange, market_type, symbol, bucket_id, grid_step
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
        anyIf(bid_price, is_step) as bid_price,
        anyIf(ask_price, is_step) as ask_price,
        anyIf(bid_quantity, is_step) as bid_quantity,
        anyIf(ask_quantity, is_step) as ask_quantity,
        -- of no order: exact sums and extremes are all that is taken of them
        groupArrayIf((price, quantity), not is_step and not is_buy) as sales,
        groupArrayIf((price, quantity), not is_step and is_buy) as purchases
    from numbered
    group by exchange, market_type, symbol, place
    having max(is_step)
),

joined as (
    select
        g.exchange as exchange,
        g.market_type as market_type,
        g.symbol as symbol,
        g.bucket_id as bucket_id,
        g.place as place,
        g.known_at as known_at,
        g.bid_price as bid_price,
        g.ask_price as ask_price,
        g.bid_quantity as bid_quantity,
        g.ask_quantity as ask_quantity,
        g.sales as sales,
        g.purchases as purchases,
        l.bid_prices as bid_prices,
        l.ask_prices as ask_prices,
        l.bid_quantities as bid_quantities,
        l.ask_quantities as ask_quantities
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

-- A wall is a level of many times the median of its side. Half of that is kept, too: what falls below half is gone.
with_levels as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        place,
        known_at,
        sales,
        {%- for side in ['bid', 'ask'] %}
        {{ side }}_price,
        {{ side }}_quantity,
        arraySum(arraySlice({{ side }}_quantities, 1, {{ var('vacuum_depth_levels') }})) as {{ side }}_depth,
        {{ side }}_prices[1] as {{ side }}_best,
        {{ side }}_prices[-1] as {{ side }}_last,
        arraySort({{ side }}_quantities)[intDiv(length({{ side }}_quantities) + 1, 2)] as {{ side }}_median,
        arrayMap(
            level -> (level.1, level.2 / {{ side }}_median),
            arrayFilter(level -> level.2 >= {{ half_wall }} * {{ side }}_median, arrayZip({{ side }}_prices, {{ side }}_quantities))
        ) as {{ side }}_walls,
        {%- endfor %}
        purchases
    from joined
),

steps as (
    select
        *,
        {%- for side in ['bid', 'ask'] %}
        lagInFrame({{ side }}_price) over known as {{ side }}_price_before,
        lagInFrame({{ side }}_quantity) over known as {{ side }}_quantity_before,
        lagInFrame({{ side }}_depth) over known as {{ side }}_depth_before,
        lagInFrame({{ side }}_best) over known as {{ side }}_best_before,
        lagInFrame({{ side }}_last) over known as {{ side }}_last_before,
        lagInFrame({{ side }}_walls) over known as {{ side }}_walls_before,
        {%- endfor %}
        known_at <= lagInFrame(known_at) over known + {{ max_lag }} as follows
    from with_levels
    window known as (partition by exchange, market_type, symbol order by place rows between 1 preceding and current row)
),

compared as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        known_at,
        {%- for side, prints, behind, within in [('bid', 'sales', '<', '>='), ('ask', 'purchases', '>', '<=')] %}
        {{ side }}_depth,
        if(follows, {{ side }}_depth_before, null) as {{ side }}_depth_known_before,
        if(follows, toFloat64(arraySum({{ prints }}.2)), 0.) as {{ side }}_executed,
        -- more was executed at the best than was displayed there, and the best is still there
        arraySum(
            arrayFilter((quantity, price) -> ifNull(price = {{ side }}_price, false), {{ prints }}.2, {{ prints }}.1)
        ) as {{ side }}_executed_at_best,
        if(
            follows and {{ side }}_price = {{ side }}_price_before,
            greatest(toFloat64({{ side }}_executed_at_best - ifNull({{ side }}_quantity_before, 0)), 0.),
            0.
        ) as {{ side }}_hidden,
        -- behind the best, at a price that was in view before without a wall
        arrayFilter(
            wall -> follows
            and wall.2 >= {{ var('wall_multiple') }}
            and wall.1 {{ behind }} {{ side }}_best
            and wall.1 {{ behind }} {{ side }}_best_before
            and wall.1 {{ within }} {{ side }}_last_before
            and not has({{ side }}_walls_before.1, wall.1),
            {{ side }}_walls
        ) as {{ side }}_walls_up,
        -- behind the best, in view, and nothing was executed there
        arrayFilter(
            price -> follows
            and price {{ behind }} {{ side }}_best
            and price {{ within }} {{ side }}_last
            and not has({{ side }}_walls.1, price)
            and not arrayExists(executed_at -> toFloat64(executed_at) {{ behind }}= price, {{ prints }}.1),
            {{ side }}_walls_before.1
        ) as {{ side }}_walls_gone,
        {%- endfor %}
        follows
    from steps
)

select
    c.exchange as exchange,
    c.market_type as market_type,
    c.symbol as symbol,
    c.bucket_id as bucket_id,
    n.bucket_ts_start as bucket_ts_start,
    n.bucket_ts_end as bucket_ts_end,
    c.known_at as known_at,
    c.bid_depth as bid_depth,
    c.ask_depth as ask_depth,
    c.bid_depth_known_before as bid_depth_before,
    c.ask_depth_known_before as ask_depth_before,
    c.bid_executed as bid_executed,
    c.ask_executed as ask_executed,
    c.bid_hidden as bid_hidden,
    c.ask_hidden as ask_hidden,
    c.bid_walls_up as bid_walls_up,
    c.ask_walls_up as ask_walls_up,
    c.bid_walls_gone as bid_walls_gone,
    c.ask_walls_gone as ask_walls_gone
from compared as c
inner join new_ones as n
    on c.exchange = n.exchange
    and c.market_type = n.market_type
    and c.symbol = n.symbol
    and c.bucket_id = n.bucket_id
