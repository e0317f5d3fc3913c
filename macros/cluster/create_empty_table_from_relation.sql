{#
  Purpose: the adapter's macro of this name: the table in each shard. As on one server, an enforced contract is checked, and its columns come in
    the contract's order: rows of both are the same bytes.
  Arguments: relation: the table to make. source_relation: a relation with its columns. sql: the query that has them, in place of it.
  Example: (called by dbt-clickhouse)
#}
{% macro create_empty_table_from_relation(relation, source_relation, sql=none) -%}
    {%- if config.get('contract').enforced -%}
        {%- set query = sql or 'select * from ' ~ source_relation -%}
        {{ get_assert_columns_equivalent(query) }}
        {%- set columns = model['columns'].values() | map(attribute='name') | join(', ') -%}
        {%- set sql = 'select ' ~ columns ~ ' from (' ~ query ~ ')' -%}
    {%- endif -%}
    {{ dbt.create_empty_table_from_relation(relation, source_relation, sql) }}
{%- endmacro %}
