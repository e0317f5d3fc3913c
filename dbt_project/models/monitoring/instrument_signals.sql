{{ config(tags=['health']) }}
-- One row per instrument: the state that its findings ask for now, without memory.
with instruments as (
    select
        cast(exchange as String) as exchange,
        cast(market_type as String) as market_type,
        cast(symbol as String) as symbol
    from {{ ref('bucket_health') }}
    group by exchange, market_type, symbol
),

asked as (
    select
        f.exchange as exchange,
        f.market_type as market_type,
        f.symbol as symbol,
        f.metric as metric,
        toUInt8(indexOf(['degraded', 'stale', 'halted'], s.state)) as asked_rank
    from {{ ref('health_findings') }} as f
    inner join {{ ref('health_states') }} as s
        on f.metric = s.metric
        and f.severity = s.severity
),

worst as (
    select
        exchange,
        market_type,
        symbol,
        max(asked_rank) as signal_rank,
        arraySort(groupUniqArray(metric)) as reasons
    from asked
    group by exchange, market_type, symbol
)

select
    i.exchange as exchange,
    i.market_type as market_type,
    i.symbol as symbol,
    ifNull(w.signal_rank, 0) as signal_rank,
    w.reasons as reasons,
    {{ health_now() }} as as_of
from instruments as i
left join worst as w
    on i.exchange = w.exchange
    and i.market_type = w.market_type
    and i.symbol = w.symbol
