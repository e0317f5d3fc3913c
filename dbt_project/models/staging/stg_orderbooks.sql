-- One row per book state of a source that feeds the clock. A side without a price is empty: NULL, never zero.
select
    exchange,
    market_type,
    symbol,
    timestamp,
    last_update_id,
    nullIf(best_bid_price, 0) as bid_price,
    nullIf(best_ask_price, 0) as ask_price,
    nullIf(best_bid_quantity, 0) as bid_quantity,
    nullIf(best_ask_quantity, 0) as ask_quantity,
    bids_count,
    asks_count,
    bids,
    asks,
    known_at,
    data_source
from {{ raw_rows('orderbooks') }}
where
    data_source in (
        select data_source
        from {{ ref('source_availability') }}
        where kind = 'orderbooks' and feeds_clock = 1
    )
