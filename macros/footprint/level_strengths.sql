{#
  Purpose: how far each cluster lies from a price.
  Arguments: prices: SQL, an array of prices. mid: SQL, a price.
  Returns: SQL, Array(Float64), basis points, positive above.
  Example: {{ level_distances('cluster_prices', 'mid_close') }}
#}
{% macro level_distances(prices, mid) -%}
arrayMap(price -> (price / {{ mid }} - 1) * 10000, {{ prices }})
{%- endmacro %}

{#
  Purpose: how much each cluster weighs at a price and time: its share of its window's volume, a third for each of the three windows,
    faded by exp(-distance / footprint_price_sens_bps) and by half for each footprint_half_life_s since it last traded.
  Arguments: distances: SQL, `level_distances`. shares, last_seen: SQL, arrays of footprint_clusters. at: SQL, a DateTime64(6).
  Returns: SQL, Array(Float64), one strength a cluster.
  Example: {{ level_strengths('distances', 'cluster_shares', 'cluster_last_seen', 'bucket_ts_end') }}
#}
{% macro level_strengths(distances, shares, last_seen, at) -%}
arrayMap(
            (distance, share, seen) -> share / 3
            * exp(-abs(distance) / {{ var('footprint_price_sens_bps') }})
            * exp2(-dateDiff('microsecond', seen, {{ at }}) / 1e6 / {{ var('footprint_half_life_s') }}),
            {{ distances }}, {{ shares }}, {{ last_seen }}
        )
{%- endmacro %}

{#
  Purpose: the features that the levels around a price give: one text for the bucket's end and for the online form. A level within a
    millionth of a basis point is at the price, on neither side: the last bit of a quotient must not decide.
  Arguments: distances, strengths: SQL, of the macros above. signs: SQL, array of footprint_clusters. known: SQL, false where nothing can be said.
  Returns: SQL, columns of a SELECT.
  Example: {{ level_features('distances', 'strengths', 'cluster_signs', 'is_known') }}
#}
{% macro level_features(distances, strengths, signs, known) -%}
if({{ known }}, arraySum((w, d) -> if(d > 1e-6, w, 0), {{ strengths }}, {{ distances }}), null) as resistance_above,
    if({{ known }}, arraySum((w, d) -> if(d < -1e-6, w, 0), {{ strengths }}, {{ distances }}), null) as support_below,
    if(
        {{ known }} and arrayExists(d -> d > 1e-6, {{ distances }}),
        arrayMin(arrayFilter(d -> d > 1e-6, {{ distances }})),
        null
    ) as nearest_resistance_distance_bps,
    if(
        {{ known }} and arrayExists(d -> d < -1e-6, {{ distances }}),
        -arrayMax(arrayFilter(d -> d < -1e-6, {{ distances }})),
        null
    ) as nearest_support_distance_bps,
    log((resistance_above + 1e-6) / (support_below + 1e-6)) as resistance_support_log_ratio,
    if({{ known }} and notEmpty({{ strengths }}), arraySum((w, s) -> w * s, {{ strengths }}, {{ signs }}) / arraySum({{ strengths }}), null)
        as level_delta_balance
{%- endmacro %}
