{#
  Purpose: of a minute's mids on the lead-lag grid, those of its whole seconds.
  Arguments: mids: an array that starts on a whole second, a value each `lead_lag_step_ms`.
  Returns: Array(Float64).
  Example: {{ each_second('grid_mids') }}
#}
{% macro each_second(mids) -%}
{%- set steps = 1000 // var('lead_lag_step_ms') -%}
arrayFilter((m, place) -> (place - 1) % {{ steps }} = 0, {{ mids }}, arrayEnumerate({{ mids }}))
{%- endmacro %}
