{#
  Purpose: a column has at least two different values: a feed or a computation that is stuck shows here. NULL does not count as a value.
  Arguments: group_by_columns: in each combination of these (default: in the whole model).
  Fails with: each group where all values are one. A group without any value passes.
  Example:
    - not_constant:
        arguments: {group_by_columns: [exchange, market_type, symbol]}
#}
{% test not_constant(model, column_name, group_by_columns=[]) %}
select
    {{ group_by_columns | join(', ') ~ ',' if group_by_columns }}
    any({{ column_name }}) as only_value
from {{ model }}
{{ 'group by ' ~ group_by_columns | join(', ') if group_by_columns }}
having uniqExact({{ column_name }}) = 1
{% endtest %}
