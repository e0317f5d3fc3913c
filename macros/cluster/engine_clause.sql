{#
  Purpose: the adapter's clause of this name; on a cluster the engine is the replicated one of its kind. A seed is the same on all nodes, a model's
    table has its instruments' rows in each shard.
  Arguments: none: reads the model's config.
  Example: (called by dbt-clickhouse)
#}
{% macro engine_clause() -%}
    {%- set engine = config.get('engine', default='MergeTree()') -%}
    {%- if adapter.get_clickhouse_cluster_name() is not none and 'MergeTree' in engine -%}
        {%- set arguments = engine.partition('(')[2].rpartition(')')[0] -%}
        {%- set path = "'/clickhouse/tables/{shard}/{database}/{table}/{uuid}', '{replica}'" -%}
        {%- if model.resource_type == 'seed' -%}
            {%- set path = "'/clickhouse/tables/all/{database}/{table}/{uuid}', '{shard}-{replica}'" -%}
        {%- endif -%}
        engine = Replicated{{ engine.partition('(')[0] }}({{ path }}{{ ', ' ~ arguments if arguments }})
    {%- else -%}
        engine = {{ engine }}
    {%- endif -%}
{%- endmacro %}
