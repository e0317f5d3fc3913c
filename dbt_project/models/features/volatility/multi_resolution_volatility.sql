{{ config(**bucket_grain()) }}
{%- set n = var('rolling_buckets') %}
{%- set windows = [('1s', 1, '100ms'), ('10s', 10, '200ms'), ('60s', 60, '1s'), ('300s', 300, '5s')] %}

-- Volatility over stretches of the clock that end with the bucket, and how the shortest but one compares with its own past.
with returns as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        {%- for window, seconds, grid in windows %}
        -- one unknown mid and nothing is known of the window: empty
        if(has(mids_{{ grid }}, null), [], arrayMap(m -> assumeNotNull(m), mids_{{ grid }})) as known_{{ window }},
        arrayMap((m, m_before) -> log(m / m_before), arrayPopFront(known_{{ window }}), arrayPopBack(known_{{ window }})) as r_{{ window }},
        {%- endfor %}
        is_new
    from {{ new_buckets(ref('mid_samples'), context=n) }}
),

variances as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        {%- for window, seconds, grid in windows %}
        if(empty(r_{{ window }}), null, arraySum(r -> r * r, r_{{ window }})) as rv_{{ window }},
        if(
            empty(r_{{ window }}),
            null,
            pi() / 2 * length(r_{{ window }}) / (length(r_{{ window }}) - 1)
            * arraySum((r, r_before) -> abs(r) * abs(r_before), arrayPopFront(r_{{ window }}), arrayPopBack(r_{{ window }}))
        ) as bv_{{ window }},
        {%- endfor %}
        r_10s,
        is_new
    from returns
),

with_the_one_before as (
    select
        *,
        {{ before('rv_10s', 1) }} as rv_10s_before
    from variances
),

pasts as (
    select
        *,
        groupArray(sqrt(rv_10s / 10) * 10000) over {{ past(n) }} as volatilities,
        arrayAvg(volatilities) as mean_volatility,
        arraySort(groupArray(rv_10s_before) over {{ past(n) }}) as rvs_before,
        if(length(rvs_before) >= 10, rvs_before[toUInt32(ceil(0.75 * length(rvs_before)))], 0) as upper_quartile,
        -- many short buckets within one still moment must not lower what is usual
        if(upper_quartile > 0, greatest(upper_quartile, ifNull(rv_300s, 0) / 30), 0) as usual_rv
    from with_the_one_before
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    {%- for window, seconds, grid in windows %}
    sqrt(rv_{{ window }} / {{ seconds }}) * 10000 as realized_volatility_{{ window }},
    sqrt(bv_{{ window }} / {{ seconds }}) * 10000 as bipower_volatility_{{ window }},
    {%- endfor %}
    {%- for window in ['60s', '300s'] %}
    greatest(rv_{{ window }} - bv_{{ window }}, 0) / nullIf(rv_{{ window }}, 0) as jump_ratio_{{ window }},
    {%- endfor %}
    realized_volatility_10s / nullIf(realized_volatility_300s, 0) as volatility_ratio,
    if(
        length(volatilities) >= 10,
        sqrt(arraySum(v -> (v - mean_volatility) * (v - mean_volatility), volatilities) / (length(volatilities) - 1)),
        null
    ) as volatility_of_volatility,
    -- one jump is no change of volatility: a return counts at most {{ var('volatility_shift_sigmas') }} usual standard deviations
    if(
        rv_10s is not null and usual_rv > 0,
        arraySum(r -> least(r * r / usual_rv, pow({{ var('volatility_shift_sigmas') }}, 2) / length(r_10s)), r_10s),
        null
    ) as volatility_shift,
    volatility_shift > {{ var('volatility_shift_alarm') }} as volatility_shift_flag
from pasts
where is_new = 1
