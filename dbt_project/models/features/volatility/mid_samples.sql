{{ config(**bucket_grain()) }}

-- The mid as it was known at fixed times before the bucket's end: what volatility by the clock, not by the bucket, is made of.
with samples as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        before_ms,
        bucket_ts_end - toIntervalMillisecond(before_ms) as sampled_at
    from {{ new_buckets(ref('unified_buckets')) }}
    array join
        arrayDistinct(
            arrayConcat(range(0, 1001, 100), range(0, 10001, 200), range(0, 60001, 1000), range(0, 300001, 5000))
        ) as before_ms
),

known as (
    {{ as_of('samples', ref('book_asof'), {'mid': 'mid'}, var('book_max_lag_ms'), prefix='book', at='sampled_at') }}
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    any(bucket_ts_start) as bucket_ts_start,
    any(bucket_ts_end) as bucket_ts_end,
    arraySort(sample -> -sample.1, groupArrayIf((toInt32(before_ms), mid), before_ms <= 1000 and before_ms % 100 = 0)).2 as mids_100ms,
    arraySort(sample -> -sample.1, groupArrayIf((toInt32(before_ms), mid), before_ms <= 10000 and before_ms % 200 = 0)).2 as mids_200ms,
    arraySort(sample -> -sample.1, groupArrayIf((toInt32(before_ms), mid), before_ms <= 60000 and before_ms % 1000 = 0)).2 as mids_1s,
    arraySort(sample -> -sample.1, groupArrayIf((toInt32(before_ms), mid), before_ms <= 300000 and before_ms % 5000 = 0)).2 as mids_5s
from known
group by exchange, market_type, symbol, bucket_id
