-- One row per instrument: from when to when its minutes are told, and of what base asset it is.
select
    i.base_asset as base_asset,
    m.exchange as exchange,
    m.market_type as market_type,
    m.symbol as symbol,
    min(m.known_at) as first_minute,
    max(m.known_at) as last_minute
from {{ ref('venue_minutes') }} as m
inner join {{ ref('instruments') }} as i
    on m.exchange = i.exchange
    and m.market_type = i.market_type
    and m.symbol = i.symbol
group by base_asset, exchange, market_type, symbol
