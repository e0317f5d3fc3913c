-- One row per instrument and kind of feed: complete up to, but not including, `watermark`. While live views run, as their pass found it.
select
    kind,
    exchange,
    market_type,
    symbol,
    max(watermark) as watermark
from {{ source('hot', 'watermarks') }}
where created_at <= ifNull((select maxOrNull(started_at) from {{ source('hot', 'live_passes') }}), now64(3, 'UTC') + toIntervalDay(1))
group by kind, exchange, market_type, symbol
