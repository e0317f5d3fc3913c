{#
  Purpose: the first n levels of a book side as arrays, from the raw JSON `[["price", "quantity"], …]`, best first. The one place
    where the JSON is read: the backfill and the materialized view share it, so they cannot differ.
  Arguments: column: the JSON column. element: 1 for prices, 2 for quantities. n: levels at most.
  Returns: Array(Float64); levels without a quantity are left out.
  Example: {{ parsed_levels('bids', 1) }} as bid_prices
#}
{% macro parsed_levels(column, element, n=20) -%}
arrayMap(
        level -> toFloat64(level[{{ element }}]),
        arraySlice(arrayFilter(level -> toFloat64(level[2]) > 0, JSONExtract({{ column }}, 'Array(Array(String))')), 1, {{ n }})
    )
{%- endmacro %}
