{{ config(materialized='view') }}

-- Which market's funding, open interest, positions and liquidations an instrument looks at. A derivative has its own; spot has none and
-- takes the linear contract of its exchange on the same asset, of the same quote currency if there is one.
with candidates as (
    select
        i.exchange as exchange,
        i.market_type as market_type,
        i.symbol as symbol,
        i.base_asset as base_asset,
        d.market_type as derivative_market_type,
        d.symbol as derivative_symbol,
        d.quote_asset != i.quote_asset as differs
    from {{ ref('instruments') }} as i
    inner join {{ ref('instruments') }} as d
        on i.exchange = d.exchange
        and i.base_asset = d.base_asset
    where
        (i.market_type in ('linear', 'inverse') and d.market_type = i.market_type and d.symbol = i.symbol)
        or (i.market_type = 'spot' and d.market_type = 'linear')
)

select
    exchange,
    market_type,
    symbol,
    base_asset,
    derivative_market_type,
    derivative_symbol
from candidates
order by exchange, market_type, symbol, differs, derivative_symbol
limit 1 by exchange, market_type, symbol
