-- What the features say traded is what traded, per instrument. That the trades are those of staging is another test
-- (every_on_time_trade_is_in_exactly_one_bucket). One row per instrument where a total differs by more than rounding.
with traded as (
    select
        exchange,
        market_type,
        symbol,
        count() as trades,
        countIf(side = 'buy') as buys,
        toFloat64(sum(quantity)) as volume,
        toFloat64(sumIf(quantity, side = 'buy')) as buy_volume,
        toFloat64(sum(toDecimal128(price, 8) * quantity)) as price_times_quantity
    from {{ ref('bucket_trades') }}
    group by exchange, market_type, symbol
),

features as (
    select
        f.exchange as exchange,
        f.market_type as market_type,
        f.symbol as symbol,
        sum(f.trade_count) as trades,
        sum(f.buy_count) as buys,
        sum(f.volume) as volume,
        sum(f.buy_volume) as buy_volume,
        sum(f.vwap * f.volume) as price_times_quantity,
        sum(f.notional) as notional
    from {{ ref('trade_flow') }} as f
    group by f.exchange, f.market_type, f.symbol
)

select
    exchange,
    market_type,
    symbol,
    t.trades as trades,
    f.trades as feature_trades,
    t.volume as volume,
    f.volume as feature_volume,
    if(market_type = 'inverse', t.volume, t.price_times_quantity) * ifNull(toFloat64(i.contract_value), 1) as notional,
    f.notional as feature_notional
from traded as t
full outer join features as f
    using (exchange, market_type, symbol)
left join {{ ref('instruments') }} as i
    using (exchange, market_type, symbol)
where
    not ifNull(
        t.trades = f.trades
        and t.buys = f.buys
        and abs(f.volume - t.volume) <= 1e-9 * t.volume
        and abs(f.buy_volume - t.buy_volume) <= 1e-9 * t.volume
        and abs(f.price_times_quantity - t.price_times_quantity) <= 1e-9 * t.price_times_quantity
        and abs(feature_notional - notional) <= 1e-9 * notional,
        false
    )
