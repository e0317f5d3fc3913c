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
