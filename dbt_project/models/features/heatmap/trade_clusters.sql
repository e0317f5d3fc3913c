{# A row carries its trades to the function: small blocks bound the memory, and let its processes work side by side. -#}
{{ config(query_settings={'max_block_size': 1024}, **bucket_grain()) }}
{%- set n = var('trade_cluster_trades') %}

-- Bursts of like trades among the last {{ n }}.
with numbered as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        is_new,
        tape_us,
        tape_price,
        tape_quantity,
        tape_is_buy,
        toInt64(sum(trade_count) over (
            partition by exchange, market_type, symbol
            order by bucket_id
            rows between unbounded preceding and current row
        )) as last_number,
        intDiv(last_number - 1, {{ n }}) as chunk
    -- every bucket has a trade
    from {{ new_buckets(ref('bucket_tapes'), context=n) }}
),

trades as (
    select
        exchange,
        market_type,
        symbol,
        last_number - length(tape_us) + position as number,
        us,
        price,
        quantity,
        is_buy
    from numbered
    array join
        arrayEnumerate(tape_us) as position,
        tape_us as us,
        tape_price as price,
        tape_quantity as quantity,
        tape_is_buy as is_buy
),

-- All trades in chunks of {{ n }}: the last {{ n }} of any moment lie in two of them.
chunks as (
    select
        exchange,
        market_type,
        symbol,
        intDiv(number - 1, {{ n }}) as trade_chunk,
        arraySort(groupArray((number, us, toFloat64(price), toFloat64(quantity), toInt64(is_buy)))) as chunk_trades
    from trades
    group by exchange, market_type, symbol, trade_chunk
),

last_trades as (
    select
        b.exchange as exchange,
        b.market_type as market_type,
        b.symbol as symbol,
        b.bucket_id as bucket_id,
        b.bucket_ts_start as bucket_ts_start,
        b.bucket_ts_end as bucket_ts_end,
        arraySlice(
            arrayConcat(earlier.chunk_trades, arraySlice(own.chunk_trades, 1, b.last_number - b.chunk * {{ n }})), -{{ n }}
        ) as newest
    from numbered as b
    inner join chunks as own
        on b.exchange = own.exchange
        and b.market_type = own.market_type
        and b.symbol = own.symbol
        and b.chunk = own.trade_chunk
    left join chunks as earlier
        on b.exchange = earlier.exchange
        and b.market_type = earlier.market_type
        and b.symbol = earlier.symbol
        and b.chunk - 1 = earlier.trade_chunk
    where b.is_new = 1
),

clustered as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        mp_trade_clusters(
            newest.2,
            newest.3,
            newest.4,
            newest.5,
            toFloat64({{ var('trade_cluster_time_s') }}),
            toFloat64({{ var('trade_cluster_price_bps') }}),
            toFloat64({{ var('trade_cluster_log_size') }}),
            toInt64({{ var('trade_cluster_min_trades') }})
        ) as cluster_stats
    from last_trades
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    toUInt32(tupleElement(cluster_stats, 'clusters')) as trade_cluster_count,
    tupleElement(cluster_stats, 'clustered_share') as trade_cluster_share,
    tupleElement(cluster_stats, 'density') as trade_cluster_density,
    toUInt32(tupleElement(cluster_stats, 'largest_trades')) as trade_cluster_largest_trades,
    tupleElement(cluster_stats, 'largest_volume_share') as trade_cluster_largest_volume_share,
    tupleElement(cluster_stats, 'largest_buy_share') as trade_cluster_largest_buy_share,
    tupleElement(cluster_stats, 'largest_sell_share') as trade_cluster_largest_sell_share,
    tupleElement(cluster_stats, 'error') as udf_error
from clustered
