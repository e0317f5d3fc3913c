{#
  Purpose: the runs whose window holds a minute: every run_s seconds (UTC) there is one, and it looks window_s back.
  Arguments: minute_end: the end of a minute, a time. run_s, window_s: seconds; window_s is a multiple of run_s, run_s of 60.
  Returns: Array(DateTime64(6)), window_s / run_s times.
  Example: array join {{ runs_of('known_at', 300, 600) }} as run_at
#}
{% macro runs_of(minute_end, run_s, window_s) -%}
arrayMap(
        n -> toDateTime64((intDiv(toUnixTimestamp({{ minute_end }}) + {{ run_s - 1 }}, {{ run_s }}) + n) * {{ run_s }}, 6, 'UTC'),
        range({{ window_s // run_s }})
    )
{%- endmacro %}
