{{ config(materialized='view') }}

-- One row per instrument, minute that is over, and price: who took how much there.
select
    m.exchange as exchange,
    m.market_type as market_type,
    m.symbol as symbol,
    m.minute_start as minute_start,
    toDateTime64(m.minute_start, 6, 'UTC') + toIntervalMinute(1) as known_at,
    m.price as price,
    toUInt32(m.trade_count) as trade_count,
    m.buy_volume + toDecimal128(0, 8) as buy_volume,
    m.sell_volume + toDecimal128(0, 8) as sell_volume
from {{ ref('footprint_minutes_stored') }} as m final
inner join {{ ref('minute_feeds') }} as f
    on m.exchange = f.exchange
    and m.market_type = f.market_type
    and m.symbol = f.symbol
where f.trades_passed >= known_at
