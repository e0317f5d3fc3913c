{#
  Purpose: the best level per instrument and minute of knowledge, as mergeable sums and maxima, shared by the materialized view and the
    backfill. Ratios are cut to 12 decimals so that their sum is exact, in whatever order they come.
    The newest state of a minute is the newest known at its end: a state that is young enough to be used then became known in that
    minute, as long as `book_max_lag_ms` is at most a minute.
  Arguments: relation: rows with the columns of the raw table `orderbooks`. condition: which of them (default: all).
  Example: {{ book_minute_sums(source('hot', 'orderbooks'), feeds_the_clock('orderbooks')) }}
#}
{% macro book_minute_sums(relation, condition='true') -%}
{%- if var('book_max_lag_ms') > 60000 -%}
{{ exceptions.raise_compiler_error("book_max_lag_ms is over a minute: then a minute does not hold the book known at its end") }}
{%- endif -%}
select
        exchange,
        market_type,
        symbol,
        toStartOfMinute(known_at) as minute_start,
        toInt64(count()) as state_count,
        toInt64(countIf(is_two_sided)) as two_sided_count,
        sumIf(bid + ask, is_two_sided) as mid_sum_2,
        sum(toDecimal128(spread_bps, 12)) as spread_bps_sum,
        sum(toDecimal128(tob_imbalance, 12)) as tob_imbalance_sum,
        max((timestamp, last_update_id, is_two_sided, mid, spread_bps, tob_imbalance, microprice)) as newest_state
    from (
        select
            exchange,
            market_type,
            symbol,
            timestamp,
            last_update_id,
            known_at,
            least(best_bid_price, best_ask_price, best_bid_quantity, best_ask_quantity) > 0 as is_two_sided,
            toDecimal128(best_bid_price, 8) as bid,
            toDecimal128(best_ask_price, 8) as ask,
            toFloat64(best_bid_quantity) as bid_size,
            toFloat64(best_ask_quantity) as ask_size,
            toFloat64(bid + ask) / 2 as mid,
            if(is_two_sided, toFloat64(ask - bid) / mid * 10000, 0) as spread_bps,
            if(is_two_sided, (bid_size - ask_size) / (bid_size + ask_size), 0) as tob_imbalance,
            if(is_two_sided, (toFloat64(ask) * bid_size + toFloat64(bid) * ask_size) / (bid_size + ask_size), 0) as microprice
        from {{ relation }}
        where known_at <= timestamp + toIntervalMillisecond({{ var('book_max_lag_ms') }}) and {{ condition }}
    )
    group by exchange, market_type, symbol, minute_start
{%- endmacro %}
