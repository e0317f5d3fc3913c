{{ config(**bucket_grain()) }}
{%- set window_s = var('funding_shock_window_s') %}

-- The funding rate as it was known at the bucket's end, and against what was known some minutes before.
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

-- both times at once: one as-of join
moments as (
    select
        *,
        arrayJoin([0, {{ window_s }}]) as seconds_before,
        bucket_ts_end - toIntervalSecond(seconds_before) as moment
    from buckets
),

rates as (
    select *
    from {{ ref('slow_series_asof') }}
    where kind = 'funding_rates'
),

known as (
    {{ as_of(
        'moments',
        'rates',
        {
            'reading': 'rate',
            'reading_step': 'step',
            'reading_z': 'z',
            'funding_time': 'funding_time',
            'next_funding_time': 'next_funding_time',
        },
        var('funding_max_lag_s') * 1000,
        prefix='funding',
        at='moment',
    ) }}
),

books as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        tob_imbalance_close
    from {{ ref('top_of_book') }}
    where bucket_ts_start >= (select minOrNull(bucket_ts_start) from buckets)
)

select
    n.exchange as exchange,
    n.market_type as market_type,
    n.symbol as symbol,
    n.bucket_id as bucket_id,
    n.bucket_ts_start as bucket_ts_start,
    n.bucket_ts_end as bucket_ts_end,
    n.rate as funding_rate,
    n.funding_age_ms / 1000 as funding_age_s,
    n.step as funding_rate_change,
    n.z as funding_rate_z,
    abs(n.rate - b.rate) as funding_shock_magnitude,
    -- rates are multiples of 1e-8: half of one keeps a change of exactly the threshold from being lost in the last bit
    if(
        funding_shock_magnitude is null,
        null,
        toInt8(if(funding_shock_magnitude >= {{ var('funding_shock_threshold') }} - 5e-9, sign(n.rate - b.rate), 0))
    ) as funding_shock_sign,
    funding_shock_sign * t.tob_imbalance_close as funding_shock_imbalance,
    toFloat64(dateDiff(
        'microsecond',
        n.bucket_ts_end,
        multiIf(
            n.funding_time > n.bucket_ts_end, n.funding_time,
            n.next_funding_time > n.bucket_ts_end, n.next_funding_time,
            null
        )
    )) / 60e6 as minutes_to_funding
from known as n
inner join known as b
    on n.exchange = b.exchange
    and n.market_type = b.market_type
    and n.symbol = b.symbol
    and n.bucket_id = b.bucket_id
inner join books as t
    on n.exchange = t.exchange
    and n.market_type = t.market_type
    and n.symbol = t.symbol
    and n.bucket_id = t.bucket_id
where n.seconds_before = 0 and b.seconds_before = {{ window_s }}
