-- Several buckets can end in one instant: what becomes known in between belongs to the first that had not ended before it. To find that
-- bucket: `asof join … on … and u.known_at <= e.bucket_ts_end`, then `where u.known_at >= e.bucket_ts_start`, for it has to be open.
select
    exchange,
    market_type,
    symbol,
    bucket_ts_end,
    min(bucket_id) as bucket_id,
    min(bucket_ts_start) as bucket_ts_start
from {{ ref('unified_buckets') }}
group by exchange, market_type, symbol, bucket_ts_end
