-- Up to the last published trade of its instrument, that is. Number, volume and a sum of hashes over all that counts are the same on
-- both sides, hour by hour, as far back as raw rows are kept. One row per instrument and hour where they are not: trades were loaded
-- for hours that were published already; rebuild those days (`--vars '{start: …, end: …}'`).
with bounds as (
    select
        exchange,
        market_type,
        symbol,
        max((last_trade_at, last_trade_seq, last_trade_id)) as last_trade
    from {{ ref('unified_buckets') }}
    group by exchange, market_type, symbol
),

raw_hours as (
    select
        t.exchange as exchange,
        t.market_type as market_type,
        t.symbol as symbol,
        toStartOfHour(t.timestamp) as hour,
        count() as trades,
        sum(t.quantity) as volume,
        sum(cityHash64(t.timestamp, t.trade_seq, t.price, t.quantity, t.side = 'buy')) as content
    from {{ ref('stg_trades') }} as t
    inner join bounds as b
        on t.exchange = b.exchange
        and t.market_type = b.market_type
        and t.symbol = b.symbol
    where
        t.is_on_time
        and (t.timestamp, t.trade_seq, if(t.trade_seq = 0, t.trade_id, '')) <= b.last_trade
    group by exchange, market_type, symbol, hour
),

bucket_hours as (
    select
        exchange,
        market_type,
        symbol,
        toStartOfHour(timestamp) as hour,
        count() as trades,
        sum(quantity) as volume,
        sum(cityHash64(timestamp, trade_seq, price, quantity, side = 'buy')) as content
    from {{ ref('bucket_trades') }}
    group by exchange, market_type, symbol, hour
),

both as (
    select
        exchange,
        market_type,
        symbol,
        hour,
        r.trades as raw_trades,
        b.trades as bucket_trades,
        r.volume as raw_volume,
        b.volume as bucket_volume,
        r.trades = b.trades and r.volume = b.volume and r.content = b.content as is_same,
        minIf(hour, r.trades is not null) over (partition by exchange, market_type, symbol) as first_raw_hour
    from raw_hours as r
    full outer join bucket_hours as b
        using (exchange, market_type, symbol, hour)
)

select
    exchange,
    market_type,
    symbol,
    hour,
    raw_trades,
    bucket_trades,
    raw_volume,
    bucket_volume
from both
where hour >= first_raw_hour and not ifNull(is_same, false)
