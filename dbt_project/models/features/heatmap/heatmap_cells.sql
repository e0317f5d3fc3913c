{{ config(**bucket_grain(order_by='(exchange, market_type, symbol, slice, price_bin, bucket_id)')) }}

-- What a bucket's trades add to the map of trades by price and time. A cell is {{ var('heatmap_slice_s') }} s by 1 bp of log price,
-- wherever the mid is.
with trades as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        intDiv(us, {{ var('heatmap_slice_s') }} * 1000000) as slice,
        toInt32(floor(log(toFloat64(price)) * 10000)) as price_bin,
        quantity,
        is_buy
    from {{ new_buckets(ref('bucket_tapes')) }}
    array join
        tape_us as us,
        tape_price as price,
        tape_quantity as quantity,
        tape_is_buy as is_buy
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    any(bucket_ts_start) as bucket_ts_start,
    any(bucket_ts_end) as bucket_ts_end,
    slice,
    price_bin,
    sumIf(quantity, is_buy = 1) as bought,
    sumIf(quantity, is_buy = 0) as sold
from trades
group by exchange, market_type, symbol, bucket_id, slice, price_bin
