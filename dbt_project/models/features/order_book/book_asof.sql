-- One row per instrument and moment of knowledge: the right side of every as-of join on the book.
select
    exchange,
    market_type,
    symbol,
    timestamp,
    last_update_id,
    known_at,
    bid_price,
    ask_price,
    mid,
    spread_bps,
    tob_imbalance,
    microprice
from {{ ref('book_updates') }}
-- the table's own order, backwards: read as it lies, nothing is sorted
order by exchange desc, market_type desc, symbol desc, known_at desc, timestamp desc, last_update_id desc
limit 1 by exchange, market_type, symbol, known_at
