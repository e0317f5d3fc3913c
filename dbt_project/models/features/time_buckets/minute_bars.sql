{{ config(materialized='view') }}

-- What a minute says by itself: the substitute for a bucket while the logical clock stalls.
-- Columns of the right sides of joins are Nullable, so that a missing row is NULL under any join_use_nulls.
with seen as (
    select
        exchange,
        market_type,
        symbol,
        minute_start,
        true as is_trade
    from {{ ref('trade_minutes_stored') }}
    union distinct
    select
        exchange,
        market_type,
        symbol,
        minute_start,
        false as is_trade
    from {{ ref('book_minutes_stored') }}
),

minutes as (
    select
        s.exchange as exchange,
        s.market_type as market_type,
        s.symbol as symbol,
        s.minute_start as minute_start,
        toDateTime64(s.minute_start, 6, 'UTC') + toIntervalMinute(1) as known_at,
        -- nothing traded, nothing came: known only of a feed that has passed the minute
        any(f.trades_passed) >= known_at as trades_are_known,
        any(f.book_passed) >= known_at as book_is_known
    from seen as s
    inner join {{ ref('minute_feeds') }} as f
        on s.exchange = f.exchange
        and s.market_type = f.market_type
        and s.symbol = f.symbol
    where if(s.is_trade, f.trades_passed, f.book_passed) >= known_at
    group by exchange, market_type, symbol, minute_start
),

trades as (
    select
        exchange,
        market_type,
        symbol,
        minute_start,
        toNullable(trade_count) as trade_count,
        toNullable(buy_count) as buy_count,
        toNullable(toFloat64(volume)) as volume,
        toNullable(toFloat64(buy_volume)) as buy_volume,
        toNullable(toFloat64(volume - buy_volume)) as sell_volume,
        toNullable(toFloat64(price_times_quantity)) as price_times_quantity,
        toNullable(open_price) as open_price,
        toNullable(high_price) as high_price,
        toNullable(low_price) as low_price,
        toNullable(close_price) as close_price,
        toNullable(max_trade_size) as max_trade_size
    from {{ ref('trade_minutes') }}
),

-- Of prices with the same volume the lowest is the point of control.
footprints as (
    select
        exchange,
        market_type,
        symbol,
        minute_start,
        toNullable(toUInt32(count())) as levels,
        argMax(
            (
                toNullable(toFloat64(price)),
                toNullable(toFloat64(buy_volume + sell_volume)),
                toNullable(toFloat64(buy_volume - sell_volume))
            ),
            (buy_volume + sell_volume, -price)
        ) as point_of_control,
        point_of_control.1 as poc_price,
        point_of_control.2 as poc_volume,
        point_of_control.3 as poc_delta
    from {{ ref('footprint_minutes') }}
    group by exchange, market_type, symbol, minute_start
),

books as (
    select
        * except (state_count, two_sided_count),
        toNullable(state_count) as state_count
    from {{ ref('book_minutes') }}
),

instruments as (
    select
        exchange,
        market_type,
        symbol,
        toNullable(contract_value) as contract_value
    from {{ ref('instruments') }}
)

select
    m.exchange as exchange,
    m.market_type as market_type,
    m.symbol as symbol,
    m.minute_start as minute_start,
    m.known_at as known_at,
    if(m.trades_are_known, toUInt32(ifNull(t.trade_count, 0)), null) as minute_trade_count,
    if(m.trades_are_known, toUInt32(ifNull(t.buy_count, 0)), null) as minute_buy_count,
    toUInt32(minute_trade_count - minute_buy_count) as minute_sell_count,
    if(m.trades_are_known, ifNull(t.volume, 0.), null) as minute_volume,
    if(m.trades_are_known, ifNull(t.buy_volume, 0.), null) as minute_buy_volume,
    if(m.trades_are_known, ifNull(t.sell_volume, 0.), null) as minute_sell_volume,
    (t.buy_volume - t.sell_volume) / t.volume as minute_flow_imbalance,
    t.price_times_quantity / t.volume as minute_vwap,
    if(
        m.trades_are_known,
        toFloat64(ifNull(i.contract_value, 1)) * ifNull(if(m.market_type = 'inverse', t.volume, t.price_times_quantity), 0.),
        null
    ) as minute_notional,
    t.open_price as minute_open_price,
    t.high_price as minute_high_price,
    t.low_price as minute_low_price,
    t.close_price as minute_close_price,
    t.volume / t.trade_count as minute_mean_trade_size,
    t.max_trade_size as minute_max_trade_size,
    minute_trade_count / 60 as minute_trades_per_second,
    if(m.trades_are_known, toUInt32(ifNull(p.levels, 0)), null) as minute_footprint_levels,
    p.poc_price as minute_poc_price,
    p.poc_volume / t.volume as minute_poc_volume_share,
    p.poc_delta as minute_poc_delta,
    b.mid_close as minute_mid_close,
    b.mid_mean as minute_mid_mean,
    b.spread_bps_close as minute_spread_bps_close,
    b.spread_bps_mean as minute_spread_bps_mean,
    b.tob_imbalance_close as minute_tob_imbalance_close,
    b.tob_imbalance_mean as minute_tob_imbalance_mean,
    b.microprice_close as minute_microprice_close,
    (b.microprice_close - b.mid_close) / b.mid_close * 10000 as minute_microprice_gap_bps,
    b.age_ms as minute_book_age_ms,
    if(m.book_is_known, toUInt32(ifNull(b.state_count, 0)), null) as minute_book_update_count
from minutes as m
left join trades as t
    on m.exchange = t.exchange
    and m.market_type = t.market_type
    and m.symbol = t.symbol
    and m.minute_start = t.minute_start
left join footprints as p
    on m.exchange = p.exchange
    and m.market_type = p.market_type
    and m.symbol = p.symbol
    and m.minute_start = p.minute_start
left join books as b
    on m.exchange = b.exchange
    and m.market_type = b.market_type
    and m.symbol = b.symbol
    and m.minute_start = b.minute_start
left join instruments as i
    on m.exchange = i.exchange
    and m.market_type = i.market_type
    and m.symbol = i.symbol
