-- One row per instrument, reference, hour and verdict: how many buckets were compared with the reference, or why not.
select
    exchange,
    market_type,
    symbol,
    reference_exchange,
    reference_market_type,
    reference_symbol,
    toStartOfHour(bucket_ts_end) as hour,
    reference_verdict as verdict,
    count() as buckets,
    min(bucket_ts_end) as first_at,
    max(bucket_ts_end) as last_at
from {{ ref('bucket_partners') }}
group by exchange, market_type, symbol, reference_exchange, reference_market_type, reference_symbol, hour, verdict
