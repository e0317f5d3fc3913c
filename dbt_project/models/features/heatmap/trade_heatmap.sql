{# Some 300 cells a bucket: a rebuild of months spills them to disk. -#}
{{ config(query_settings={'max_bytes_before_external_group_by': 2000000000}, **bucket_grain()) }}
{%- set slices = var('heatmap_slices') %}
{%- set half = var('heatmap_range_bps') %}

-- Where in price and time around the mid was traded. All sums are over integers, so that their order does not matter.
with buckets as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        log(ifNull(mid_close, 1)) * 10000 as log_mid,
        toInt32(floor(log_mid)) as mid_bin,
        log_mid - mid_bin as mid_rest,
        mid_close is not null as is_live,
        intDiv(toUnixTimestamp64Micro(bucket_ts_end), {{ var('heatmap_slice_s') }} * 1000000) as last_slice
    from {{ new_buckets(ref('top_of_book')) }}
),

windows as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        mid_bin,
        slice_number,
        last_slice - {{ slices - 1 }} + slice_number as slice
    from buckets
    array join range({{ slices }}) as slice_number
    where is_live
),

recent_cells as (
    select *
    from {{ ref('heatmap_cells') }}
    where slice >= (select minOrNull(slice) from windows)
),

-- A cell as of the bucket's end: what buckets up to this one added to it.
cells as (
    select
        w.exchange as exchange,
        w.market_type as market_type,
        w.symbol as symbol,
        w.bucket_id as bucket_id,
        toInt256(w.slice_number) as t,
        toInt256(c.price_bin - w.mid_bin) as k,
        toInt256(reinterpret(sum(c.bought), 'Int128')) as buy,
        toInt256(reinterpret(sum(c.sold), 'Int128')) as sell,
        buy + sell as volume,
        buy - sell as net,
        toInt256(round(toFloat64(volume) * log(toFloat64(volume)) * 1024)) as volume_log_volume
    from windows as w
    inner join recent_cells as c
        on w.exchange = c.exchange
        and w.market_type = c.market_type
        and w.symbol = c.symbol
        and w.slice = c.slice
    where
        c.bucket_id <= w.bucket_id
        and c.price_bin - w.mid_bin between -{{ half }} and {{ half - 1 }}
    group by exchange, market_type, symbol, bucket_id, w.slice_number, c.price_bin, w.mid_bin
),

sums as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        sum(buy) as buy_0,
        sum(buy * k) as buy_k,
        sum(buy * k * k) as buy_kk,
        sum(sell) as sell_0,
        sum(sell * k) as sell_k,
        sum(sell * k * k) as sell_kk,
        sum(volume) as all_0,
        sum(volume * t) as all_t,
        sum(volume * t * t) as all_tt,
        sum(volume * k * t) as all_kt,
        sum(net) as net_0,
        sum(net * t) as net_t,
        sum(net * k) as net_k,
        sum(volume_log_volume) as entropy_part
    from cells
    group by exchange, market_type, symbol, bucket_id
)

select
    b.exchange as exchange,
    b.market_type as market_type,
    b.symbol as symbol,
    b.bucket_id as bucket_id,
    b.bucket_ts_start as bucket_ts_start,
    b.bucket_ts_end as bucket_ts_end,
    -- the middle of cell k lies k + 1/2 bp above the edge of the mid's own cell
    s.buy_k / nullIf(toFloat64(s.buy_0), 0) + 0.5 - b.mid_rest as heatmap_buy_centre_bps,
    s.sell_k / nullIf(toFloat64(s.sell_0), 0) + 0.5 - b.mid_rest as heatmap_sell_centre_bps,
    s.buy_k / nullIf(toFloat64(s.buy_0), 0) - s.sell_k / nullIf(toFloat64(s.sell_0), 0) as heatmap_centre_distance_bps,
    sqrt(toFloat64(s.buy_0 * s.buy_kk - s.buy_k * s.buy_k)) / nullIf(toFloat64(s.buy_0), 0) as heatmap_buy_spread_bps,
    sqrt(toFloat64(s.sell_0 * s.sell_kk - s.sell_k * s.sell_k)) / nullIf(toFloat64(s.sell_0), 0) as heatmap_sell_spread_bps,
    -- ln(sum q) - sum(q ln q) / sum q
    if(
        s.all_0 > 0,
        greatest(log(toFloat64(s.all_0)) - toFloat64(s.entropy_part) / 1024 / toFloat64(s.all_0), 0),
        null
    ) as heatmap_entropy,
    -- least squares over n equally spaced points 0 ... n - 1: sum((i - (n - 1) / 2) y) / ((n^3 - n) / 12)
    toFloat64(2 * s.net_t - {{ slices - 1 }} * s.net_0) / 2 / {{ (slices ** 3 - slices) / 12 * var('heatmap_slice_s') }}
    / nullIf(toFloat64(s.all_0), 0) as heatmap_delta_time_gradient,
    -- prices run from -{{ half }} to {{ half - 1 }}
    toFloat64(2 * s.net_k + s.net_0) / 2 / {{ ((2 * half) ** 3 - 2 * half) / 12 }}
    / nullIf(toFloat64(s.all_0), 0) as heatmap_delta_price_gradient,
    toFloat64(s.all_0 * s.all_kt - s.all_t * toInt256(s.buy_k + s.sell_k))
    / nullIf(toFloat64(s.all_0 * s.all_tt - s.all_t * s.all_t), 0) / {{ var('heatmap_slice_s') }} as heatmap_drift_bps_per_s
from buckets as b
left join sums as s
    on b.exchange = s.exchange
    and b.market_type = s.market_type
    and b.symbol = s.symbol
    and b.bucket_id = s.bucket_id
