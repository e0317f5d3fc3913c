{{ config(**bucket_grain()) }}
{%- set grids = [('100ms', 100, 1000), ('200ms', 200, 10000), ('1s', 1000, 60000), ('5s', 5000, 300000)] %}

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
            arrayConcat(
                {%- for _, step_ms, span_ms in grids %}
                range(0, {{ span_ms + 1 }}, {{ step_ms }}){{ ',' if not loop.last }}
                {%- endfor %}
            )
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
    {%- for grid, step_ms, span_ms in grids %}
    arraySort(
        sample -> -sample.1, groupArrayIf((toInt32(before_ms), mid), before_ms <= {{ span_ms }} and before_ms % {{ step_ms }} = 0)
    ).2 as mids_{{ grid }}{{ ',' if not loop.last }}
    {%- endfor %}
from known
group by exchange, market_type, symbol, bucket_id
