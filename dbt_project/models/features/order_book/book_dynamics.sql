{{ config(**bucket_grain()) }}
{%- set lag_us = var('book_max_lag_ms') * 1000 %}

-- How the book changed over the bucket: each update's levels against those of the update before it.
with buckets as (
    select
        b.exchange as exchange,
        b.market_type as market_type,
        b.symbol as symbol,
        b.bucket_id as bucket_id,
        b.bucket_ts_start as bucket_ts_start,
        b.bucket_ts_end as bucket_ts_end,
        b.state_known_at as state_known_at,
        b.state_timestamp as state_timestamp,
        b.mid as mid,
        b.bid_prices[1] as bid,
        b.ask_prices[1] as ask,
        f.buy_volume as buy_volume,
        f.sell_volume as sell_volume
    from {{ new_buckets(ref('closing_book')) }} as b
    inner join {{ ref('trade_flow') }} as f
        on b.exchange = f.exchange
        and b.market_type = f.market_type
        and b.symbol = f.symbol
        and b.bucket_id = f.bucket_id
),

ends as (
    select *
    from {{ ref('bucket_ends') }}
    where bucket_ts_end >= (select minOrNull(bucket_ts_start) from buckets)
),

-- kept updates only; what was known longer before the first bucket than the allowed age is of no use in it
states as (
    select
        u.exchange as exchange,
        u.market_type as market_type,
        u.symbol as symbol,
        u.known_at as known_at,
        u.timestamp as timestamp,
        u.last_update_id as last_update_id,
        ifNull({{ has_usable_levels('l', 'u.mid') }}, 0) as is_usable,
        l.bid_prices as bid_prices,
        l.bid_quantities as bid_quantities,
        l.ask_prices as ask_prices,
        l.ask_quantities as ask_quantities
    from {{ ref('book_levels') }} as l
    inner join {{ ref('book_updates') }} as u
        on l.exchange = u.exchange
        and l.market_type = u.market_type
        and l.symbol = u.symbol
        and l.known_at = u.known_at
        and l.timestamp = u.timestamp
        and l.last_update_id = u.last_update_id
    where
        l.known_at >= (select minOrNull(bucket_ts_start) from buckets) - toIntervalMicrosecond({{ lag_us }})
        and u.known_at >= (select minOrNull(bucket_ts_start) from buckets) - toIntervalMicrosecond({{ lag_us }})
),

successive as (
    select
        *,
        lagInFrame(is_usable) over known as usable_before,
        lagInFrame(known_at) over known as known_before,
        lagInFrame(timestamp) over known as timestamp_before,
        lagInFrame(bid_prices) over known as bid_prices_before,
        lagInFrame(bid_quantities) over known as bid_quantities_before,
        lagInFrame(ask_prices) over known as ask_prices_before,
        lagInFrame(ask_quantities) over known as ask_quantities_before
    from states
    window known as (
        partition by exchange, market_type, symbol
        order by known_at, timestamp, last_update_id
        rows between 1 preceding and current row
    )
),

-- price (in units of 1e-8, exact) -> size now less size before, of all prices that either of the two books shows
compared as (
    select
        is_usable and usable_before and known_at <= known_before + toIntervalMicrosecond({{ lag_us }}) as follows,
        {%- for side, nearer in {'bid': 'greatest', 'ask': 'least'}.items() %}
        {%- for when in ['', '_before'] %}
        arrayMap(price -> toInt64(round(price * 1e8)), {{ side }}_prices{{ when }}) as {{ side }}_e8{{ when }},
        {%- endfor %}
        -- Both books show the prices from the best to the nearer of their two last. Behind it a level may be there and not be shown.
        {{ nearer }}({{ side }}_e8[-1], {{ side }}_e8_before[-1]) as {{ side }}_last_e8,
        mapSubtract(({{ side }}_e8, {{ side }}_quantities), ({{ side }}_e8_before, {{ side }}_quantities_before))
            as {{ side }}_changes,
        {%- endfor %}
        *
    from successive
),

measured as (
    select
        exchange,
        market_type,
        symbol,
        known_at,
        timestamp,
        last_update_id,
        follows,
        usable_before,
        known_before,
        timestamp_before,
        {%- for side, within in {'bid': '>=', 'ask': '<='}.items() %}
        {{ side }}_prices_before[1] as {{ side }}_before,
        arrayMap(price -> price {{ within }} {{ side }}_last_e8, {{ side }}_changes.1) as {{ side }}_is_shown,
        arraySum((change, is_shown) -> if(is_shown, greatest(change, 0), 0), {{ side }}_changes.2, {{ side }}_is_shown) as {{ side }}_added,
        arraySum((change, is_shown) -> if(is_shown, greatest(-change, 0), 0), {{ side }}_changes.2, {{ side }}_is_shown)
            as {{ side }}_removed,
        arraySum((price, size) -> if(price {{ within }} {{ side }}_last_e8, size, 0), {{ side }}_e8, {{ side }}_quantities)
        + arraySum(
            (price, size) -> if(price {{ within }} {{ side }}_last_e8, size, 0), {{ side }}_e8_before, {{ side }}_quantities_before
        ) as {{ side }}_size,
        {%- endfor %}
        (bid_added + bid_removed + ask_added + ask_removed) / (bid_size + ask_size) as distance
    from compared
),

