-- One row per volatility-index value: annualised, percentage points.
select
    exchange,
    market_type,
    symbol,
    timestamp,
    toFloat64(index_value) as index_value,
    underlying_asset,
    maturity_date,
    known_at,
    data_source
from {{ raw_rows('volatility_indices') }}
