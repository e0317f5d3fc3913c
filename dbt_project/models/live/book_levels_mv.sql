{{ config(materialized='materialized_view', catchup=false) }}
{{ materialization_target_table(ref('book_levels_stored')) }}
-- Parses each inserted block of book states; the table catches up by itself, before and after this view was there.
select
    exchange,
    market_type,
    symbol,
    timestamp,
    last_update_id,
    known_at,
    {{ parsed_levels('bids', 1) }} as bid_prices,
    {{ parsed_levels('bids', 2) }} as bid_quantities,
    {{ parsed_levels('asks', 1) }} as ask_prices,
    {{ parsed_levels('asks', 2) }} as ask_quantities
from {{ source('hot', 'orderbooks') }}
where
    {{ feeds_the_clock('orderbooks') }}
