{{ config(**bucket_grain()) }}
{%- set n = var('trend_fit_buckets') %}

-- A jump model an hour: in the first bucket that ends in it, from that bucket and those before.
with stretches as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        is_new,
        toStartOfHour(bucket_ts_end) as hour,
        {{ before('toStartOfHour(bucket_ts_end)', 1) }} as hour_before,
        arrayFilter(
            trend -> not (isNaN(trend.1) or isNaN(trend.2)),
            groupArray((ifNull(trend_short, nan), ifNull(trend_long, nan))) over {{ past(n) }}
        ) as trends
    from {{ new_buckets(ref('trend_moves'), context=n) }}
),

fits as (
    select
        * except (trends, hour, hour_before, is_new),
        toUInt32(length(trends)) as fitted_buckets,
        mp_trend_states(
            trends.1,
            trends.2,
            toFloat64({{ var('trend_jump_penalty') }}),
            toFloat64({{ var('trend_neutral') }})
        ) as fit
    from stretches
    where
        is_new = 1
        and (hour_before is null or hour_before < hour)
        and length(trends) >= {{ var('trend_fit_min_buckets') }}
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    bucket_ts_end as timestamp,
    bucket_ts_end as known_at,
    fitted_buckets,
    -- columns, not arrays: an as-of value can be NULL
    {%- for k in (1, 2, 3) %}
    {%- for part in ('short', 'long', 'state') %}
    if(length(tupleElement(fit, '{{ part }}')) >= {{ k }}, tupleElement(fit, '{{ part }}')[{{ k }}], null) as center_{{ k }}_{{ part }},
    {%- endfor %}
    {%- endfor %}
    tupleElement(fit, 'error') as udf_error
from fits
