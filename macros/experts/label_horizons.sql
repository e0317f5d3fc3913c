{#
  Purpose: the horizons of `bucket_labels`, from its columns label_known_at_*: a horizon added there is scored here.
  Arguments: none. Returns: a list of suffixes: '3' is three buckets, '30s' thirty seconds; of these two while dbt reads the project.
  Example: {% for h in label_horizons() %}l.label_cls_{{ h }},{% endfor %}
#}
{% macro label_horizons() %}
{%- set found = [] -%}
{%- for column in columns_of('bucket_labels') if column.startswith('label_known_at_') -%}
    {%- set horizon = column[15:] -%}
    {%- if modules.re.fullmatch('[0-9]+s?', horizon) -%}
        {%- do found.append(horizon) -%}
    {%- endif -%}
{%- endfor -%}
{{ return(found or ['3', '30s']) }}
{% endmacro %}
