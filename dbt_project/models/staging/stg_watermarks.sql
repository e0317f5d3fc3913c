-- One row per instrument and kind of feed: complete up to, but not including, `watermark`.
select
    kind,
    exchange,
    market_type,
    symbol,
    max(watermark) as watermark
from {{ source('hot', 'watermarks') }}
group by kind, exchange, market_type, symbol
