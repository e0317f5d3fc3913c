{%- set context = var('trend_long_buckets') + var('trend_memory_buckets') %}
{{ config(**bucket_grain()) }}

-- How straight the mid went, over a few buckets and over more, and what rules with hysteresis make of it.
with moves as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        is_new,
        log(mid_close / {{ before('mid_close', 1) }}) as log_step
    from {{ new_buckets(ref('bucket_moves'), context=context) }}
),

steps as (
    select
        *,
        groupArray(ifNull(log_step, nan)) over {{ past(var('trend_long_buckets')) }} as long_steps,
        arraySlice(long_steps, -{{ var('trend_short_buckets') }}) as short_steps
    from moves
),

straightness as (
    select
        *,
        -- one unknown step and the stretch is unknown; where nothing moved there is no trend
        multiIf(
            length(short_steps) < {{ var('trend_short_buckets') }} or arrayExists(s -> isNaN(s), short_steps), null,
            arrayAll(s -> s = 0, short_steps), 0,
            arraySum(short_steps) / sqrt(arraySum(s -> s * s, short_steps))
        ) as trend_short,
        multiIf(
            length(long_steps) < {{ var('trend_long_buckets') }} or arrayExists(s -> isNaN(s), long_steps), null,
            arrayAll(s -> s = 0, long_steps), 0,
            arraySum(long_steps) / sqrt(arraySum(s -> s * s, long_steps))
        ) as trend_long
    from steps
),

-- What a bucket tells: up, down or flat, or nothing (2), between the two thresholds.
events as (
    select
        * except (long_steps, short_steps),
        {{ before('trend_long', 1) }} as trend_before,
        multiIf(
            trend_long is null, 0,
            trend_long >= {{ var('trend_enter') }}, 1,
            trend_long <= -{{ var('trend_enter') }}, -1,
            abs(trend_long) <= {{ var('trend_exit') }}, 0,
            trend_before is null or sign(trend_before) != sign(trend_long), 0,
            2
        ) as event
    from straightness
),

memories as (
    select
        *,
        groupArray(toInt8(event)) over {{ past(var('trend_memory_buckets')) }} as told
    from events
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    trend_short,
    trend_long,
    -- the last one that told something; long ago is as good as never: flat
    if(trend_long is null, null, arrayLast(e -> e != 2, told)) as trend_rule_state
from memories
where is_new = 1
