-- One row per 24 h ticker.
select
    exchange,
    market_type,
    symbol,
    timestamp,
    toFloat64(last_price) as last_price,
    toFloat64(volume_24h) as volume_24h,
    toFloat64(price_change_24h) as price_change_24h,
    toFloat64(high_24h) as high_24h,
    toFloat64(low_24h) as low_24h,
    known_at,
    data_source
from {{ raw_rows('tickers') }}
