-- One row per liquidation order; `side` is the order's: sell closes a long.
select
    exchange,
    market_type,
    symbol,
    timestamp,
    side,
    toFloat64(price) as price,
    toFloat64(quantity) as quantity,
    liquidation_time,
    known_at,
    data_source
from {{ raw_rows('liquidations') }}
