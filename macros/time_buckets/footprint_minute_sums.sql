{#
  Purpose: what traded per instrument, minute and price, by the side of the taker: mergeable sums, shared by the materialized view and the
    backfill. A trade's price is a multiple of the tick, so this is the finest bin; coarser ones are sums of it, chosen when it is read.
  Arguments: relation: rows with the columns of the raw table `trades`. condition: which of them (default: all).
  Example: {{ footprint_minute_sums(source('hot', 'trades'), feeds_the_clock('trades')) }}
#}
{% macro footprint_minute_sums(relation, condition='true') -%}
select
        exchange,
        market_type,
        symbol,
        toStartOfMinute(known_at) as minute_start,
        price,
        toInt64(count()) as trade_count,
        sumIf(quantity, side = 'buy') as buy_volume,
        sumIf(quantity, side = 'sell') as sell_volume
    from {{ relation }}
    where known_at <= timestamp and {{ condition }}
    group by exchange, market_type, symbol, minute_start, price
{%- endmacro %}
