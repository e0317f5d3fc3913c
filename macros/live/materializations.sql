{# With var `live` an incremental model becomes a refreshable view that appends to its table; else the adapter's own. #}
{% materialization incremental, adapter='clickhouse' %}
    {%- if is_live() -%}
        {{ return(live_materialization()) }}
    {%- endif -%}
    {%- do refuse_if_live() -%}
    {{ return(dbt.materialization_incremental_clickhouse()) }}
{% endmaterialization %}

{# With var `live` a table becomes a refreshable view that replaces it; else the adapter's own. #}
{% materialization table, adapter='clickhouse' %}
    {%- if is_live() -%}
        {{ return(live_materialization()) }}
    {%- endif -%}
    {%- do refuse_if_live() -%}
    {{ return(dbt.materialization_table_clickhouse()) }}
{% endmaterialization %}

{#
  Purpose: what both materializations do with var `live`: a view, or nothing where materialized views write the table on insert.
  Arguments: none. Returns: what a materialization returns.
  Example: {{ return(live_materialization()) }}
#}
{% macro live_materialization() %}
    {%- set target = this.incorporate(type='table') -%}
    {%- if is_live_node(model) -%}
        {%- do create_live_view(target, sql) -%}
    {%- else -%}
        {%- call statement('main') -%}select 1{%- endcall -%}
    {%- endif -%}
    {{ return({'relations': [target]}) }}
{% endmacro %}
