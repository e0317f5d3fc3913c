{{ config(**bucket_grain()) }}
{%- set n = var('rolling_buckets') %}
{%- set before = '(partition by exchange, market_type, symbol order by bucket_id rows between ' ~ n ~ ' preceding and 1 preceding)' %}

-- Who takes: orders by size, by round lots and by rhythm. What is large and what is round, the buckets before say.
with orders as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        is_new,
        order_us,
        order_is_buy,
        -- exact integers, in units of 1e-8
        arrayMap(q -> toInt64(reinterpret(q, 'Int128')), order_quantity) as sizes,
        -- two digits tell sizes apart well enough to count them: few keys, whatever the bucket holds
        arrayMap(
            size -> intDiv(size, toInt64(intExp10(greatest(length(toString(size)), 2) - 2)))
            * toInt64(intExp10(greatest(length(toString(size)), 2) - 2)),
            sizes
        ) as rounded_sizes
    from {{ new_buckets(ref('taker_orders'), context=n) }}
),

with_past as (
    select
        *,
        sumMap(rounded_sizes, arrayResize(emptyArrayUInt64(), length(rounded_sizes), 1)) over {{ before }} as past_sizes,
        count() over {{ before }} as past_buckets
    from orders
),

known as (
    select
        *,
        arrayCumSum(past_sizes.2) as ranks,
        past_buckets >= 10 as is_known,
        arrayFirst((size, rank) -> rank >= 0.5 * ranks[-1], past_sizes.1, ranks) as median_size,
        arrayFirst((size, rank) -> rank >= {{ var('retail_quantile') }} * ranks[-1], past_sizes.1, ranks) as retail_size,
        arrayFirst((size, rank) -> rank >= {{ var('block_quantile') }} * ranks[-1], past_sizes.1, ranks) as block_size,
        -- the decimal lot: the largest power of ten that is no more than the median
        toInt64(intExp10(length(toString(median_size)) - 1)) as lot
    from with_past
    where is_new = 1
),

-- An order is in rhythm if it is the fourth of its side or later and the last three gaps are alike, or the last three sizes equal.
by_side as (
    select
        *,
        arrayJoin([1, 0]) as side,
        arrayFilter((t, is_buy) -> is_buy = side, order_us, order_is_buy) as us,
        arrayFilter((size, is_buy) -> is_buy = side, sizes, order_is_buy) as side_sizes,
        arrayMap((t, t_before) -> t - t_before, us, arraySlice(arrayPushFront(us, us[1]), 1, length(us))) as gaps,
        arrayMap(
            (i, gap, gap_1, gap_2, size, size_1, size_2) -> i > 3
            and (
                (
                    least(gap, gap_1, gap_2) > 0
                    and greatest(gap, gap_1, gap_2) - least(gap, gap_1, gap_2)
                    <= {{ var('rhythm_tolerance') }} * greatest(gap, gap_1, gap_2)
                )
                or (size = size_1 and size = size_2)
            ),
            arrayEnumerate(us),
            gaps,
            arraySlice(arrayPushFront(gaps, 0), 1, length(us)),
            arraySlice(arrayPushFront(arrayPushFront(gaps, 0), 0), 1, length(us)),
            side_sizes,
            arraySlice(arrayPushFront(side_sizes, 0), 1, length(us)),
            arraySlice(arrayPushFront(arrayPushFront(side_sizes, 0), 0), 1, length(us))
        ) as in_rhythm,
        arraySum(side_sizes) as side_volume,
        arraySum(arrayFilter(size -> size % lot = 0, side_sizes)) as round_volume,
        arraySum(arrayFilter(size -> size >= block_size, side_sizes)) as block_volume,
        arraySum(arrayFilter((size, rhythm) -> size < block_size and rhythm, side_sizes, in_rhythm)) as algo_volume,
        arraySum(
            arrayFilter(
                (size, rhythm) -> size < block_size and not rhythm and size <= retail_size and size % lot = 0, side_sizes, in_rhythm
            )
        ) as retail_volume
    from known
),

over_sides as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        any(bucket_ts_start) as starts_at,
        any(bucket_ts_end) as ends_at,
        any(is_known) as are_known,
        any(arraySort(sizes)) as sorted_sizes,
        any(arrayMap(gap -> toInt128(gap), arrayPopFront(arrayDifference(arrayDistinct(order_us))))) as gaps,
        sum(side_volume) as volume,
        sum(round_volume) as in_round_lots,
        sum(retail_volume) as retail,
        sum(algo_volume) as algo,
        sum(block_volume) as block
    from by_side
    group by exchange, market_type, symbol, bucket_id
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    starts_at as bucket_ts_start,
    ends_at as bucket_ts_end,
    toUInt32(length(sorted_sizes)) as order_count,
    (sorted_sizes[intDiv(length(sorted_sizes) + 1, 2)] + sorted_sizes[intDiv(length(sorted_sizes), 2) + 1]) / 2e8 as order_size_median,
    -- from integer sums: sqrt(n * sum of squares - square of the sum) / sum
    if(
        length(gaps) >= 3,
        sqrt(toFloat64(length(gaps) * arraySum(gap -> gap * gap, gaps) - arraySum(gaps) * arraySum(gaps))) / toFloat64(arraySum(gaps)),
        null
    ) as order_gap_cv,
    if(are_known, in_round_lots / volume, null) as round_lot_share,
    if(are_known, retail / volume, null) as retail_share,
    if(are_known, algo / volume, null) as algo_share,
    if(are_known, block / volume, null) as block_share
from over_sides
