{#
  Purpose: does this run make refreshable views (var `live`) instead of filling tables? The views hold the incremental form of the SQL.
  Arguments: none. Returns: boolean (as a Jinja value).
  Example: {% if is_live() %} and bucket_ts_end < {{ live_complete_to() }} {% endif %}
#}
{% macro is_live() %}
    {{ return(var('live')) }}
{% endmacro %}

{#
  Purpose: up to which moment, exclusive, every feed that still runs was complete when the live pass began, as a scalar subquery. Rows behind it may
    be on their way: a live view publishes nothing that they could change. A feed that is `live_max_wait_s` behind the first is not waited for.
  Arguments: none.
  Example: where bucket_ts_end < {{ live_complete_to() }}
#}
{% macro live_complete_to() -%}
(
        select min(watermark)
        from {{ ref('stg_watermarks') }}
        where
            kind in ('trades', 'orderbooks')
            and watermark >= (select max(watermark) from {{ ref('stg_watermarks') }}) - toIntervalSecond({{ var('live_max_wait_s') }})
    )
{%- endmacro %}
