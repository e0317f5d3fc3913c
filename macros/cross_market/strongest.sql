{#
  Purpose: the strongest of several correlations and where it is: the greatest absolute value, of equals the one nearest to lag 0.
  Arguments: correlations: Array(Float64), nan: undefined. lags: Array of numbers of the same length.
  Returns: Tuple(Nullable(Float64), Nullable(Float64)): correlation and lag; NULLs where all are undefined.
  Example: {{ strongest('[0.1, nan, -0.5]', '[-1, 0, 1]') }}  -- (-0.5, 1)
#}
{% macro strongest(correlations, lags) -%}
arrayElement(
            arrayPushBack(
                arraySort(
                    x -> (-abs(assumeNotNull(x.1)), abs(assumeNotNull(x.2)), assumeNotNull(x.2)),
                    arrayFilter(
                        x -> not isNaN(assumeNotNull(x.1)),
                        arrayMap((c, l) -> (toNullable(c), toNullable(toFloat64(l))), {{ correlations }}, {{ lags }})
                    )
                ),
                (null, null)
            ),
            1
        )
{%- endmacro %}
