{{ config(tags=['health']) }}
-- One row per instrument and hour of the last days: how long buckets were, what cut them, and whether their ids are sound.
with as_of as (
    select
        {{ health_now() }} as judged_at,
        (select max(bucket_ts_start) from {{ ref('unified_buckets') }}) as newest_start
),

-- From a midnight on: there every anchor starts anew, so that no bucket's predecessor is missing.
numbered as (
    select
        exchange,
        market_type,
        symbol,
        anchor_ts,
        bucket_id,
        sequence,
        bucket_ts_start,
        bucket_ts_end,
        cut_trigger,
        trade_count,
        duration_s,
        {{ before('bucket_id', 1) }} as last_id,
        {{ before('anchor_ts', 1) }} as last_anchor,
        {{ before('sequence', 1) }} as last_sequence,
        {{ before('bucket_ts_end', 1) }} as last_end
    from {{ ref('unified_buckets') }}
    where
        bucket_ts_start >= (
            select toStartOfDay(least(newest_start, toDateTime64(judged_at, 6, 'UTC'))) - toIntervalDay({{ var('health_days') }}) from as_of
        )
        and bucket_ts_end <= (select judged_at from as_of)
),

checked as (
    select
        *,
        ifNull(bucket_id = last_id, false) as is_duplicate,
        not is_duplicate and sequence != if(ifNull(anchor_ts = last_anchor, false), assumeNotNull(last_sequence) + 1, 0) as is_after_gap,
        bucket_id != toUInt64(toUnixTimestamp(anchor_ts)) * 100000 + sequence
        or ifNull(not is_duplicate and bucket_ts_start < last_end, false) as is_out_of_order
    from numbered
)

select
    exchange,
    market_type,
    symbol,
    toStartOfHour(bucket_ts_start) as hour,
    count() as buckets,
    quantileExactInclusive(0.5)(duration_s) as duration_p50_s, -- noqa: LT01
    quantileExactInclusive(0.9)(duration_s) as duration_p90_s, -- noqa: LT01
    quantileExactInclusive(0.99)(duration_s) as duration_p99_s, -- noqa: LT01
    countIf(duration_s > 60) / buckets as share_over_60s,
    countIf(duration_s > 90) / buckets as share_over_90s,
    countIf(duration_s > 90) as buckets_over_90s,
    quantileExactInclusive(0.5)(trade_count) as trades_p50, -- noqa: LT01
    countIf(cut_trigger = 'time') as time_cuts,
    countIf(cut_trigger = 'anchor') as anchor_cuts,
    buckets - time_cuts - anchor_cuts as full_cuts,
    max(bucket_ts_end) as last_bucket_end,
    dateDiff('millisecond', last_bucket_end, (select judged_at from as_of)) / 1000 as lag_s,
    countIf(is_duplicate) as duplicate_ids,
    countIf(is_after_gap) as id_gaps,
    countIf(is_out_of_order) as out_of_order,
    countIf(is_duplicate or is_after_gap or is_out_of_order) as id_anomalies
from checked
group by exchange, market_type, symbol, hour
