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
        {%- for span in ('short', 'long') %}
        -- one unknown step and the stretch is unknown; where nothing moved there is no trend
        multiIf(
            length({{ span }}_steps) < {{ var('trend_' ~ span ~ '_buckets') }} or arrayExists(s -> isNaN(s), {{ span }}_steps), null,
            arrayAll(s -> s = 0, {{ span }}_steps), 0,
            arraySum({{ span }}_steps) / sqrt(arraySum(s -> s * s, {{ span }}_steps))
        ) as trend_{{ span }}{%- if not loop.last %},{% endif %}
        {%- endfor %}
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
