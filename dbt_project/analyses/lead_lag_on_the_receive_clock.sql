-- Which market moves first by the RECORDER's clock, 10 ms steps: an analysis, no feature. The exchanges' own clocks differ by more
-- than that; one recorder's clock is the same for all files of a capture, however slow it runs. The var `receive_clock_ticks` names
-- another relation with exchange, market_type, symbol, received_at, sequence and mid.
with books as (
    select
        exchange,
        market_type,
        symbol,
        assumeNotNull(received_at) as received_at,
        last_update_id as sequence,
        toFloat64(best_bid_price + best_ask_price) / 2 as mid
    from {{ source('hot', 'orderbooks') }} final
    where
        received_at is not null
        and best_bid_price > 0
        and best_ask_price > 0
),

ticks as (
    select
        exchange,
        market_type,
        symbol,
        toDateTime64(received_at, 6, 'UTC') as timestamp,
        toDateTime64(received_at, 6, 'UTC') as known_at,
        mid
    from {{ var('receive_clock_ticks') if var('receive_clock_ticks') is string else 'books' }}
    order by sequence desc
    limit 1 by exchange, market_type, symbol, timestamp
),

lead_lags as (
    {{ market_lead_lag('ticks', 10, 20, var('book_max_lag_ms')) }}
)

select
    first_market,
    second_market,
    lag_ms,
    correlation,
    lags_ms,
    correlations,
    points_from,
    points_to
from lead_lags
order by first_market, second_market
