{#
  Purpose: two relations hold the same rows, each as often, in these columns. Order does not matter; NULL equals NULL.
  Arguments: compare_model: a relation, as ref('…') or source('…', '…'). compare_columns: list of columns (default: all of the model's).
  Fails with: the rows that one side has more often, and how much more often the model has it (negative: the other).
  Example:
    - equality:
        arguments: {compare_model: ref('unified_buckets'), compare_columns: [exchange, market_type, symbol, bucket_id]}
#}
{% test equality(model, compare_model, compare_columns=none) %}
{%- if compare_columns is none and not execute -%}
    {%- set compare_columns = ['1'] -%}
{%- elif compare_columns is none -%}
    {%- set compare_columns = adapter.get_columns_in_relation(model) | map(attribute='quoted') | list -%}
{%- endif %}
select
    {{ compare_columns | join(',\n    ') }},
    sum(surplus_) as surplus
from (
    select
        {{ compare_columns | join(',\n        ') }},
        1 as surplus_
    from {{ model }}
    union all
    select
        {{ compare_columns | join(',\n        ') }},
        -1 as surplus_
    from {{ compare_model }}
)
group by {{ compare_columns | join(', ') }}
having surplus != 0
{% endtest %}
