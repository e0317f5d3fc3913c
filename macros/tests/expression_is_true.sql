{#
  Purpose: an expression holds in every row, as a CHECK constraint would say it: NULL (unknown) passes.
  Arguments: expression: SQL over the model's columns. Under a column: what follows the column's name, such as `>= 0`.
  Fails with: the rows where it does not hold.
  Example:
    - expression_is_true:
        arguments: {expression: "buy_count + sell_count = trade_count"}
#}
{% test expression_is_true(model, expression, column_name=none) %}
select *
from {{ model }}
where not ({{ column_name ~ ' ' if column_name is not none }}{{ expression }})
{% endtest %}
