-- One row per trade on the clock, with its bucket: the tapes unrolled, for people and for row-wise queries.
select
    exchange,
    market_type,
    symbol,
    bucket_id,
    position,
    fromUnixTimestamp64Micro(trade_us, 'UTC') as timestamp,
    trade_seq,
    if(trade_text_id = '', toString(trade_seq), trade_text_id) as trade_id,
    price,
    quantity,
    if(is_buy, 'buy', 'sell') as side
from {{ ref('bucket_tapes') }}
array join
    arrayEnumerate(tape_us) as position,
    tape_us as trade_us,
    tape_seq as trade_seq,
    tape_id as trade_text_id,
    tape_price as price,
    tape_quantity as quantity,
    tape_is_buy as is_buy
