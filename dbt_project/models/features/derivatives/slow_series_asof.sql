{{ config(materialized='view') }}

-- The slow series again, under the key of every instrument that looks at them: the right side of every as-of join on one.
with looks_at as (
    select
        exchange,
        market_type,
        symbol,
        exchange as series_exchange,
        derivative_market_type as series_market_type,
        derivative_symbol as series_symbol
    from {{ ref('derivative_markets') }}
    union all
    -- a volatility index is one of an asset
    select
        exchange,
        market_type,
        symbol,
        '' as series_exchange,
        '' as series_market_type,
        base_asset as series_symbol
    from {{ ref('instruments') }}
)

select
    s.kind as kind,
    l.exchange as exchange,
    l.market_type as market_type,
    l.symbol as symbol,
    s.timestamp as timestamp,
    s.known_at as known_at,
    s.reading as reading,
    s.funding_time as funding_time,
    s.next_funding_time as next_funding_time,
    s.unchanged_since as unchanged_since,
    s.reading_before as reading_before,
    s.reading_z as reading_z,
    s.reading_rank as reading_rank,
    s.reading_step as reading_step,
    s.reading_step_z as reading_step_z
from {{ ref('slow_series') }} as s
inner join looks_at as l
    on s.exchange = l.series_exchange
    and s.market_type = l.series_market_type
    and s.symbol = l.series_symbol
