{#
  Purpose: cuts an array into runs: a new one starts where the key differs from the one before.
  Arguments: values: an array. keys: an array of the same length. Returns: an array of arrays; none for an empty one.
  Example: {{ split_on_change("['a', 'b', 'c']", '[1, 1, 2]') }}  -- [['a', 'b'], ['c']]
#}
{% macro split_on_change(values, keys) -%}
arraySplit(
            (x, key, key_before) -> key != key_before,
            {{ values }},
            {{ keys }},
            arraySlice(arrayPushFront({{ keys }}, arrayElement({{ keys }}, 1)), 1, length({{ keys }}))
        )
{%- endmacro %}
