{{ config(**bucket_grain()) }}
{%- set held_buckets = var('absorption_lookback_buckets') %}
{%- set rate_buckets = var('absorption_rate_buckets') %}
{%- set lookback_us = var('absorption_lookback_s') * 1000000 %}

-- Volume at a price without progress: what takers sold at a price since it last traded below it, and what they bought since it last
-- traded above it, in more than one order: first within each bucket (a level is held if nothing later went through it), then over the
-- buckets of the last minute.
with instruments as (
    select
        exchange,
        market_type,
        symbol,
        reinterpret(tick_size, 'Int64') as tick
    from {{ ref('instruments') }}
),

joined as (
    select
        b.exchange as exchange,
        b.market_type as market_type,
        b.symbol as symbol,
        b.bucket_id as bucket_id,
        b.bucket_ts_start as bucket_ts_start,
        b.bucket_ts_end as bucket_ts_end,
        b.is_new as is_new,
        b.volume as volume,
        b.tape_us as tape_us,
        b.tape_price as tape_price,
        b.tape_quantity as tape_quantity,
        b.tape_is_buy as tape_is_buy,
        ifNull(i.tick, 0) as tick
    from {{ new_buckets(ref('bucket_tapes'), context=rate_buckets) }} as b
    left join instruments as i
        on b.exchange = i.exchange
        and b.market_type = i.market_type
        and b.symbol = i.symbol
),

tapes as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        is_new,
        volume,
        tape_price[-1] as last_price,
        -- exact integers, in units of 1e-8
        arrayMap(x -> reinterpret(x, 'Int64'), tape_price) as prices,
        -- a bin is the tick, or the first power of ten that is at least half a basis point of the price
        intDiv(prices[1] - 1, 20000) as below_half_bp,
        greatest(tick, if(below_half_bp = 0, 1, toInt64(intExp10(length(toString(below_half_bp)))))) as bin_size,
        arrayMap(x -> intDiv(x, bin_size), prices) as bins,
        arrayMap(x -> (x, toUInt64(length(bins) + 1 - x)), arrayEnumerate(bins)) as to_the_end,
        arrayReduceInRanges('min', to_the_end, bins) as lows_from_here,
        arrayReduceInRanges('max', to_the_end, bins) as highs_from_here,
        arrayZip(bins, tape_us, tape_quantity) as prints,
        arraySort(arrayFilter((x, low, is_buy) -> not is_buy and x.1 = low, prints, lows_from_here, tape_is_buy)) as sold_and_held,
        arraySort(arrayFilter((x, high, is_buy) -> is_buy and x.1 = high, prints, highs_from_here, tape_is_buy)) as bought_and_held
    from joined
),

-- Per held level: the volume, and the largest order's.
levels as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        is_new,
        volume,
        last_price,
        bin_size,
        arrayMin(bins) as low,
        arrayMax(bins) as high,
        {%- for side in ['sold', 'bought'] %}
        arrayMap(
            fills -> (fills[1].1, arraySum(fills.3)),
            {{ split_on_change(side ~ '_and_held', 'arrayZip(' ~ side ~ '_and_held.1, ' ~ side ~ '_and_held.2)') }}
        ) as orders_{{ side }},
        arrayMap(
            orders -> (orders[1].1, arraySum(orders.2), arrayMax(orders.2)),
            {{ split_on_change('orders_' ~ side, 'orders_' ~ side ~ '.1') }}
        ) as {{ side }},
        {%- endfor %}
        toUnixTimestamp64Micro(bucket_ts_end) as end_us
    from tapes
),

with_past as (
    select
        *,
        groupArray((end_us, bin_size, low, high, sold, bought, volume)) over {{ past(held_buckets) }} as last_buckets,
        count() over {{ past(rate_buckets) }} as buckets,
        sum(volume) over {{ past(rate_buckets) }} as past_volume,
        sum(toInt64(end_us - toUnixTimestamp64Micro(bucket_ts_start))) over {{ past(rate_buckets) }} as past_us
    from levels
),

recent as (
    select
        * except (last_buckets),
        -- where the price has passed into another bin size, the view back ends
        arrayFilter(b -> b.1 >= end_us - {{ lookback_us }} and b.2 = bin_size, last_buckets) as near,
        arrayMap(place -> (place, toUInt64(length(near) + 1 - place)), arrayEnumerate(near)) as to_the_end,
        -- the lowest and the highest price of all buckets behind each
        arrayReduceInRanges('min', to_the_end, arrayPushBack(arrayPopFront(near.3), toInt64(9223372036854775807))) as lows_behind,
        arrayReduceInRanges('max', to_the_end, arrayPushBack(arrayPopFront(near.4), toInt64(-1))) as highs_behind,
        arraySort(
            arrayFlatten(arrayMap((held, low_) -> arrayFilter(level -> level.1 <= low_, held), near.5, lows_behind))
        ) as sold_levels,
        arraySort(
            arrayFlatten(arrayMap((held, high_) -> arrayFilter(level -> level.1 >= high_, held), near.6, highs_behind))
        ) as bought_levels,
        {%- for side, sign in [('sold', 1), ('bought', -1)] %}
        arrayMap(
            level -> (arraySum(level.2) - arrayMax(level.3), {{ sign }}, level[1].1),
            {{ split_on_change(side ~ '_levels', side ~ '_levels.1') }}
        ) as absorbed_{{ side }},
        {%- endfor %}
        arraySort(arrayConcat(absorbed_sold, absorbed_bought))[-1] as most
    from with_past
    where is_new = 1
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    toFloat64(most.1) as absorbed_volume,
    toFloat64(most.1) / toFloat64(arraySum(near.7)) as absorbed_share,
    -- the time between buckets does not count: no trade, or an outage
    if(buckets >= 20 and past_us > 0, toFloat64(past_volume) / (past_us / 1e6), null) as usual_volume_per_s,
    absorbed_volume / (usual_volume_per_s * {{ var('absorption_lookback_s') }}) as absorption_score,
    if(most.1 > 0, toInt8(most.2), null) as absorption_side,
    if(most.1 > 0, toFloat64(most.3 * bin_size) / 1e8, null) as absorption_price,
    (toFloat64(last_price) / absorption_price - 1) * 10000 as absorption_distance_bps
from recent
