-- One row per published or settled funding rate: a fraction per funding period.
select
    exchange,
    market_type,
    symbol,
    timestamp,
    toFloat64(funding_rate) as funding_rate,
    funding_time,
    next_funding_time,
    nullIf(toFloat64(mark_price), 0) as mark_price,
    nullIf(toFloat64(index_price), 0) as index_price,
    known_at,
    data_source
from {{ raw_rows('funding_rates') }}
