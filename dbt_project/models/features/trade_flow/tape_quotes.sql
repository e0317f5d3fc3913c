{{ config(**bucket_grain()) }}

-- The quote that each trade of a bucket met, as arrays beside the tape. A book of the trade's own microsecond may already show what
-- the trade left behind: only earlier ones count.
with trades as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        position,
        fromUnixTimestamp64Micro(trade_us - 1, 'UTC') as before_trade
    from {{ new_buckets(ref('bucket_tapes')) }}
    array join
        arrayEnumerate(tape_us) as position,
        tape_us as trade_us
),

quoted as (
    {{ as_of(
        'trades',
        ref('book_asof'),
        {'mid': 'mid', 'bid_price': 'bid', 'ask_price': 'ask'},
        var('book_max_lag_ms'),
        prefix='quote',
        at='before_trade',
    ) }}
),

tapes as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        arraySort(groupArray((position, if(mid is null, null, bid), if(mid is null, null, ask)))) as quotes
    from quoted
    group by exchange, market_type, symbol, bucket_id, bucket_ts_start, bucket_ts_end
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    quotes.2 as tape_bid,
    quotes.3 as tape_ask
from tapes
