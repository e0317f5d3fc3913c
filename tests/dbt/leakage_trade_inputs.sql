-- Inputs of a bucket are trades that had happened and were known by its end. One row per bucket and trade that was not.
with late_trades as (
    select
        exchange,
        market_type,
        symbol,
        timestamp,
        trade_seq,
        if(trade_seq = 0, trade_id, '') as text_id,
        known_at
    from {{ ref('stg_trades') }}
    -- not is_on_time: the test must not trust the filter that it tests
    where known_at > timestamp
),

bucketed_trades as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        timestamp,
        trade_seq,
        if(trade_seq = 0, trade_id, '') as text_id
    from {{ ref('bucket_trades') }}
)

select
    t.exchange as exchange,
    t.market_type as market_type,
    t.symbol as symbol,
    t.bucket_id as bucket_id,
    t.timestamp as happened_at,
    l.known_at as known_at,
    b.bucket_ts_end as as_of
from bucketed_trades as t
inner join late_trades as l
    on t.exchange = l.exchange
    and t.market_type = l.market_type
    and t.symbol = l.symbol
    and t.timestamp = l.timestamp
    and t.trade_seq = l.trade_seq
    and t.text_id = l.text_id
inner join {{ ref('unified_buckets') }} as b
    on t.exchange = b.exchange
    and t.market_type = b.market_type
    and t.symbol = b.symbol
    and t.bucket_id = b.bucket_id
where l.known_at > b.bucket_ts_end
union all
select
    exchange,
    market_type,
    symbol,
    bucket_id,
    fromUnixTimestamp64Micro(arrayMax(tape_us), 'UTC') as happened_at,
    happened_at as known_at,
    bucket_ts_end as as_of
from {{ ref('bucket_tapes') }}
where happened_at > bucket_ts_end
