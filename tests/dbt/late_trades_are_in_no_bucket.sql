-- What was known after its event is not on the clock. One row per late trade that is in a bucket.
with late as (
    select
        exchange,
        market_type,
        symbol,
        timestamp,
        trade_seq,
        if(trade_seq = 0, trade_id, '') as text_id
    from {{ ref('stg_trades') }}
    where not is_on_time
)

select
    t.exchange as exchange,
    t.market_type as market_type,
    t.symbol as symbol,
    t.bucket_id as bucket_id,
    t.timestamp as timestamp,
    t.trade_id as trade_id
from {{ ref('bucket_trades') }} as t
inner join late as l
    on t.exchange = l.exchange
    and t.market_type = l.market_type
    and t.symbol = l.symbol
    and t.timestamp = l.timestamp
    and t.trade_seq = l.trade_seq
where t.trade_seq > 0 or t.trade_id = l.text_id
