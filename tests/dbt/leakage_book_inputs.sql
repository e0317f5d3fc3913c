-- The book at a bucket's end is a raw state with the event time that book_age_ms says, that mid, and known by the end.
-- One row per bucket for which there is none.
with used as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_end,
        mid_close,
        bucket_ts_end - toIntervalMicrosecond(toInt64(round(book_age_ms * 1000))) as book_at
    from {{ ref('top_of_book') }}
    where mid_close is not null
),

-- Only the event times that were used: raw books are many.
states as (
    select
        b.exchange as exchange,
        b.market_type as market_type,
        b.symbol as symbol,
        u.bucket_id as bucket_id
    from {{ ref('stg_orderbooks') }} as b
    inner join used as u
        on b.exchange = u.exchange
        and b.market_type = u.market_type
        and b.symbol = u.symbol
        and b.timestamp = u.book_at
    where
        b.known_at <= u.bucket_ts_end
        and toFloat64(b.bid_price + b.ask_price) / 2 = u.mid_close
)

select
    u.exchange as exchange,
    u.market_type as market_type,
    u.symbol as symbol,
    u.bucket_id as bucket_id,
    u.book_at as book_at,
    u.bucket_ts_end as as_of
from used as u
left anti join states as s
    on u.exchange = s.exchange
    and u.market_type = s.market_type
    and u.symbol = s.symbol
    and u.bucket_id = s.bucket_id
