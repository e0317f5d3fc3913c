-- One row per long/short ratio of all accounts.
select
    exchange,
    market_type,
    symbol,
    timestamp,
    period,
    toFloat64(long_account_ratio) as long_account_ratio,
    toFloat64(short_account_ratio) as short_account_ratio,
    known_at,
    data_source
from {{ raw_rows('lsr_all_accounts') }}
