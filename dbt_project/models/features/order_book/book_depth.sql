{{ config(**bucket_grain()) }}
{%- set sides = ['bid', 'ask'] %}

-- How much rests where at the bucket's end.
with books as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        mid,
        {%- for side in sides %}
        {{ side }}_quantities,
        {{ side }}_distances_bps,
        length({{ side }}_prices) as {{ side }}_levels,
        arraySlice({{ side }}_prices, 1, 10) as {{ side }}_prices_10,
        {%- endfor %}
        least(bid_levels, ask_levels) as levels
    from {{ new_buckets(ref('closing_book')) }}
),

sums as (
    select
        {%- for side in sides %}
        {%- for n in [5, 10, 20] %}
        arraySlice({{ side }}_quantities, 1, {{ n }}) as {{ side }}_quantities_{{ n }},
        arraySum({{ side }}_quantities_{{ n }}) as {{ side }}_sum_{{ n }},
        -- a level counts by the inverse of its number
        arraySum((quantity, level) -> quantity / level, {{ side }}_quantities_{{ n }}, arrayEnumerate({{ side }}_quantities_{{ n }}))
            as {{ side }}_weighted_{{ n }},
        {%- endfor %}
        {%- for n in [5, 10] %}
        arraySum((quantity, bps) -> quantity * bps, {{ side }}_quantities_{{ n }}, arraySlice({{ side }}_distances_bps, 1, {{ n }}))
            as {{ side }}_moment_{{ n }},
        {%- endfor %}
        arraySum((quantity, bps) -> quantity / bps, {{ side }}_quantities_10, arraySlice({{ side }}_distances_bps, 1, 10))
            as {{ side }}_pull,
        -- in units of 1e-8, which are exact: gaps of one tick must be equal, so that the nearest of them is found
        arrayMap(
            (price, next_price) -> round(abs(price - next_price) * 1e8),
            arrayPopBack({{ side }}_prices_10),
            arrayPopFront({{ side }}_prices_10)
        ) as {{ side }}_gaps_e8,
        arrayMax({{ side }}_gaps_e8) as {{ side }}_widest_gap_e8,
        {%- endfor %}
        *
    from books
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    {%- for n in [5, 10, 20] %}
    if(
        levels >= {{ n }},
        (bid_weighted_{{ n }} - ask_weighted_{{ n }}) / (bid_weighted_{{ n }} + ask_weighted_{{ n }}),
        null
    ) as weighted_imbalance_{{ n }},
    {%- endfor %}
    {%- for side in sides %}
    {%- for n in [5, 10, 20] %}
    if({{ side }}_levels >= {{ n }}, {{ side }}_sum_{{ n }}, null) as {{ side }}_depth_{{ n }},
    {%- endfor %}
    {%- endfor %}
    -- A book that is not shown that far says nothing of it. What lies on the border is within: 1e-9 bps are rounding.
    {%- for side in sides %}
    {%- for x in [5, 10, 25] %}
    if(
        {{ side }}_distances_bps[-1] >= {{ x }} - 1e-9,
        arraySum((quantity, bps) -> if(bps <= {{ x }} + 1e-9, quantity, 0), {{ side }}_quantities, {{ side }}_distances_bps),
        null
    ) as {{ side }}_depth_{{ x }}bps,
    {%- endfor %}
    {%- endfor %}
    if(bid_levels > 0, bid_distances_bps[-1], null) as bid_reach_bps,
    if(ask_levels > 0, ask_distances_bps[-1], null) as ask_reach_bps,
    {%- for side in sides %}
    if({{ side }}_levels >= 10, {{ side }}_widest_gap_e8 / 1e8 / mid * 10000, null) as {{ side }}_fault_line_bps,
    if(
        {{ side }}_levels >= 10,
        {{ side }}_distances_bps[indexOf({{ side }}_gaps_e8, {{ side }}_widest_gap_e8)],
        null
    ) as {{ side }}_fault_line_distance_bps,
    {%- endfor %}
    -- (microprice - mid) / mid of the n levels' mean prices A and B and sums; written with distances, where nothing cancels
    {%- for n in [5, 10] %}
    if(
        levels >= {{ n }},
        (ask_moment_{{ n }} * bid_sum_{{ n }} / ask_sum_{{ n }} - bid_moment_{{ n }} * ask_sum_{{ n }} / bid_sum_{{ n }})
        / (bid_sum_{{ n }} + ask_sum_{{ n }}),
        null
    ) as microprice_{{ n }}_gap_bps,
    {%- endfor %}
    if(levels >= 10, log(bid_pull / ask_pull), null) as book_pressure
from sums
