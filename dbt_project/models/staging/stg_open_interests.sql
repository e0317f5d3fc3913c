-- One row per open-interest observation. Zero is a broken feed, not a value.
select
    exchange,
    market_type,
    symbol,
    timestamp,
    nullIf(toFloat64(open_interest), 0) as open_interest,
    nullIf(toFloat64(open_interest_value), 0) as open_interest_value,
    known_at,
    data_source
from {{ raw_rows('open_interests') }}
