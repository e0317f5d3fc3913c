{%- set lookback = 'toIntervalSecond(' ~ var('freshness_lookback_s') ~ ')' %}

-- How long after the insert of the trade that closes a bucket its feature row is there. That trade is the first one at or after the
-- bucket's end: the bucket's own last of a full one, else the next. Rows that were there before it were closed by a watermark: left out.
with arrivals as (
    select *
    from {{ ref('feature_arrivals_stored') }}
    where arrived_at > now64(3, 'UTC') - {{ lookback }}
),

closing_trades as (
    select
        exchange,
        market_type,
        symbol,
        timestamp,
        min(created_at) as inserted_at
    from {{ source('hot', 'trades') }}
    where timestamp >= (select minOrNull(bucket_ts_end) from arrivals)
    group by exchange, market_type, symbol, timestamp
),

waits as (
    select
        a.feature_vector as feature_vector,
        a.exchange as exchange,
        a.market_type as market_type,
        a.symbol as symbol,
        a.arrived_at as arrived_at,
        dateDiff('millisecond', t.inserted_at, a.arrived_at) / 1000 as wait_s
    from arrivals as a
    asof join closing_trades as t
        on a.exchange = t.exchange
        and a.market_type = t.market_type
        and a.symbol = t.symbol
        and a.bucket_ts_end <= t.timestamp
    where t.inserted_at > now64(3, 'UTC') - {{ lookback }}
)

select
    feature_vector,
    exchange,
    market_type,
    symbol,
    count() as row_count, -- noqa: RF04
    quantileExactInclusive(0.5)(wait_s) as p50_s, -- noqa: LT01
    quantileExactInclusive(0.99)(wait_s) as p99_s, -- noqa: LT01
    max(wait_s) as max_s,
    max(arrived_at) as last_arrived_at
from waits
where wait_s >= 0
group by grouping sets ((feature_vector, exchange, market_type, symbol), (feature_vector))
