{{ config(
    materialized='incremental',
    incremental_strategy='append',
    order_by='(feature_vector, exchange, market_type, symbol, bucket_id)',
    ttl='toDateTime(arrived_at) + interval 7 day',
) }}

-- When a row of a feature vector came out of a live view: written on insert, by `<feature vector>_arrivals_live`, which is there while the
-- live views are. A build adds none: its rows arrive when somebody builds.
select
    toLowCardinality('') as feature_vector,
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_end,
    now64(3, 'UTC') as arrived_at
from {{ ref('unified_buckets') }}
where false
