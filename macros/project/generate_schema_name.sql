{#
  Purpose: everything goes to the one features database of the profile; no custom schemas. dbt itself gives one to data tests, for
    stored failures: those rows go to the same database.
  Arguments: as dbt passes them; a custom_schema_name of anything but a test is refused.
  Example: (called by dbt)
#}
{% macro generate_schema_name(custom_schema_name, node) -%}
    {%- if custom_schema_name is not none and node.resource_type != 'test' -%}
        {{ exceptions.raise_compiler_error("custom schemas are not used here: " ~ node.name) }}
    {%- endif -%}
    {{ target.schema }}
{%- endmacro %}
