-- One row per instrument: before which moment nothing of it is missing any more. What is cut at fixed times is published behind it.
select
    exchange,
    market_type,
    symbol,
    max(complete_to) as closed_to
from (
    select
        exchange,
        market_type,
        symbol,
        max(last_trade_at) as complete_to
    from {{ ref('unified_buckets') }}
    group by exchange, market_type, symbol
    union all
    select
        exchange,
        market_type,
        symbol,
        watermark as complete_to
    from {{ ref('stg_watermarks') }}
    where kind = 'trades'
)
group by exchange, market_type, symbol
