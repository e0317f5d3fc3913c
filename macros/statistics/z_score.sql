{#
  Purpose: how many standard deviations (population) a value lies from the mean of some values. Values that are all equal are told
    by their extremes: a mean of equal floats can miss them by its last bit, and would make a z-score of the rounding.
  Arguments: value: a number. values: an array of numbers, in an order that does not depend on how the query runs.
    at_least: NULL with fewer values.
  Returns: Nullable(Float64); NULL where the value is, with too few values or without variance.
  Example: {{ z_score('spread', 'past_spreads') }} as spread_z
#}
{% macro z_score(value, values, at_least=10) -%}
if(
            length({{ values }}) >= {{ at_least }} and arrayMin({{ values }}) < arrayMax({{ values }}),
            ({{ value }} - arrayAvg({{ values }})) / sqrt(arrayReduce('varPopStable', {{ values }})),
            null
        )
{%- endmacro %}
