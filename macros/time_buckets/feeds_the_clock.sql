{#
  Purpose: the condition on a raw table's rows that staging sets: sources that feed the clock. For what reads a raw table itself (a
    materialized view).
  Arguments: kind: the raw table's kind in `source_availability`.
  Example: where {{ feeds_the_clock('trades') }}
#}
{% macro feeds_the_clock(kind) -%}
data_source in (
            select data_source
            from {{ ref('source_availability') }}
            where kind = '{{ kind }}' and feeds_clock = 1
        )
{%- endmacro %}
