-- One row per instrument and hour with buckets that had no fresh run of the candidates: their level features are NULL.
select
    exchange,
    market_type,
    symbol,
    toStartOfHour(bucket_ts_end) as hour,
    count() as buckets,
    countIf(level_run_age_s is null) as stale_buckets,
    minIf(bucket_ts_end, level_run_age_s is null) as first_stale_at,
    maxIf(bucket_ts_end, level_run_age_s is null) as last_stale_at
from {{ ref('footprint_levels') }}
group by exchange, market_type, symbol, hour
having stale_buckets > 0
