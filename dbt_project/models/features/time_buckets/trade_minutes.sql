{{ config(materialized='view') }}

-- One row per instrument and minute that is over and in which something traded.
select
    m.exchange as exchange,
    m.market_type as market_type,
    m.symbol as symbol,
    m.minute_start as minute_start,
    toDateTime64(m.minute_start, 6, 'UTC') + toIntervalMinute(1) as known_at,
    toUInt32(m.trade_count) as trade_count,
    toUInt32(m.buy_count) as buy_count,
    m.volume + toDecimal128(0, 8) as volume,
    m.buy_volume + toDecimal128(0, 8) as buy_volume,
    m.price_times_quantity + toDecimal128(0, 16) as price_times_quantity,
    m.first_trade.4 as open_price,
    toFloat64(m.high_price) as high_price,
    toFloat64(m.low_price) as low_price,
    m.last_trade.4 as close_price,
    toFloat64(m.max_trade_size) as max_trade_size
from {{ ref('trade_minutes_stored') }} as m final
inner join {{ ref('minute_feeds') }} as f
    on m.exchange = f.exchange
    and m.market_type = f.market_type
    and m.symbol = f.symbol
where f.trades_passed >= known_at
