{{ config(**bucket_grain()) }}

-- Open interest as it was known at the bucket's end. A feed that stands still is a stopped one: no value, never an old one.
with buckets as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end
    from {{ new_buckets(ref('unified_buckets')) }}
),

interests as (
    select *
    from {{ ref('slow_series_asof') }}
    where kind = 'open_interests'
),

known as (
    {{ as_of(
        'buckets',
        'interests',
        {'reading': 'interest', 'reading_step': 'step', 'reading_step_z': 'step_z', 'reading_rank': 'rank', 'unchanged_since': 'unchanged_since'},
        var('open_interest_max_lag_s') * 1000,
        prefix='interest',
    ) }}
),

usable as (
    select
        *,
        ifNull(unchanged_since >= bucket_ts_end - toIntervalSecond({{ var('open_interest_max_unchanged_s') }}), false) as is_alive
    from known
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    if(is_alive, interest, null) as open_interest,
    if(is_alive, interest_age_ms / 1000, null) as open_interest_age_s,
    if(is_alive, step, null) as open_interest_log_change,
    if(is_alive, step_z, null) as open_interest_change_z,
    if(is_alive, rank, null) as open_interest_rank
from usable
