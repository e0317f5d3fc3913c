{{ config(**bucket_grain()) }}

-- What traded in the bucket. Sums are exact (Decimal) and become Float64 only at the end: the same bytes in any order of addition.
with tapes as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        trade_count,
        volume,
        tape_price,
        tape_quantity,
        tape_is_buy,
        toUInt32(arraySum(tape_is_buy)) as buy_trades,
        arraySum((quantity, is_buy) -> if(is_buy, quantity, toDecimal64(0, 8)), tape_quantity, tape_is_buy) as bought,
        arraySum((price, quantity) -> toDecimal128(price, 8) * quantity, tape_price, tape_quantity) as price_times_quantity
    from {{ new_buckets(ref('bucket_tapes')) }}
),

instruments as (
    select
        exchange,
        market_type,
        symbol,
        contract_value
    from {{ ref('instruments') }}
)

select
    t.exchange as exchange,
    t.market_type as market_type,
    t.symbol as symbol,
    t.bucket_id as bucket_id,
    t.bucket_ts_start as bucket_ts_start,
    t.bucket_ts_end as bucket_ts_end,
    t.trade_count as trade_count,
    t.buy_trades as buy_count,
    toUInt32(t.trade_count - t.buy_trades) as sell_count,
    toFloat64(t.volume) as volume,
    toFloat64(t.bought) as buy_volume,
    toFloat64(t.volume - t.bought) as sell_volume,
    (buy_volume - sell_volume) / volume as flow_imbalance,
    toFloat64(t.price_times_quantity) / volume as vwap,
    toFloat64(ifNull(i.contract_value, 1)) * if(t.market_type = 'inverse', volume, toFloat64(t.price_times_quantity)) as notional,
    toFloat64(t.tape_price[1]) as open_price,
    toFloat64(arrayMax(t.tape_price)) as high_price,
    toFloat64(arrayMin(t.tape_price)) as low_price,
    toFloat64(t.tape_price[-1]) as close_price,
    volume / t.trade_count as mean_trade_size,
    toFloat64(arrayMax(t.tape_quantity)) as max_trade_size,
    toFloat64(dateDiff('microsecond', t.bucket_ts_start, t.bucket_ts_end)) / 1e6 as duration_s,
    t.trade_count / nullIf(duration_s, 0) as trades_per_second
from tapes as t
left join instruments as i
    on t.exchange = i.exchange
    and t.market_type = i.market_type
    and t.symbol = i.symbol
