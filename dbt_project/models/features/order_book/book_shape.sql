{{ config(**bucket_grain()) }}
{%- set sides = ['bid', 'ask'] %}

-- The form of what rests at the bucket's end: cumulative depth as a curve over distance from mid, and resting size as a distribution.
with books as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        {%- for side in sides %}
        {{ side }}_quantities,
        {{ side }}_distances_bps,
        length({{ side }}_quantities) as {{ side }}_levels,
        arrayCumSum({{ side }}_quantities) as {{ side }}_depths,
        {{ side }}_depths[-1] as {{ side }}_total,
        arraySum((quantity, bps) -> quantity * bps, {{ side }}_quantities, {{ side }}_distances_bps)
            as {{ side }}_moment,
        {%- endfor %}
        mid
    from {{ new_buckets(ref('closing_book')) }}
),

-- distance (x) and its square (z), both less their means
centred as (
    select
        {%- for side in sides %}
        arrayAvg({{ side }}_distances_bps) as {{ side }}_mean_bps,
        arrayMap(bps -> bps - {{ side }}_mean_bps, {{ side }}_distances_bps) as {{ side }}_x,
        arrayAvg(x -> x * x, {{ side }}_x) as {{ side }}_mean_square,
        arrayMap(x -> x * x - {{ side }}_mean_square, {{ side }}_x) as {{ side }}_z,
        arrayAvg({{ side }}_depths) as {{ side }}_mean_depth,
        arrayMap(depth -> depth - {{ side }}_mean_depth, {{ side }}_depths) as {{ side }}_y,
        {%- endfor %}
        *
    from books
),

products as (
    select
        {%- for side in sides %}
        arraySum(x -> x * x, {{ side }}_x) as {{ side }}_xx,
        arraySum((x, z) -> x * z, {{ side }}_x, {{ side }}_z) as {{ side }}_xz,
        arraySum(z -> z * z, {{ side }}_z) as {{ side }}_zz,
        arraySum((x, y) -> x * y, {{ side }}_x, {{ side }}_y) as {{ side }}_xy,
        arraySum((z, y) -> z * y, {{ side }}_z, {{ side }}_y) as {{ side }}_zy,
        -- twice the area under the curve, by trapezoids
        arraySum(
            (bps, next_bps, depth, next_depth) -> (next_bps - bps) * (depth + next_depth - 2 * {{ side }}_quantities[1]),
            arrayPopBack({{ side }}_distances_bps),
            arrayPopFront({{ side }}_distances_bps),
            arrayPopBack({{ side }}_depths),
            arrayPopFront({{ side }}_depths)
        ) as {{ side }}_area,
        {%- endfor %}
        *
    from centred
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    {%- for side in sides %}
    if({{ side }}_levels >= 5, {{ side }}_xy / {{ side }}_xx, null) as {{ side }}_depth_slope,
    if(
        {{ side }}_levels >= 5,
        ({{ side }}_zy * {{ side }}_xx - {{ side }}_xy * {{ side }}_xz) / ({{ side }}_xx * {{ side }}_zz - {{ side }}_xz * {{ side }}_xz),
        null
    ) as {{ side }}_depth_curvature,
    if(
        {{ side }}_levels >= 5,
        1 - {{ side }}_area
        / ({{ side }}_distances_bps[-1] - {{ side }}_distances_bps[1])
        / ({{ side }}_total - {{ side }}_quantities[1]),
        null
    ) as {{ side }}_depth_convexity,
    -- the rounding of a sum must not move a quantile by a level
    if(
        {{ side }}_levels >= 5,
        {{ side }}_distances_bps[arrayFirstIndex(depth -> depth >= 0.9 * (1 - 1e-12) * {{ side }}_total, {{ side }}_depths)]
        - {{ side }}_distances_bps[arrayFirstIndex(depth -> depth >= 0.1 * (1 - 1e-12) * {{ side }}_total, {{ side }}_depths)],
        null
    ) as {{ side }}_tail_width_bps,
    if(
        {{ side }}_levels >= 5,
        -arraySum(quantity -> quantity / {{ side }}_total * log(quantity / {{ side }}_total), {{ side }}_quantities)
        / log({{ side }}_levels),
        null
    ) as {{ side }}_size_entropy,
    if({{ side }}_levels >= 5, {{ side }}_moment / {{ side }}_total, null) as {{ side }}_gravity_bps,
    {%- endfor %}
    if(bid_levels >= 5 and ask_levels >= 5, (ask_moment - bid_moment) / (bid_total + ask_total), null) as book_gravity_bps
from products
