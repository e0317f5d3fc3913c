{{ config(**bucket_grain()) }}
{%- set longest_run = "toUInt32(arrayMax(run -> length(run), splitByChar('0', arrayStringConcat(arrayMap(x -> toString(x), {})))))" %}

-- The shape of a bucket's volume over price.
with profiles as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        any(bucket_ts_start) as bucket_ts_start,
        any(bucket_ts_end) as bucket_ts_end,
        arraySort(groupArray((price_bin, buy_volume, sell_volume, low_price, high_price))) as bins,
        argMax(last_price, last_position) as close_price
    from {{ new_buckets(ref('footprint_bins')) }}
    group by exchange, market_type, symbol, bucket_id
),

arrays as (
    select
        * except (bins, close_price),
        toFloat64(close_price) as last_price,
        bins.2 as buys,
        bins.3 as sells,
        bins.4 as lows,
        bins.5 as highs,
        arrayMap((buy, sell) -> buy + sell, buys, sells) as volumes,
        arrayMap((buy, sell) -> buy - sell, buys, sells) as deltas,
        arrayMap((low, high) -> (toFloat64(low) + toFloat64(high)) / 2, lows, highs) as mids,
        arraySum(volumes) as volume,
        arrayCumSum(volumes) as cumulative,
        indexOf(volumes, arrayMax(volumes)) as poc,
        indexOf(arrayMap(x -> abs(x), deltas), arrayMax(x -> abs(x), deltas)) as strongest,
        -- diagonally, as takers meet: what was bought in a bin against what was sold in the bin below
        arrayMap((buy, sell_below) -> buy > 0 and buy >= 3 * sell_below, arrayPopFront(buys), arrayPopBack(sells)) as buys_dominate,
        arrayMap((sell, buy_above) -> sell > 0 and sell >= 3 * buy_above, arrayPopBack(sells), arrayPopFront(buys)) as sells_dominate,
        -- from each bin up to the first with which {{ var('footprint_value_area') }} of the volume are together
        arrayMap(
            before -> arrayFirstIndex(
                c -> c >= before + toDecimal128('{{ var("footprint_value_area") }}', 2) * volume, cumulative
            ),
            arrayMap((c, v) -> c - v, cumulative, volumes)
        ) as value_area_ends
    from profiles
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    toUInt32(length(volumes)) as footprint_bin_count,
    (mids[poc] / last_price - 1) * 10000 as poc_distance_bps,
    toFloat64(volumes[poc]) / toFloat64(volume) as poc_volume_share,
    toFloat64(deltas[poc]) as poc_delta,
    toFloat64(deltas[poc]) / toFloat64(volumes[poc]) as poc_imbalance,
    arrayMin(arrayMap(
        (low, last) -> toFloat64(highs[last] - low),
        arrayFilter((low, last) -> last > 0, lows, value_area_ends),
        arrayFilter(last -> last > 0, value_area_ends)
    )) / last_price * 10000 as value_area_width_bps,
    toFloat64(deltas[strongest]) / toFloat64(volume) as max_bin_delta_share,
    (mids[strongest] / last_price - 1) * 10000 as max_bin_delta_distance_bps,
    toFloat64(arraySum(x -> abs(x), deltas)) / toFloat64(volume) as bin_delta_dispersion,
    toFloat64(deltas[-1]) / toFloat64(volumes[-1]) as high_bin_imbalance,
    toFloat64(deltas[1]) / toFloat64(volumes[1]) as low_bin_imbalance,
    abs(arraySum(v -> toFloat64(v) / toFloat64(volume) * log(toFloat64(v) / toFloat64(volume)), volumes)) as footprint_entropy,
    {{ longest_run.format('buys_dominate') }} as stacked_buy_imbalance,
    {{ longest_run.format('sells_dominate') }} as stacked_sell_imbalance
from arrays