updates as (
    select
        u.exchange as exchange,
        u.market_type as market_type,
        u.symbol as symbol,
        e.bucket_id as bucket_id,
        (u.known_at, u.timestamp, u.last_update_id) as place,
        u.follows as follows,
        u.bid_added as bid_added,
        u.bid_removed as bid_removed,
        u.ask_added as ask_added,
        u.ask_removed as ask_removed,
        u.distance as distance,
        u.bid_before as bid_before,
        u.ask_before as ask_before,
        -- how long, inside the bucket, the state before was the last one known and not too old
        if(
            u.usable_before,
            dateDiff(
                'microsecond',
                greatest(u.known_before, e.bucket_ts_start),
                least(u.known_at, u.timestamp_before + toIntervalMicrosecond({{ lag_us }}))
            ),
            0
        ) as held_us
    from measured as u
    asof join ends as e
        on u.exchange = e.exchange
        and u.market_type = e.market_type
        and u.symbol = e.symbol
        and u.known_at <= e.bucket_ts_end
    where
        u.known_at >= e.bucket_ts_start
        and u.known_at >= (select minOrNull(bucket_ts_start) from buckets)
),

-- sums of floats in a fixed order, so that a rebuild gives the same bits
over_bucket as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        count() as update_count,
        arraySort(groupArrayIf((place, bid_added, bid_removed, ask_added, ask_removed, distance), follows)) as changes,
        arraySort(groupArrayIf((place, held_us, bid_before, ask_before), held_us > 0)) as spells
    from updates
    group by exchange, market_type, symbol, bucket_id
),

totals as (
    select
        b.exchange as exchange,
        b.market_type as market_type,
        b.symbol as symbol,
        b.bucket_id as bucket_id,
        b.bucket_ts_start as bucket_ts_start,
        b.bucket_ts_end as bucket_ts_end,
        b.mid as mid,
        b.bid as bid,
        b.ask as ask,
        b.buy_volume as buy_volume,
        b.sell_volume as sell_volume,
        ifNull(u.update_count, 0) as update_count,
        nullIf(dateDiff('microsecond', b.bucket_ts_start, b.bucket_ts_end), 0) as duration_us,
        -- a live book without an update did not change; updates that follow on nothing say nothing
        notEmpty(u.changes) or (update_count = 0 and b.mid is not null) as is_compared,
        arraySum(u.changes.2) as bid_added,
        arraySum(u.changes.3) as bid_removed,
        arraySum(u.changes.4) as ask_added,
        arraySum(u.changes.5) as ask_removed,
        u.changes.6 as distances,
        -- the closing state held the rest of the bucket
        if(b.mid is null, 0, dateDiff('microsecond', greatest(b.state_known_at, b.bucket_ts_start), b.bucket_ts_end)) as rest_us,
        if(rest_us > 0, arrayPushBack(u.spells.2, assumeNotNull(rest_us)), u.spells.2) as held_us,
        if(rest_us > 0, arrayPushBack(u.spells.3, b.bid), u.spells.3) as bids,
        if(rest_us > 0, arrayPushBack(u.spells.4, b.ask), u.spells.4) as asks
    from buckets as b
    left join over_bucket as u
        on b.exchange = u.exchange
        and b.market_type = u.market_type
        and b.symbol = u.symbol
        and b.bucket_id = u.bucket_id
),

rates as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        update_count / duration_us * 1e6 as book_refresh_rate,
        {%- for side, taken in {'bid': 'sell_volume', 'ask': 'buy_volume'}.items() %}
        if(is_compared, {{ side }}_added / duration_us * 1e6, null) as {{ side }}_add_rate,
        -- what takers took from this side was not cancelled
        if(is_compared, greatest({{ side }}_removed - {{ taken }}, 0) / duration_us * 1e6, null) as {{ side }}_cancel_rate,
        if(is_compared, ({{ side }}_added - {{ side }}_removed) / duration_us * 1e6, null) as {{ side }}_net_rate,
        if(
            mid is null,
            null,
            arraySum((held, price) -> if(price = {{ side }}, held, 0), held_us, {{ side }}s) / duration_us
        ) as best_{{ side }}_time_share,
        if(
            mid is null or empty(held_us),
            null,
            arraySum(held_us) / 1000
            / (1 + arraySum((price, next_price) -> price != next_price, arrayPopBack({{ side }}s), arrayPopFront({{ side }}s)))
        ) as best_{{ side }}_lifetime_ms,
        {%- endfor %}
        -- the distances' mean may pass 1 by a rounding
        if(empty(distances), null, greatest(1 - arrayAvg(distances), 0.)) as book_stability
    from totals
),

depths as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        is_new,
        nullIf(dateDiff('microsecond', {{ before('bucket_ts_end', 1) }}, bucket_ts_end), 0) / 1e6 as seconds,
        (bid_depth_10 - {{ before('bid_depth_10', 1) }}) / seconds as bid_depth_velocity,
        (ask_depth_10 - {{ before('ask_depth_10', 1) }}) / seconds as ask_depth_velocity
    from {{ new_buckets(ref('book_depth'), context=1) }}
)

select
    r.exchange as exchange,
    r.market_type as market_type,
    r.symbol as symbol,
    r.bucket_id as bucket_id,
    r.bucket_ts_start as bucket_ts_start,
    r.bucket_ts_end as bucket_ts_end,
    r.book_refresh_rate as book_refresh_rate,
    {%- for side in ['bid', 'ask'] %}
    r.{{ side }}_add_rate as {{ side }}_add_rate,
    r.{{ side }}_cancel_rate as {{ side }}_cancel_rate,
    r.{{ side }}_net_rate as {{ side }}_net_rate,
    d.{{ side }}_depth_velocity as {{ side }}_depth_velocity,
    r.best_{{ side }}_time_share as best_{{ side }}_time_share,
    r.best_{{ side }}_lifetime_ms as best_{{ side }}_lifetime_ms,
    {%- endfor %}
    r.book_stability as book_stability
from rates as r
inner join depths as d
    on r.exchange = d.exchange
    and r.market_type = d.market_type
    and r.symbol = d.symbol
    and r.bucket_id = d.bucket_id
where d.is_new = 1
