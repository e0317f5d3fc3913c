{#
  Purpose: the only way a model reads a value from another clock. Joins to each left row the last right row KNOWN at the left
    row's time, and turns it into NULL when its EVENT is older than max_lag_ms: never the future, never silently old.
  Arguments: left: a CTE or relation with exchange, market_type, symbol and `at`. right: one with exchange, market_type, symbol,
    timestamp, known_at, UNIQUE per instrument and known_at (an ASOF JOIN picks any of several: a test must say so).
    columns: {right column: output name}. max_lag_ms: milliseconds. at: the left time column; the as_of.
  Returns: a SELECT of all left columns, the output columns (Nullable) and `<prefix>_age_ms`.
  Example: {{ as_of('buckets', ref('book_asof'), {'mid': 'mid_close'}, var('book_max_lag_ms'), prefix='book') }}
#}
{% macro as_of(left, right, columns, max_lag_ms, prefix, at='bucket_ts_end') -%}
select
        l.*,
        {%- for column, name in columns.items() %}
        if(r.timestamp >= l.{{ at }} - toIntervalMillisecond({{ max_lag_ms }}), r.{{ column }}, null) as {{ name }},
        {%- endfor %}
        if(
            r.timestamp >= l.{{ at }} - toIntervalMillisecond({{ max_lag_ms }}),
            toFloat64(dateDiff('microsecond', r.timestamp, l.{{ at }})) / 1000,
            null
        ) as {{ prefix }}_age_ms
    from {{ left }} as l
    asof left join (
        select exchange, market_type, symbol, timestamp, known_at, {{ columns.keys() | join(', ') }}
        from {{ right }}
        where
            known_at >= (select minOrNull({{ at }}) from {{ left }}) - toIntervalMillisecond({{ max_lag_ms }})
            and known_at <= (select maxOrNull({{ at }}) from {{ left }})
    ) as r
        on l.exchange = r.exchange
        and l.market_type = r.market_type
        and l.symbol = r.symbol
        and l.{{ at }} >= r.known_at
{%- endmacro %}
