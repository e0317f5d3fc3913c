-- One row per instrument and moment of knowledge: the right side of every as-of join on the book.
select
    exchange,
    market_type,
    symbol,
    timestamp,
    last_update_id,
    known_at,
    mid,
    spread_bps,
    tob_imbalance,
    microprice
from {{ ref('book_updates') }}
order by timestamp desc, last_update_id desc
limit 1 by exchange, market_type, symbol, known_at
