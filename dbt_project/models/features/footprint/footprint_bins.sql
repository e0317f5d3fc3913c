{{ config(**bucket_grain(order_by='(exchange, market_type, symbol, bucket_id, price_bin)')) }}

-- What takers bought and sold in each price bin of a bucket. Exact: shares of the volume decide the bucket's features.
with tapes as (
    select
        t.exchange as exchange,
        t.market_type as market_type,
        t.symbol as symbol,
        t.bucket_id as bucket_id,
        t.bucket_ts_start as bucket_ts_start,
        t.bucket_ts_end as bucket_ts_end,
        i.tick_size as tick_size,
        t.tape_price as tape_price,
        t.tape_quantity as tape_quantity,
        t.tape_is_buy as tape_is_buy
    from {{ new_buckets(ref('bucket_tapes')) }} as t
    left join {{ ref('instruments') }} as i
        on t.exchange = i.exchange
        and t.market_type = i.market_type
        and t.symbol = i.symbol
),

prints as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        {{ price_bin('price', 'tick_size') }} as price_bin,
        position,
        price,
        quantity,
        is_buy
    from tapes
    array join
        arrayEnumerate(tape_price) as position,
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
    price_bin,
    toUInt32(count()) as trade_count,
    sumIf(quantity, is_buy) as buy_volume,
    sumIf(quantity, not is_buy) as sell_volume,
    buy_volume - sell_volume as delta,
    buy_volume + sell_volume as volume,
    min(price) as low_price,
    max(price) as high_price,
    toUInt32(max(position)) as last_position,
    argMax(price, position) as last_price
from prints
group by exchange, market_type, symbol, bucket_id, price_bin
