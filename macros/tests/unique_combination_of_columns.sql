{#
  Purpose: no two rows have the same values in these columns: the test of a model's grain.
  Arguments: combination_of_columns: list of columns or expressions. NULL equals NULL here.
    Combinations are first counted by their hash: 8 bytes of memory a row, not a key of strings. Only rows that share a hash are compared.
  Fails with: one row per combination that occurs more than once, and how often.
  Example:
    - unique_combination_of_columns:
        arguments: {combination_of_columns: [exchange, market_type, symbol, bucket_id]}
#}
{% test unique_combination_of_columns(model, combination_of_columns) %}
{%- if combination_of_columns is string or not combination_of_columns -%}
    {{ exceptions.raise_compiler_error("unique_combination_of_columns: combination_of_columns has to be a list of columns") }}
{%- endif %}
select
    {{ combination_of_columns | join(',\n    ') }},
    count() as occurrences
from {{ model }}
where cityHash64(tuple({{ combination_of_columns | join(', ') }})) in (
    select cityHash64(tuple({{ combination_of_columns | join(', ') }})) as combination
    from {{ model }}
    group by combination
    having count() > 1
)
group by {{ combination_of_columns | join(', ') }}
having occurrences > 1
{% endtest %}
