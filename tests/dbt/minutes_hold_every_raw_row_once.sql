-- What views and backfill have summed of a minute is what its raw rows say: nothing missed (rows younger than live_settle_s may be on
-- their way), nothing twice. A minute without raw rows is older than their TTL. What is found here a ranged rebuild of the day mends.
with rows_known as (
    select
        'trades' as kind,
        exchange,
        market_type,
        symbol,
        toStartOfMinute(known_at) as minute_start,
        quantity,
        created_at <= now64(3, 'UTC') - toIntervalSecond({{ var('live_settle_s') }}) as is_settled
    from {{ raw_rows('trades') }}
    where {{ feeds_the_clock('trades') }} and known_at <= timestamp
    union all
    select
        'orderbooks' as kind,
        exchange,
        market_type,
        symbol,
        toStartOfMinute(known_at) as minute_start,
        toDecimal64(0, 8) as quantity,
        created_at <= now64(3, 'UTC') - toIntervalSecond({{ var('live_settle_s') }}) as is_settled
    from {{ raw_rows('orderbooks') }}
    where {{ feeds_the_clock('orderbooks') }} and known_at <= timestamp + toIntervalMillisecond({{ var('book_max_lag_ms') }})
),

raw as (
    select
        kind,
        exchange,
        market_type,
        symbol,
        minute_start,
        toInt64(countIf(is_settled)) as settled_rows,
        toInt64(count()) as all_rows,
        sumIf(quantity, is_settled) as settled_volume,
        sum(quantity) as whole_volume
    from rows_known
    group by kind, exchange, market_type, symbol, minute_start
),

stored as (
    select
        'trades' as kind,
        exchange,
        market_type,
        symbol,
        minute_start,
        toInt64(sum(trade_count)) as stored_rows,
        sum(volume) as stored_volume
    from {{ ref('trade_minutes_stored') }}
    group by exchange, market_type, symbol, minute_start
    union all
    select
        'trades' as kind,
        exchange,
        market_type,
        symbol,
        minute_start,
        toInt64(sum(trade_count)) as stored_rows,
        sum(buy_volume + sell_volume) as stored_volume
    from {{ ref('footprint_minutes_stored') }}
    group by exchange, market_type, symbol, minute_start
    union all
    select
        'orderbooks' as kind,
        exchange,
        market_type,
        symbol,
        minute_start,
        toInt64(sum(state_count)) as stored_rows,
        toDecimal128(0, 8) as stored_volume
    from {{ ref('book_minutes_stored') }}
    group by exchange, market_type, symbol, minute_start
),

-- trades are stored twice: per minute, and per minute and price
held as (
    select
        r.kind as kind,
        r.exchange as exchange,
        r.market_type as market_type,
        r.symbol as symbol,
        r.minute_start as minute_start,
        any(r.settled_rows) as settled_rows,
        any(r.all_rows) as all_rows,
        any(r.settled_volume) as settled_volume,
        any(r.whole_volume) as whole_volume,
        count(s.stored_rows) as times_stored,
        min(s.stored_rows) as fewest_rows,
        max(s.stored_rows) as most_rows,
        min(s.stored_volume) as least_volume,
        max(s.stored_volume) as most_volume
    from raw as r
    left join stored as s
        on r.kind = s.kind
        and r.exchange = s.exchange
        and r.market_type = s.market_type
        and r.symbol = s.symbol
        and r.minute_start = s.minute_start
    group by kind, exchange, market_type, symbol, minute_start
)

select *
from held
where
    (settled_rows > 0 and times_stored < if(kind = 'trades', 2, 1))
    or fewest_rows < settled_rows
    or most_rows > all_rows
    or least_volume < settled_volume
    or most_volume > whole_volume
