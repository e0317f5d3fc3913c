{{ config(materialized='table', order_by='(exchange, market_type, symbol)', tags=['health']) }}
-- One row per instrument: its state, which the scorer obeys.
with last_changes as (
    select
        exchange,
        market_type,
        symbol,
        argMax(state, changed_at) as state,
        argMax(reasons, changed_at) as reasons,
        argMax(since, changed_at) as since
    from {{ ref('instrument_state_changes') }}
    group by exchange, market_type, symbol
)

select
    exchange,
    market_type,
    symbol,
    state,
    reasons,
    since,
    {{ health_now() }} as as_of
from last_changes
