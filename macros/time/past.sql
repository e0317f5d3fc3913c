{#
  Purpose: the window of the last n buckets of the instrument, this one included: it cannot see ahead.
  Arguments: n: number of buckets.
  Example: sum(volume) over {{ past(50) }}
#}
{% macro past(n) -%}
(partition by exchange, market_type, symbol order by bucket_id rows between {{ n - 1 }} preceding and current row)
{%- endmacro %}

{#
  Purpose: a column's value k buckets before, NULL where there are fewer (lagInFrame alone gives the type's zero there).
  Arguments: column: a column. k: buckets back.
  Example: {{ before('mid_close', 1) }}
#}
{% macro before(column, k) -%}
lagInFrame(toNullable({{ column }}), {{ k }}, null) over {{ past(k + 1) }}
{%- endmacro %}
