-- An ASOF JOIN picks any of several rows with one time: the right side has one row per instrument and moment of knowledge.
select
    exchange,
    market_type,
    symbol,
    known_at,
    count() as copies
from {{ ref('book_asof') }}
group by exchange, market_type, symbol, known_at
having copies > 1
