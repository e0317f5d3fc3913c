{{ config(**bucket_grain()) }}
{%- set n = var('rolling_buckets') %}
{%- set memory = var('regime_buckets') %}

-- How volatile and how busy the instrument is, among what it has itself been before: ranks, never a quantile of the whole sample.
with flow as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        is_new,
        trade_count
    from {{ new_buckets(ref('trade_flow'), context=memory + n + 1) }}
),

moves as (
    select
        f.exchange as exchange,
        f.market_type as market_type,
        f.symbol as symbol,
        f.bucket_id as bucket_id,
        f.bucket_ts_start as bucket_ts_start,
        f.bucket_ts_end as bucket_ts_end,
        f.is_new as is_new,
        f.trade_count as trade_count,
        b.mid_close as mid_close
    from flow as f
    inner join {{ ref('top_of_book') }} as b
        on f.exchange = b.exchange
        and f.market_type = b.market_type
        and f.symbol = b.symbol
        and f.bucket_id = b.bucket_id
    where b.bucket_ts_start >= (select minOrNull(bucket_ts_start) from flow)
),

steps as (
    select
        *,
        log(mid_close / {{ before('mid_close', 1) }}) as mid_move,
        toFloat64(dateDiff('microsecond', {{ before('bucket_ts_end', 1) }}, bucket_ts_end)) / 1e6 as seconds
    from moves
),

states as (
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
        arraySum(groupArray(if(mid_move is null, null, seconds)) over {{ past(n) }}) as squares_seconds,
        count(seconds) over {{ past(n) }} as counted,
        sumIf(trade_count, seconds is not null) over {{ past(n) }} as trades,
        arraySum(groupArray(seconds) over {{ past(n) }}) as elapsed,
        if(points >= 10 and squares_seconds > 0, squares / squares_seconds, null) as variance_per_second,
        if(counted >= 10 and elapsed > 0, trades / elapsed, null) as intensity
    from steps
),

memories as (
    select
        *,
        -- this bucket's value is the last of each: not below itself
        groupArray(variance_per_second) over {{ past(memory + 1) }} as variances,
        groupArray(intensity) over {{ past(memory + 1) }} as intensities
    from states
),

ranks as (
    select
        *,
        if(
            variance_per_second is null or length(variances) <= 100,
            null,
            arrayCount(v -> v < assumeNotNull(variance_per_second), variances) / (length(variances) - 1)
        ) as realized_volatility_rank,
        if(
            intensity is null or length(intensities) <= 100,
            null,
            arrayCount(v -> v < assumeNotNull(intensity), intensities) / (length(intensities) - 1)
        ) as trade_intensity_rank
    from memories
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    realized_volatility_rank,
    trade_intensity_rank,
    if(
        realized_volatility_rank is null or trade_intensity_rank is null,
        null,
        toInt8(multiIf(
            least(realized_volatility_rank, trade_intensity_rank) > {{ var('regime_high_rank') }}, 1,
            greatest(realized_volatility_rank, trade_intensity_rank) < {{ var('regime_low_rank') }}, -1,
            0
        ))
    ) as volatility_regime
from ranks
where is_new = 1
