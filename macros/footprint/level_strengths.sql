{#
  Purpose: how much each cluster weighs at a price and time: its share of its window's volume, a third for each of the three windows,
    faded by exp(-distance / footprint_price_sens_bps) and by half for each footprint_half_life_s since it last traded.
  Arguments: prices, shares, last_seen: SQL, arrays of footprint_clusters. mid: SQL, a price. at: SQL, a DateTime64(6).
  Returns: SQL, Array(Float64), one strength a cluster.
  Example: {{ level_strengths('cluster_prices', 'cluster_shares', 'cluster_last_seen', 'mid_close', 'bucket_ts_end') }}
#}
{% macro level_strengths(prices, shares, last_seen, mid, at) -%}
arrayMap(
            (price, share, seen) -> share / 3
            * exp(-abs(price / {{ mid }} - 1) * 10000 / {{ var('footprint_price_sens_bps') }})
            * exp2(-dateDiff('microsecond', seen, {{ at }}) / 1e6 / {{ var('footprint_half_life_s') }}),
            {{ prices }}, {{ shares }}, {{ last_seen }}
        )
{%- endmacro %}

{#
  Purpose: the features that the levels around a price give: one text for the bucket's end and for the online form.
  Arguments: prices, signs, strengths: SQL, arrays of one length. mid: SQL, a price. known: SQL, false where nothing can be said.
  Returns: SQL, columns of a SELECT.
  Example: {{ level_features('cluster_prices', 'cluster_signs', 'strengths', 'mid_close', 'is_known') }}
#}
{% macro level_features(prices, signs, strengths, mid, known) -%}
if({{ known }}, arraySum((w, p) -> if(p > {{ mid }}, w, 0), {{ strengths }}, {{ prices }}), null) as resistance_above,
    if({{ known }}, arraySum((w, p) -> if(p < {{ mid }}, w, 0), {{ strengths }}, {{ prices }}), null) as support_below,
    if(
        {{ known }} and arrayExists(p -> p > {{ mid }}, {{ prices }}),
        (arrayMin(arrayFilter(p -> p > {{ mid }}, {{ prices }})) / {{ mid }} - 1) * 10000,
        null
    ) as nearest_resistance_distance_bps,
    if(
        {{ known }} and arrayExists(p -> p < {{ mid }}, {{ prices }}),
        (1 - arrayMax(arrayFilter(p -> p < {{ mid }}, {{ prices }})) / {{ mid }}) * 10000,
        null
    ) as nearest_support_distance_bps,
    log((resistance_above + 1e-6) / (support_below + 1e-6)) as resistance_support_log_ratio,
    if({{ known }} and arraySum({{ strengths }}) > 0, arraySum((w, s) -> w * s, {{ strengths }}, {{ signs }}) / arraySum({{ strengths }}), null)
        as level_delta_balance
{%- endmacro %}
