-- What the features say traded is what traded: per instrument, up to its last published trade and as far back as raw rows are kept.
-- One row per instrument where a total differs by more than rounding.
with bounds as (
    select
        exchange,
        market_type,
        symbol,
        max((last_trade_at, last_trade_seq, last_trade_id)) as last_trade
    from {{ ref('unified_buckets') }}
    group by exchange, market_type, symbol
),

staging as (
    select
        t.exchange as exchange,
        t.market_type as market_type,
        t.symbol as symbol,
        min(t.timestamp) as first_at,
        count() as trades,
        toFloat64(sum(t.quantity)) as volume,
        toFloat64(sumIf(t.quantity, t.side = 'buy')) as buy_volume,
        toFloat64(sum(if(t.market_type = 'inverse', toDecimal128(t.quantity, 16), toDecimal128(t.price, 8) * t.quantity))) as worth
    from {{ ref('stg_trades') }} as t
    inner join bounds as b
        on t.exchange = b.exchange
        and t.market_type = b.market_type
        and t.symbol = b.symbol
    where
        t.is_on_time
        and (t.timestamp, t.trade_seq, if(t.trade_seq = 0, t.trade_id, '')) <= b.last_trade
    group by exchange, market_type, symbol
),

features as (
    select
        f.exchange as exchange,
        f.market_type as market_type,
        f.symbol as symbol,
        sum(f.trade_count) as trades,
        sum(f.volume) as volume,
        sum(f.buy_volume) as buy_volume,
        sum(f.notional) as notional
    from {{ ref('trade_flow') }} as f
    inner join staging as s
        on f.exchange = s.exchange
        and f.market_type = s.market_type
        and f.symbol = s.symbol
    where f.bucket_ts_start >= s.first_at
    group by exchange, market_type, symbol
)

select
    s.exchange as exchange,
    s.market_type as market_type,
    s.symbol as symbol,
    s.trades as staging_trades,
    f.trades as feature_trades,
    s.volume as staging_volume,
    f.volume as feature_volume,
    s.worth * ifNull(i.contract_value, 1) as staging_notional,
    f.notional as feature_notional
from staging as s
left join features as f
    on s.exchange = f.exchange
    and s.market_type = f.market_type
    and s.symbol = f.symbol
left join {{ ref('instruments') }} as i
    on s.exchange = i.exchange
    and s.market_type = i.market_type
    and s.symbol = i.symbol
where
    not ifNull(
        f.trades = s.trades
        and abs(f.volume - s.volume) <= 1e-9 * s.volume
        and abs(f.buy_volume - s.buy_volume) <= 1e-9 * s.volume
        and abs(feature_notional - staging_notional) <= 1e-9 * staging_notional,
        false
    )
