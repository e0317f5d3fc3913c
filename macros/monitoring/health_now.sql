{#
  Purpose: the moment as of which health is judged, as SQL: var `health_now`. null: the server's clock. `latest`: the end of the newest
    bucket, the present of recorded data. Else: a time, UTC.
  Arguments: none. Returns: an expression, DateTime64(3, 'UTC').
  Example: select dateDiff('second', max(bucket_ts_end), {{ health_now() }}) as lag_s
#}
{% macro health_now() -%}
{%- set now = var('health_now') -%}
{%- if now is none -%}
    now64(3, 'UTC')
{%- elif now == 'latest' -%}
    assumeNotNull((select toDateTime64(max(bucket_ts_end), 3, 'UTC') from {{ ref('unified_buckets') }}))
{%- else -%}
    parseDateTime64BestEffort('{{ now }}', 3, 'UTC')
{%- endif -%}
{%- endmacro %}
