{#
  Purpose: the correlation of two return series at every lag of a grid: Pearson's, over the points where both are known.
  Arguments: pairs: a CTE or relation with this_mids and other_mids, Array(Float64) of one length on one regular grid, nan: unknown.
    steps: lags from -steps to steps, in grid steps; positive: this moves first. min_points: fewer common points give nan.
  Returns: a SELECT of all columns of pairs and `correlations` Array(Float64), 2 * steps + 1 values, nan: undefined.
  Example: {{ lagged_correlations('pairs', 10, 100) }}
#}
{% macro lagged_correlations(pairs, steps, min_points) -%}
{%- set sums = [('this_known', 'other_known'), ('this_return', 'other_known'), ('this_known', 'other_return'),
    ('this_square', 'other_known'), ('this_known', 'other_square'), ('this_return', 'other_return')] -%}
select
        * except (
            this_raw, this_known, this_return, this_square, other_raw, other_known, other_return, other_square
        ),
        arrayMap(
            s -> if(
                s.1 >= {{ min_points }} and s.1 * s.4 > s.2 * s.2 and s.1 * s.5 > s.3 * s.3,
                (s.1 * s.6 - s.2 * s.3) / (sqrt(s.1 * s.4 - s.2 * s.2) * sqrt(s.1 * s.5 - s.3 * s.3)),
                nan
            ),
            [
                {%- for lag in range(-steps, steps + 1) %}
                (
                    {%- for this, other in sums %}
                    arrayDotProduct(
                        {%- if lag < 0 %}arraySlice({{ this }}, {{ 1 - lag }}), arraySlice({{ other }}, 1, {{ lag }})
                        {%- elif lag == 0 %}{{ this }}, {{ other }}
                        {%- else %}arraySlice({{ this }}, 1, {{ -lag }}), arraySlice({{ other }}, {{ 1 + lag }})
                        {%- endif %}){{ ',' if not loop.last }}
                    {%- endfor %}
                ){{ ',' if not loop.last }}
                {%- endfor %}
            ]
        ) as correlations
    from (
        select
            *
            {%- for side in ['this', 'other'] %},
            arrayMap((m, n) -> log(n / m), arrayPopBack({{ side }}_mids), arrayPopFront({{ side }}_mids)) as {{ side }}_raw,
            arrayMap(r -> toFloat64(not isNaN(r)), {{ side }}_raw) as {{ side }}_known,
            arrayMap(r -> if(isNaN(r), 0, r), {{ side }}_raw) as {{ side }}_return,
            arrayMap(r -> r * r, {{ side }}_return) as {{ side }}_square
            {%- endfor %}
        from {{ pairs }}
    )
{%- endmacro %}
