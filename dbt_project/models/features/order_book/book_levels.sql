{{ config(materialized="view") }}

-- One row per book state with up to 20 levels a side, once, whoever wrote it.
select
    exchange,
    market_type,
    symbol,
    timestamp,
    last_update_id,
    known_at,
    bid_prices,
    bid_quantities,
    ask_prices,
    ask_quantities
from {{ ref('book_levels_stored') }} final
