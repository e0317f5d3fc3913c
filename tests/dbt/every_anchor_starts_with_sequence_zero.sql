-- With the gapless sequence of each anchor (a test of unified_buckets): buckets are numbered 0, 1, 2, …. One row per anchor that is not.
select
    exchange,
    market_type,
    symbol,
    anchor_ts,
    min(sequence) as first_sequence
from {{ ref('unified_buckets') }}
group by exchange, market_type, symbol, anchor_ts
having first_sequence > 0
