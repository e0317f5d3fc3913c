{#
  Purpose: the adapter's macro of this name, with the sharding of this project: by instrument where the rows are an instrument's.
  Arguments: relation: the Distributed table. local_relation: the one in each shard.
  Example: (called by dbt-clickhouse)
#}
{% macro create_distributed_table(relation, local_relation) %}
    {%- set columns = adapter.get_columns_in_relation(local_relation) | map(attribute='name') | list -%}
    {%- set is_of_instrument = 'exchange' in columns and 'market_type' in columns and 'symbol' in columns -%}
    create or replace table {{ relation }} {{ on_cluster_clause(relation) }} as {{ local_relation }}
    engine = Distributed(
        '{{ adapter.get_clickhouse_cluster_name()[1:-1] }}', '{{ local_relation.schema }}', '{{ local_relation.name }}',
        {{ 'cityHash64(exchange, market_type, symbol)' if is_of_instrument else 'rand()' }}
    )
{% endmacro %}
