{{ config(materialized='view') }}

-- How far each instrument's trades and book have come, by later rows or by the feed's watermark: what closes a minute.
-- 1970: a feed that has never been seen.
with feeds as (
    select
        exchange,
        market_type,
        symbol,
        'trades' as kind,
        toDateTime64(max(minute_start), 6, 'UTC') as passed
    from {{ ref('trade_minutes_stored') }}
    group by exchange, market_type, symbol
    union all
    select
        exchange,
        market_type,
        symbol,
        'orderbooks' as kind,
        toDateTime64(max(minute_start), 6, 'UTC') as passed
    from {{ ref('book_minutes_stored') }}
    group by exchange, market_type, symbol
    union all
    select
        exchange,
        market_type,
        symbol,
        toString(kind) as kind,
        -- complete up to, but not including
        watermark - toIntervalMicrosecond(1) as passed
    from {{ ref('stg_watermarks') }}
    where kind in ('trades', 'orderbooks')
)

select
    exchange,
    market_type,
    symbol,
    maxIf(passed, kind = 'trades') as trades_passed,
    maxIf(passed, kind = 'orderbooks') as book_passed
from feeds
group by exchange, market_type, symbol
