-- The as-of join, checked by another road: book states and bucket ends in one line of time, each end looks back at the last state.
-- One row per bucket whose mid is another one's, of a state that is too old, or missing.
with line as (
    select
        exchange,
        market_type,
        symbol,
        known_at as at,
        0 as is_end,
        timestamp,
        mid,
        0 as bucket_id,
        cast(null, 'Nullable(Float64)') as mid_close
    from {{ ref('book_asof') }}
    union all
    select
        exchange,
        market_type,
        symbol,
        bucket_ts_end as at,
        1 as is_end,
        bucket_ts_end as timestamp,
        null as mid,
        bucket_id,
        mid_close
    from {{ ref('top_of_book') }}
),

looked_back as (
    select
        exchange,
        market_type,
        symbol,
        at,
        is_end,
        bucket_id,
        mid_close,
        anyLastIf((timestamp, mid), is_end = 0) over (
            partition by exchange, market_type, symbol
            order by at, is_end
            rows between unbounded preceding and current row
        ) as last_state
    from line
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    at as bucket_ts_end,
    mid_close,
    if(last_state.1 >= at - toIntervalMillisecond({{ var('book_max_lag_ms') }}), last_state.2, null) as expected_mid
from looked_back
where is_end = 1 and not (mid_close is not distinct from expected_mid)
