{{ config(**bucket_grain()) }}
{%- set prints_us = var('spoof_prints_s') * 1000000 %}

-- Spoofing proxies: a wall goes up behind the best, is pulled untraded within a minute, and takers then print on the other side of it:
-- they buy after an ask wall, sell after a bid wall. A pull belongs to the bucket in which it becomes known; the wall may have gone up
-- before that bucket, and the prints may come behind it.
with buckets as (
    select
        b.exchange as exchange,
        b.market_type as market_type,
        b.symbol as symbol,
        b.bucket_id as bucket_id,
        b.bucket_ts_start as bucket_ts_start,
        b.bucket_ts_end as bucket_ts_end,
        b.mid_close as mid_close,
        a.usual_volume_per_s * {{ var('spoof_prints_s') }} as usual_volume
    from {{ new_buckets(ref('top_of_book')) }} as b
    inner join {{ ref('absorption') }} as a
        on b.exchange = a.exchange
        and b.market_type = a.market_type
        and b.symbol = a.symbol
        and b.bucket_id = a.bucket_id
),

-- The oldest pull whose prints can be in a new bucket, and the oldest wall that it can have pulled.
bounds as (
    select
        minOrNull(bucket_ts_start) - toIntervalSecond({{ var('spoof_prints_s') }}) as pulled_from,
        minOrNull(bucket_ts_start) - toIntervalSecond({{ var('spoof_prints_s') + var('wall_max_life_s') }}) as up_from,
        maxOrNull(bucket_ts_end) as seen_to
    from buckets
),

walls as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        known_at,
        arrayJoin(arrayConcat(
            arrayMap(wall -> (false, true, wall.1, wall.2), bid_walls_up),
            arrayMap(price -> (false, false, price, 0.), bid_walls_gone),
            arrayMap(wall -> (true, true, wall.1, wall.2), ask_walls_up),
            arrayMap(price -> (true, false, price, 0.), ask_walls_gone)
        )) as wall,
        wall.1 as is_ask,
        wall.2 as goes_up,
        wall.3 as price,
        wall.4 as multiple
    from {{ ref('book_steps') }}
    where
        known_at >= (select up_from from bounds)
        and known_at <= (select seen_to from bounds)
),

with_last_up as (
    select
        *,
        lagInFrame((goes_up, multiple, known_at)) over (
            partition by exchange, market_type, symbol, is_ask, price order by known_at rows between 1 preceding and current row
        ) as last_up
    from walls
),

-- Gone, and what happened before at that price was that it went up.
pulls as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        known_at >= bucket_ts_start as is_in_bucket,
        is_ask,
        price,
        toUnixTimestamp64Micro(known_at) as pulled_us,
        last_up.2 as multiple
    from with_last_up
    where
        not goes_up
        and last_up.1
        and known_at <= last_up.3 + toIntervalSecond({{ var('wall_max_life_s') }})
),

pull_counts as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        countIf(not is_ask) as bid_pulls,
        countIf(is_ask) as ask_pulls
    from pulls
    where is_in_bucket
    group by exchange, market_type, symbol, bucket_id
),

-- Trades and pulls meet in slots as long as the prints may take: those after a pull are in its slot or the next.
trades as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        toUnixTimestamp64Micro(timestamp) as traded_us,
        intDiv(traded_us, {{ prints_us }}) as slot,
        if(side = 'buy', quantity, -quantity) as bought
    from {{ ref('bucket_trades') }}
    where
        timestamp >= (select pulled_from from bounds)
        and timestamp <= (select seen_to from bounds)
),

-- What takers printed against the wall's side since the pull, up to each bucket's end.
prints as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        is_ask,
        multiple,
        sum(printed) over (
            partition by exchange, market_type, symbol, is_ask, price, pulled_us
            order by bucket_id
            rows between unbounded preceding and current row
        ) as printed_so_far
    from (
        select
            t.exchange as exchange,
            t.market_type as market_type,
            t.symbol as symbol,
            t.bucket_id as bucket_id,
            p.is_ask as is_ask,
            p.price as price,
            p.pulled_us as pulled_us,
            p.multiple as multiple,
            sum(if(p.is_ask, t.bought, -t.bought)) as printed
        from trades as t
        inner join (select *, arrayJoin([0, 1]) + intDiv(pulled_us, {{ prints_us }}) as slot from pulls) as p
            on t.exchange = p.exchange
            and t.market_type = p.market_type
            and t.symbol = p.symbol
            and t.slot = p.slot
        where t.traded_us > p.pulled_us and t.traded_us <= p.pulled_us + {{ prints_us }}
        group by all
    )
),

largest as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        max(if(is_ask, 0, multiple * greatest(toFloat64(printed_so_far), 0))) as bid_prints,
        max(if(is_ask, multiple * greatest(toFloat64(printed_so_far), 0), 0)) as ask_prints
    from prints
    group by exchange, market_type, symbol, bucket_id
),

steps as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        count() as steps
    from {{ ref('book_steps') }}
    where
        known_at >= (select up_from from bounds)
        and known_at <= (select seen_to from bounds)
        and known_at >= bucket_ts_start
    group by exchange, market_type, symbol, bucket_id
)

select
    b.exchange as exchange,
    b.market_type as market_type,
    b.symbol as symbol,
    b.bucket_id as bucket_id,
    b.bucket_ts_start as bucket_ts_start,
    b.bucket_ts_end as bucket_ts_end,
    -- a live book that did not change pulled nothing; of a dead one nothing is known
    {%- set is_seen = 's.steps is not null or b.mid_close is not null' %}
    if({{ is_seen }}, toUInt32(ifNull(c.bid_pulls, 0)), null) as wall_pull_count_bid,
    if({{ is_seen }}, toUInt32(ifNull(c.ask_pulls, 0)), null) as wall_pull_count_ask,
    if({{ is_seen }}, ifNull(l.bid_prints, 0) / b.usual_volume, null) as spoof_score_bid,
    if({{ is_seen }}, ifNull(l.ask_prints, 0) / b.usual_volume, null) as spoof_score_ask
from buckets as b
left join steps as s
    on b.exchange = s.exchange
    and b.market_type = s.market_type
    and b.symbol = s.symbol
    and b.bucket_id = s.bucket_id
left join pull_counts as c
    on b.exchange = c.exchange
    and b.market_type = c.market_type
    and b.symbol = c.symbol
    and b.bucket_id = c.bucket_id
left join largest as l
    on b.exchange = l.exchange
    and b.market_type = l.market_type
    and b.symbol = l.symbol
    and b.bucket_id = l.bucket_id
