{{ config(**bucket_grain()) }}
{%- set n = var('realized_volatility_buckets') %}

-- What options say of volatility, against what the mid did: both annualised, in percentage points.
with moves as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        is_new,
        log(mid_close / {{ before('mid_close', 1) }}) as mid_move,
        if(mid_move is null, null, toFloat64(dateDiff('microsecond', {{ before('bucket_ts_end', 1) }}, bucket_ts_end)) / 1e6) as seconds
    from {{ new_buckets(ref('bucket_moves'), context=2 * n) }}
),

realized as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        is_new,
        count(mid_move) over {{ past(n) }} as points,
        arraySum(groupArray(mid_move * mid_move) over {{ past(n) }}) as squares,
        arraySum(groupArray(seconds) over {{ past(n) }}) as elapsed,
        if(points >= 10 and elapsed > 0, 100 * sqrt(squares / elapsed * 365 * 86400), null) as realized_volatility
    from moves
),

buckets as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_end
    from {{ new_buckets(ref('unified_buckets'), context=2 * n) }}
),

indices as (
    select *
    from {{ ref('slow_series_asof') }}
    where kind = 'volatility_indices'
),

implied as (
    {{ as_of(
        'buckets',
        'indices',
        {'reading': 'implied_volatility'},
        var('volatility_index_max_lag_s') * 1000,
        prefix='implied',
    ) }}
),

compared as (
    select
        r.exchange as exchange,
        r.market_type as market_type,
        r.symbol as symbol,
        r.bucket_id as bucket_id,
        r.bucket_ts_start as bucket_ts_start,
        r.bucket_ts_end as bucket_ts_end,
        r.is_new as is_new,
        r.realized_volatility as realized_volatility,
        i.implied_volatility as implied_volatility,
        i.implied_volatility - r.realized_volatility as difference
    from realized as r
    inner join implied as i
        on r.exchange = i.exchange
        and r.market_type = i.market_type
        and r.symbol = i.symbol
        and r.bucket_id = i.bucket_id
),

windows as (
    select
        *,
        groupArray(difference) over {{ past(n) }} as differences
    from compared
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    implied_volatility,
    realized_volatility,
    difference as implied_minus_realized,
    if(realized_volatility > 0, implied_volatility / realized_volatility, null) as implied_over_realized,
    {{ z_score('difference', 'differences') }} as implied_minus_realized_z
from windows
where is_new = 1
