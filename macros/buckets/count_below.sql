{#
  Purpose: for every target at once, how many values are smaller than it. Sorts values and targets together (value v as 2v + 1,
    target g as 2g, so that a target comes before a value equal to it), counts values along the way and reads off at the targets:
    n log n, where a search inside arrayMap would copy the whole array for each element.
  Arguments: values: an ascending array of integers. targets: an ascending array of the same type.
  Returns: Array(UInt32), one count a target, in the targets' order.
  Example: {{ count_below('[10, 20, 20, 30]', '[5, 20, 21]') }}  -- [0, 1, 3]
#}
{% macro count_below(values, targets) -%}
arrayFilter(
            (seen, x) -> x % 2 = 0,
            arrayCumSum(arrayMap(x -> toUInt32(x % 2), arraySort(arrayConcat(arrayMap(v -> 2 * v + 1, {{ values }}), arrayMap(g -> 2 * g, {{ targets }}))))),
            arraySort(arrayConcat(arrayMap(v -> 2 * v + 1, {{ values }}), arrayMap(g -> 2 * g, {{ targets }})))
        )
{%- endmacro %}
