{#
  Purpose: the Hayashi-Yoshida (2005) correlation of two tick series at every lag (Hoffmann, Rosenbaum, Yoshida 2013): the sum of
    r_i * s_j over all pairs of tick intervals that overlap once this series is shifted by the lag, over the root of both sums of
    squares. No grid, no interpolation. For each r_i the overlapping s_j add up to a difference of the other path: its value at
    the first tick at or after the interval's end, less that at the last tick at or before its start. All ends of a lag are sorted
    in among the other's ticks once, and the path is filled forward and backward: n log n, without a join.
  Arguments: pairs: a CTE or relation with this_us, other_us (ascending Array(Int64), µs) and this_ticks, other_ticks (Array(Float64), their
    prices). step_us, steps: lags from -steps to steps of step_us; positive: this moves first. max_gap_us: a longer silence is no
    interval: what moved over it does not count.
  Returns: a SELECT of all columns of pairs and `hy_correlations` Array(Float64), 2 * steps + 1 values, nan: a series that did not move.
  Example: {{ hayashi_yoshida('pairs', 100000, 10, 10000000) }}
#}
{% macro hayashi_yoshida(pairs, step_us, steps, max_gap_us) -%}
select
        * except (
            this_returns, other_returns, moved, is_tick, path, at_end, at_start, tick_keys, end_keys, start_keys, scale
            {%- for lag in range(2 * steps + 1) %}, sorted_{{ lag }}{% endfor %}
        ),
        -- 0 / 0 = nan; an if() here would sort once for every mention, lazily
        [
            {%- for lag in range(2 * steps + 1) %}
            (
                arrayDotProduct(
                    sorted_{{ lag }}.3,
                    arrayReverseFill((p, is_known) -> is_known, sorted_{{ lag }}.2, sorted_{{ lag }}.1)
                )
                - arrayDotProduct(
                    sorted_{{ lag }}.4,
                    arrayFill((p, is_known) -> is_known, sorted_{{ lag }}.2, sorted_{{ lag }}.1)
                )
            ) / scale{{ ',' if not loop.last }}
            {%- endfor %}
        ] as hy_correlations
    from (
        select
            *
            {%- for lag in range(-steps, steps + 1) %},
            arraySort(
                (e, key) -> key,
                arrayZip(is_tick, path, at_end, at_start),
                arrayConcat(
                    tick_keys,
                    arrayMap(t -> t + {{ 4 * lag * step_us }}, end_keys),
                    arrayMap(t -> t + {{ 4 * lag * step_us }}, start_keys)
                )
            ) as sorted_{{ lag + steps }}
            {%- endfor %}
        from (
            select
                *
                {%- for side in ['this', 'other'] %},
                arrayMap(
                    (t, u, p, q) -> if(u - t > {{ max_gap_us }}, 0, log(q / p)),
                    arrayPopBack({{ side }}_us), arrayPopFront({{ side }}_us),
                    arrayPopBack({{ side }}_ticks), arrayPopFront({{ side }}_ticks)
                ) as {{ side }}_returns
                {%- endfor %},
                sqrt(arrayDotProduct(this_returns, this_returns) * arrayDotProduct(other_returns, other_returns)) as scale,
                arrayFilter(m -> m.3 != 0, arrayZip(arrayPopBack(this_us), arrayPopFront(this_us), this_returns)) as moved,
                -- of equal times: ends of an interval, then ticks, then starts; the last tick again behind everything
                arrayPushBack(arrayMap(t -> t * 4 + 1, other_us), 9000000000000000000) as tick_keys,
                arrayMap(m -> m.2 * 4, moved) as end_keys,
                arrayMap(m -> m.1 * 4 + 2, moved) as start_keys,
                arrayConcat(arrayMap(k -> true, tick_keys), arrayMap(m -> false, moved), arrayMap(m -> false, moved)) as is_tick,
                arrayConcat(
                    [0.], arrayCumSum(other_returns), [arraySum(other_returns)], arrayMap(m -> 0., moved), arrayMap(m -> 0., moved)
                ) as path,
                arrayConcat(arrayMap(k -> 0., tick_keys), moved.3, arrayMap(m -> 0., moved)) as at_end,
                arrayConcat(arrayMap(k -> 0., tick_keys), arrayMap(m -> 0., moved), moved.3) as at_start
            from {{ pairs }}
            where length(this_us) > 1 and length(other_us) > 1
        )
    )
{%- endmacro %}
