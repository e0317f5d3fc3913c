{{ config(**bucket_grain()) }}
{%- set k = var('liquidation_buckets') %}

-- Liquidations over the last buckets: how many, how large, how dense, who was first, and what the mid did since, as far as it is known.
with flow as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        is_new,
        notional
    from {{ new_buckets(ref('trade_flow'), context=k) }}
),

buckets as (
    select
        f.exchange as exchange,
        f.market_type as market_type,
        f.symbol as symbol,
        f.bucket_id as bucket_id,
        f.bucket_ts_start as bucket_ts_start,
        f.bucket_ts_end as bucket_ts_end,
        f.is_new as is_new,
        f.notional as notional,
        b.mid_close as mid_close
    from flow as f
    inner join {{ ref('top_of_book') }} as b
        on f.exchange = b.exchange
        and f.market_type = b.market_type
        and f.symbol = b.symbol
        and f.bucket_id = b.bucket_id
    where b.bucket_ts_start >= (select minOrNull(bucket_ts_start) from flow)
),

-- Those of the derivative that the instrument looks at, and those of the same asset on other venues.
liquidations as (
    select
        d.exchange as exchange,
        d.market_type as market_type,
        d.symbol as symbol,
        l.timestamp as timestamp,
        l.known_at as known_at,
        l.exchange = d.exchange as is_own,
        l.side = 'sell' as is_sell,
        toFloat64(i.contract_value) * l.quantity * if(l.market_type = 'inverse', 1, l.price) as worth
    from {{ ref('stg_liquidations') }} as l
    inner join {{ ref('instruments') }} as i
        on l.exchange = i.exchange
        and l.market_type = i.market_type
        and l.symbol = i.symbol
    inner join {{ ref('derivative_markets') }} as d
        on i.base_asset = d.base_asset
    where
        l.exchange != d.exchange
        or (l.market_type = d.derivative_market_type and l.symbol = d.derivative_symbol)
),

last_known as (
    select
        exchange,
        market_type,
        symbol,
        known_at,
        max(timestamp) as timestamp
    from liquidations
    where is_own
    group by exchange, market_type, symbol, known_at
),

ends_of_buckets as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_end
    from {{ new_buckets(ref('unified_buckets')) }}
),

-- A venue without one for so long counts as one without a feed.
alive as (
    {{ as_of(
        'ends_of_buckets',
        'last_known',
        {'timestamp': 'last_liquidation_at'},
        var('liquidation_max_lag_s') * 1000,
        prefix='liquidation',
    ) }}
),

-- Several buckets can end in one instant: a liquidation belongs to the first that had not ended before it. Unique per instrument and end.
ends as (
    select
        exchange,
        market_type,
        symbol,
        bucket_ts_end,
        min(bucket_id) as bucket_id,
        -- of an instrument's first bucket: nothing from before it counts
        max(if(has_before, null, bucket_ts_start)) as not_before
    from (
        select
            *,
            {{ before('bucket_id', 1) }} is not null as has_before
        from buckets
    )
    group by exchange, market_type, symbol, bucket_ts_end
),

in_buckets as (
    select
        e.exchange as exchange,
        e.market_type as market_type,
        e.symbol as symbol,
        e.bucket_id as bucket_id,
        arraySort(groupArrayIf((toUnixTimestamp64Micro(l.timestamp), l.worth, l.is_sell), l.is_own)) as own,
        arraySort(groupArrayIf(toUnixTimestamp64Micro(l.timestamp), not l.is_own)) as elsewhere
    from liquidations as l
    asof join ends as e
        on l.exchange = e.exchange
        and l.market_type = e.market_type
        and l.symbol = e.symbol
        and l.known_at <= e.bucket_ts_end
    where
        l.known_at >= (select minOrNull(bucket_ts_start) from buckets)
        and (e.not_before is null or l.known_at >= e.not_before)
    group by e.exchange, e.market_type, e.symbol, e.bucket_id
),

with_liquidations as (
    select
        b.*,
        l.own as own,
        l.elsewhere as elsewhere
    from buckets as b
    left join in_buckets as l
        on b.exchange = l.exchange
        and b.market_type = l.market_type
        and b.symbol = l.symbol
        and b.bucket_id = l.bucket_id
),

windows as (
    select
        *,
        arraySort(arrayFlatten(groupArray(own) over {{ past(k) }})) as liquidated,
        arrayFlatten(groupArray(elsewhere) over {{ past(k) }}) as liquidated_elsewhere,
        arraySum(groupArray(notional) over {{ past(k) }}) as traded,
        -- one more: the mid before the window's first liquidation may be that of the bucket before it
        groupArray((ifNull(mid_close, nan), notEmpty(own))) over {{ past(k + 1) }} as mids
    from with_liquidations
),

measured as (
    select
        *,
        liquidated.1 as times,
        arraySum(liquidated.2) as worth,
        arraySum(arrayFilter(l -> l.3, liquidated).2) as sold,
        -- neighbours in time; the ends have one
        arrayPopFront(arrayDifference(times)) as gaps,
        arrayCount(
            (before, after) -> before <= 1000000 or after <= 1000000,
            arrayPushFront(gaps, 1000001),
            arrayPushBack(gaps, 1000001)
        ) as close_in_time,
        arrayFirstIndex(
            (is_liquidated, place) -> is_liquidated and place > if(length(mids) > {{ k }}, 1, 0),
            mids.2,
            arrayEnumerate(mids)
        ) as first_hit,
        if(first_hit > 1, mids[first_hit - 1].1, nan) as mid_before,
        -- liquidated longs sell: the price is pushed down
        sign(worth - 2 * sold) as direction,
        arrayMap(
            mid -> direction * (mid / mid_before - 1) * 10000,
            arrayFilter(mid -> not isNaN(mid), arraySlice(mids.1, greatest(first_hit, 1)))
        ) as pushes,
        if(isNaN(mid_before) or direction = 0 or empty(pushes), null, arrayMax(pushes)) as push
    from windows
    where is_new = 1
)

select
    m.exchange as exchange,
    m.market_type as market_type,
    m.symbol as symbol,
    m.bucket_id as bucket_id,
    m.bucket_ts_start as bucket_ts_start,
    m.bucket_ts_end as bucket_ts_end,
    a.liquidation_age_ms / 1000 as seconds_since_liquidation,
    if(a.last_liquidation_at is null, null, toUInt32(length(m.liquidated))) as liquidation_count,
    if(a.last_liquidation_at is null, null, toUInt32(length(m.liquidated_elsewhere))) as liquidation_count_elsewhere,
    if(a.last_liquidation_at is null, null, m.worth) as liquidation_notional,
    if(a.last_liquidation_at is null or m.traded <= 0, null, m.worth / m.traded) as liquidation_to_traded,
    if(m.worth > 0, m.sold / m.worth, null) as liquidation_sell_share,
    if(empty(m.liquidated), null, m.close_in_time / length(m.liquidated)) as liquidation_cluster_share,
    if(
        empty(m.liquidated) or empty(m.liquidated_elsewhere),
        null,
        (m.times[1] - arrayMin(m.liquidated_elsewhere)) / 1e6
    ) as liquidation_venue_delay_s,
    m.push as liquidation_impact_bps,
    if(m.push > 0 and m.mid_close is not null, (m.push - m.pushes[-1]) / m.push, null) as liquidation_recovery
from measured as m
inner join alive as a
    on m.exchange = a.exchange
    and m.market_type = a.market_type
    and m.symbol = a.symbol
    and m.bucket_id = a.bucket_id
