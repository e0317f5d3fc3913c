{#
  Purpose: what traded per instrument and minute, as sums, minima and maxima: parts of a minute can be computed apart and merged in any
    order, to the same bits. The one place where a minute of trades is defined: the materialized view and the backfill share it.
    Late trades (known after they happened) are in no minute, as they are in no bucket; so the minute of knowledge is that of the event.
  Arguments: relation: rows with the columns of the raw table `trades`. condition: which of them (default: all).
  Example: {{ trade_minute_sums(source('hot', 'trades'), feeds_the_clock('trades')) }}
#}
{% macro trade_minute_sums(relation, condition='true') -%}
select
        exchange,
        market_type,
        symbol,
        toStartOfMinute(known_at) as minute_start,
        toInt64(count()) as trade_count,
        toInt64(countIf(side = 'buy')) as buy_count,
        sum(quantity) as volume,
        sumIf(quantity, side = 'buy') as buy_volume,
        sum(toDecimal128(price, 8) * quantity) as price_times_quantity,
        min((timestamp, trade_seq, if(trade_seq = 0, trade_id, ''), toFloat64(price))) as first_trade,
        max((timestamp, trade_seq, if(trade_seq = 0, trade_id, ''), toFloat64(price))) as last_trade,
        max(price) as high_price,
        min(price) as low_price,
        max(quantity) as max_trade_size
    from {{ relation }}
    where known_at <= timestamp and {{ condition }}
    group by exchange, market_type, symbol, minute_start
{%- endmacro %}
