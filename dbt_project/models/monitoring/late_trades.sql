-- One row per instrument and hour of event time: trades that came too late for the clock, which never uses them.
select
    exchange,
    market_type,
    symbol,
    toStartOfHour(timestamp) as hour,
    count() as trades,
    countIf(not is_on_time) as late_trades,
    late_trades / trades as late_share,
    maxIf(dateDiff('millisecond', timestamp, known_at), not is_on_time) as worst_delay_ms
from {{ ref('stg_trades') }}
group by exchange, market_type, symbol, hour
