{#
  Purpose: is this run a ranged rebuild of whole UTC days (vars `start` and `end`) rather than an append of what is new?
  Arguments: none. Returns: boolean (as a Jinja value).
  Example: {% if is_ranged() %} where timestamp >= {{ range_start() }} and timestamp < {{ range_end() }} {% endif %}
#}
{% macro is_ranged() %}
    {%- if (var('start') is none) != (var('end') is none) -%}
        {{ exceptions.raise_compiler_error("a ranged rebuild needs both vars: --vars '{start: 2024-08-08, end: 2024-08-08}'") }}
    {%- endif -%}
    {{ return(var('start') is not none) }}
{% endmacro %}

{#
  Purpose: the first microsecond of the rebuilt range: the start day's midnight, UTC.
  Example: where timestamp >= {{ range_start() }}
#}
{% macro range_start() %}toDateTime64('{{ (var("start") | string)[:10] }} 00:00:00', 6, 'UTC'){% endmacro %}

{#
  Purpose: the first microsecond after the rebuilt range: the midnight that ends the end day, UTC (the end day is in the range).
  Example: where timestamp < {{ range_end() }}
#}
{% macro range_end() %}(toDateTime64('{{ (var("end") | string)[:10] }} 00:00:00', 6, 'UTC') + toIntervalDay(1)){% endmacro %}
