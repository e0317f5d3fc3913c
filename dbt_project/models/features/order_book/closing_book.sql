{{ config(**bucket_grain()) }}

-- The book at the bucket's end, level by level: the state that top_of_book describes by its best level.
with buckets as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end
    from {{ new_buckets(ref('unified_buckets')) }}
),

at_close as (
    {{ as_of(
        'buckets',
        ref('book_asof'),
        {'known_at': 'state_known_at', 'timestamp': 'state_timestamp', 'last_update_id': 'state_update_id', 'mid': 'state_mid'},
        var('book_max_lag_ms'),
        prefix='book',
    ) }}
),

-- only the states that close a bucket are read, of many more
levels as (
    select *
    from {{ ref('book_levels') }}
    where
        (exchange, market_type, symbol, known_at, timestamp, last_update_id) in (
            select
                exchange,
                market_type,
                symbol,
                assumeNotNull(state_known_at) as known_at,
                assumeNotNull(state_timestamp) as timestamp,
                assumeNotNull(state_update_id) as last_update_id
            from at_close
            where state_mid is not null
        )
),

books as (
    select
        c.exchange as exchange,
        c.market_type as market_type,
        c.symbol as symbol,
        c.bucket_id as bucket_id,
        c.bucket_ts_start as bucket_ts_start,
        c.bucket_ts_end as bucket_ts_end,
        ifNull({{ has_usable_levels('l', 'c.state_mid') }}, 0) as is_usable,
        if(is_usable, c.state_known_at, null) as state_known_at,
        if(is_usable, c.state_timestamp, null) as state_timestamp,
        if(is_usable, c.state_mid, null) as mid,
        if(is_usable, l.bid_prices, []) as bid_prices,
        if(is_usable, l.bid_quantities, []) as bid_quantities,
        if(is_usable, l.ask_prices, []) as ask_prices,
        if(is_usable, l.ask_quantities, []) as ask_quantities
    from at_close as c
    left join levels as l
        on c.exchange = l.exchange
        and c.market_type = l.market_type
        and c.symbol = l.symbol
        and c.state_known_at = l.known_at
        and c.state_timestamp = l.timestamp
        and c.state_update_id = l.last_update_id
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    state_known_at,
    state_timestamp,
    mid,
    bid_prices,
    bid_quantities,
    ask_prices,
    ask_quantities,
    arrayMap(price -> (assumeNotNull(mid) - price) / assumeNotNull(mid) * 10000, bid_prices) as bid_distances_bps,
    arrayMap(price -> (price - assumeNotNull(mid)) / assumeNotNull(mid) * 10000, ask_prices) as ask_distances_bps
from books
