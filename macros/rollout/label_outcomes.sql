{#
  Purpose: the class labels of bucket_labels and the returns behind them, as its yml lists them: a new label needs no edit elsewhere.
  Arguments: none. Returns: a list of (label column, return column); one pair for sqlfluff, which knows no yml.
  Example: {% for label, outcome in label_outcomes() %}{{ label }}, {{ outcome }},{% endfor %}
#}
{% macro label_outcomes() %}
    {%- set listed = [] -%}
    {%- for node in (graph.nodes.values() if graph is defined and graph.nodes is defined else []) if node.name == 'bucket_labels' -%}
        {%- do listed.extend(node.columns.keys()) -%}
    {%- endfor -%}
    {%- set found = [] -%}
    {%- for label in listed if label.startswith('label_cls_') -%}
        {%- for kind in ['label_ret_ps_', 'label_ret_'] if label.replace('label_cls_', kind) in listed -%}
            {%- do found.append((label, label.replace('label_cls_', kind))) -%}
        {%- endfor -%}
    {%- endfor -%}
    {{ return(found or [('label_cls_1', 'label_ret_ps_1')]) }}
{% endmacro %}
