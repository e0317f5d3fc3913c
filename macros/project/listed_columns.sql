{#
  Purpose: the columns that the model's yml lists, in its order: a model that only carries columns of others on is extended there alone.
  Arguments: none. Returns: a list of names; empty while dbt reads the project, and for sqlfluff, which knows no yml.
  Example: {% for column in listed_columns() %}f.{{ column }} as {{ column }},{% endfor %}
#}
{% macro listed_columns() %}
{{ return(model.columns.keys() | list if model is defined else []) }}
{% endmacro %}
