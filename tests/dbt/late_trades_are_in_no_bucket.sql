-- What was known after its event is not on the clock. One row per late trade that is in a bucket.
select
    exchange,
    market_type,
    symbol,
    bucket_id,
    timestamp,
    trade_id
from {{ ref('bucket_trades') }}
where (exchange, market_type, symbol, timestamp, trade_seq, if(trade_seq = 0, trade_id, '')) in (
    select
        exchange,
        market_type,
        symbol,
        timestamp,
        trade_seq,
        if(trade_seq = 0, trade_id, '')
    from {{ ref('stg_trades') }}
    where not is_on_time
)
