{#
  Purpose: how far each instrument's book is known, as a SELECT: what a label sees later than that is not yet a label. A feed is
    complete before its watermark, not at it, and as far as its last update.
  Arguments: none. Returns: exchange, market_type, symbol, complete_to.
  Example: with books as ({{ book_complete_to() }})
#}
{% macro book_complete_to() -%}
select
        exchange,
        market_type,
        symbol,
        max(complete_to) as complete_to
    from (
        select
            exchange,
            market_type,
            symbol,
            max(known_at) as complete_to
        from {{ ref('book_updates') }}
        group by exchange, market_type, symbol
        union all
        select
            exchange,
            market_type,
            symbol,
            watermark - toIntervalMicrosecond(1) as complete_to
        from {{ ref('stg_watermarks') }}
        where kind = 'orderbooks'
    )
    group by exchange, market_type, symbol
{%- endmacro %}
