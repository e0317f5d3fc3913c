-- One row per instrument and closed bucket: the logical timeline that every feature and label hangs on.
select
    exchange,
    market_type,
    symbol,
    bucket_id,
    anchor_ts,
    sequence,
    bucket_ts_start,
    bucket_ts_end,
    cut_trigger,
    trade_count,
    volume,
    q_bucket,
    first_trade_seq,
    first_trade_id,
    last_trade_at,
    last_trade_seq,
    last_trade_id,
    toFloat64(dateDiff('microsecond', bucket_ts_start, bucket_ts_end)) / 1e6 as duration_s
from {{ ref('bucket_tapes') }}
