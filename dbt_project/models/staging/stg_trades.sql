-- One row per trade. Prices and quantities stay exact here: their sums decide cuts and must not depend on the order of addition.
select
    exchange,
    market_type,
    symbol,
    timestamp,
    trade_seq,
    trade_id,
    price,
    quantity,
    side,
    known_at,
    known_at <= timestamp as is_on_time,
    data_source
from {{ raw_rows('trades', also=['trade_seq']) }}
where
    data_source in (
        select data_source
        from {{ ref('source_availability') }}
        where kind = 'trades' and feeds_clock = 1
    )
