{#
  Purpose: a column's values lie between two bounds. NULL passes; NaN is in no range and fails.
  Arguments: min_value, max_value: numbers or SQL expressions over the same row, in the column's unit; at least one of them.
    inclusive: may a value equal a bound? (default: yes)
  Fails with: the rows outside.
  Example:
    - accepted_range:
        arguments: {min_value: -1, max_value: 1}
#}
{% test accepted_range(model, column_name, min_value=none, max_value=none, inclusive=true) %}
{%- if min_value is none and max_value is none -%}
    {{ exceptions.raise_compiler_error("accepted_range: give min_value, max_value or both") }}
{%- endif -%}
{%- set equal = '=' if inclusive else '' %}
select *
from {{ model }}
where
    {{ column_name }} is not null
    and not (
        {{ column_name ~ ' >' ~ equal ~ ' ' ~ min_value if min_value is not none }}
        {{- ' and ' if min_value is not none and max_value is not none -}}
        {{ column_name ~ ' <' ~ equal ~ ' ' ~ max_value if max_value is not none }}
    )
{% endtest %}
