{#
  Purpose: the features of a version of a public relation, as its yml lists them: every number that is no part of a row's key. For models that
    are about features rather than of them: they need not be touched when a version comes.
  Arguments: name: the model. version: its version. Returns: a list of names; one stand-in for sqlfluff and while dbt reads the project.
  Example: {% for feature in feature_names('feature_vector', 2) %}…{% endfor %}
#}
{% macro feature_names(name, version) %}
{%- set found = [] -%}
{%- set numbers = ['UInt', 'Int', 'Float', 'Decimal', 'Bool'] -%}
{%- for node in (graph.nodes.values() if graph is defined and graph.nodes is defined else []) -%}
    {%- if node.name == name and node.version == version -%}
        {%- for column in node.columns.values() if column.name != 'bucket_id' -%}
            {%- set type = (column.data_type or '') | replace('Nullable(', '') -%}
            {%- for number in numbers if type.startswith(number) -%}
                {%- do found.append(column.name) -%}
            {%- endfor -%}
        {%- endfor -%}
    {%- endif -%}
{%- endfor -%}
{{ return(found or ['bucket_id']) }}
{% endmacro %}
