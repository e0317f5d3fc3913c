{#
  Purpose: the columns that another model's contract lists, with their types: a model that handles them all follows it by itself.
  Arguments: name: a model with a contract. version: which of its versions; none: it has none.
  Returns: {column: data type}, in the contract's order; empty while dbt reads the project, and for sqlfluff, which knows no yml.
  Example: {% for column, type in columns_of('feature_vector', 2).items() %}f.{{ column }},{% endfor %}
#}
{% macro columns_of(name, version=none) %}
{%- set found = {} -%}
{%- if execute -%}
    {%- for node in graph.nodes.values() if node.resource_type == 'model' and node.name == name and node.version == version -%}
        {%- for column in node.columns.values() -%}
            {%- do found.update({column.name: column.data_type}) -%}
        {%- endfor -%}
    {%- endfor -%}
    {%- if not found -%}
        {{ exceptions.raise_compiler_error("no model " ~ name ~ " (version " ~ version ~ ") with columns") }}
    {%- endif -%}
{%- endif -%}
{{ return(found) }}
{% endmacro %}
