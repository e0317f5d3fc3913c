{#
  Purpose: every model goes to the one features database of the profile; no custom schemas.
  Arguments: as dbt passes them; custom_schema_name is refused.
  Example: (called by dbt)
#}
{% macro generate_schema_name(custom_schema_name, node) -%}
    {%- if custom_schema_name is not none -%}
        {{ exceptions.raise_compiler_error("custom schemas are not used here: " ~ node.name) }}
    {%- endif -%}
    {{ target.schema }}
{%- endmacro %}
