{{ config(materialized='view') }}

-- One row per instrument and minute that is over and in which a book state became known. At its end: the newest of them, if it is two-sided
-- and not too old.
with minutes as (
    select
        m.exchange as exchange,
        m.market_type as market_type,
        m.symbol as symbol,
        m.minute_start as minute_start,
        toDateTime64(m.minute_start, 6, 'UTC') + toIntervalMinute(1) as known_at,
        toUInt32(m.state_count) as state_count,
        toUInt32(m.two_sided_count) as two_sided_count,
        m.mid_sum_2 as mid_sum_2,
        m.spread_bps_sum as spread_bps_sum,
        m.tob_imbalance_sum as tob_imbalance_sum,
        m.newest_state as newest
    from {{ ref('book_minutes_stored') }} as m final
    inner join {{ ref('minute_feeds') }} as f
        on m.exchange = f.exchange
        and m.market_type = f.market_type
        and m.symbol = f.symbol
    where f.book_passed >= known_at
),

closed as (
    select
        *,
        newest.1 >= known_at - toIntervalMillisecond({{ var('book_max_lag_ms') }}) and newest.3 as is_usable
    from minutes
)

select
    exchange,
    market_type,
    symbol,
    minute_start,
    known_at,
    state_count,
    two_sided_count,
    if(is_usable, newest.4, null) as mid_close,
    if(is_usable, newest.5, null) as spread_bps_close,
    if(is_usable, newest.6, null) as tob_imbalance_close,
    if(is_usable, newest.7, null) as microprice_close,
    if(is_usable, toFloat64(dateDiff('microsecond', newest.1, known_at)) / 1000, null) as age_ms,
    toFloat64(mid_sum_2) / 2 / nullIf(two_sided_count, 0) as mid_mean,
    toFloat64(spread_bps_sum) / nullIf(two_sided_count, 0) as spread_bps_mean,
    toFloat64(tob_imbalance_sum) / nullIf(two_sided_count, 0) as tob_imbalance_mean
from closed
