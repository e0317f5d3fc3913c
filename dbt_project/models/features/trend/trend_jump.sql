{{ config(**bucket_grain()) }}
{%- set n = var('trend_decode_buckets') %}
{%- set penalty = var('trend_jump_penalty') %}
{%- set center_columns = {} %}
{%- for k in (1, 2, 3) %}
{%- for part in ('short', 'long', 'state') %}
{%- do center_columns.update({'center_%d_%s' % (k, part): '%s_%d' % (part, k)}) %}
{%- endfor %}
{%- endfor %}

-- Which centre the last buckets are at, where a change costs: the jump model's online state, from the past alone.
with buckets as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        is_new,
        trend_short,
        trend_long,
        groupArray((ifNull(trend_short, nan), ifNull(trend_long, nan))) over {{ past(n) }} as all_trends
    from {{ new_buckets(ref('trend_moves'), context=n) }}
),

new_ones as (
    select
        * except (all_trends, is_new),
        arrayFilter(t -> not (isNaN(t.1) or isNaN(t.2)), all_trends) as trends
    from buckets
    where is_new = 1
),

fitted as (
    {{ as_of(
        'new_ones',
        ref('trend_fits'),
        center_columns,
        var('trend_fit_max_age_s') * 1000,
        prefix='trend_fit',
    ) }}
),

-- A fit may have fewer than three.
centers as (
    select
        *,
        arrayFilter(
            c -> c.1 is not null,
            [
                {%- for k in (1, 2, 3) %}
                (short_{{ k }}, long_{{ k }}, state_{{ k }}){% if not loop.last %},{% endif %}
                {%- endfor %}
            ]
        ) as known_centers,
        arrayMap(c -> assumeNotNull(c.1), known_centers) as shorts,
        arrayMap(c -> assumeNotNull(c.2), known_centers) as longs,
        arrayMap(c -> assumeNotNull(c.3), known_centers) as states
    from fitted
),

-- The least cost of ending at each centre, bucket after bucket.
costs as (
    select
        *,
        arrayFold(
            (cost, trend) -> arrayMap(
                (here, short, long) -> least(here, arrayMin(cost) + {{ penalty }})
                + 0.5 * (pow(trend.1 - short, 2) + pow(trend.2 - long, 2)),
                cost,
                shorts,
                longs
            ),
            trends,
            arrayMap(x -> toFloat64(0), shorts)
        ) as cost,
        arraySort(cost) as cheapest
    from centers
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    -- where two centres are about as likely, none is said
    multiIf(
        empty(states) or trend_long is null, null,
        length(cost) > 1 and cheapest[2] - cheapest[1] < {{ var('trend_neutral_margin') }}, toInt8(0),
        toInt8(states[indexOf(cost, cheapest[1])])
    ) as trend_jump_state,
    if(empty(states), null, trend_fit_age_ms / 1000) as trend_fit_age_s
from costs
