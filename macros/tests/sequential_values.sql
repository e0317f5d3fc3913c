{#
  Purpose: in its own order, each value is exactly `interval` more than the one before: no gap, no double.
  Arguments: column_name: a number. interval: the step, in the column's unit (default 1).
    group_by_columns: a sequence of its own for each combination of these (default: one for the whole model).
  Fails with: the rows that do not follow the one before. Where a sequence starts is not tested. NULL fails.
  Example:
    - sequential_values:
        arguments: {column_name: sequence, group_by_columns: [exchange, market_type, symbol, anchor_ts]}
#}
{% test sequential_values(model, column_name, interval=1, group_by_columns=[]) %}
select *
from (
    select
        {{ group_by_columns | map('string') | join(', ') ~ ',' if group_by_columns }}
        {{ column_name }},
        lagInFrame(toNullable({{ column_name }}), 1, null) over in_order as value_before,
        row_number() over in_order as place
    from {{ model }}
    window in_order as (
        {{ 'partition by ' ~ group_by_columns | join(', ') if group_by_columns }}
        order by {{ column_name }}
        rows between unbounded preceding and current row
    )
)
where place > 1 and ifNull({{ column_name }} != value_before + {{ interval }}, true)
{% endtest %}
