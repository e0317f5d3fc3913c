{{ config(**bucket_grain()) }}

-- The best level at the bucket's end and over the bucket.
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
        {'mid': 'mid_close', 'spread_bps': 'spread_bps_close', 'tob_imbalance': 'tob_imbalance_close', 'microprice': 'microprice_close'},
        var('book_max_lag_ms'),
        prefix='book',
    ) }}
),

ends as (
    select *
    from {{ ref('bucket_ends') }}
    where bucket_ts_end >= (select minOrNull(bucket_ts_start) from buckets)
),

updates as (
    select
        u.exchange as exchange,
        u.market_type as market_type,
        u.symbol as symbol,
        e.bucket_id as bucket_id,
        u.mid as mid,
        u.spread_bps as spread_bps,
        u.tob_imbalance as tob_imbalance,
        u.ofi_increment as ofi_increment,
        (u.known_at, u.timestamp, u.last_update_id) as place
    from {{ ref('book_updates') }} as u
    asof join ends as e
        on u.exchange = e.exchange
        and u.market_type = e.market_type
        and u.symbol = e.symbol
        and u.known_at <= e.bucket_ts_end
    where
        u.known_at >= e.bucket_ts_start
        and u.known_at >= (select minOrNull(bucket_ts_start) from buckets)
),

-- Means of floats are taken in a fixed order, so that a rebuild gives the same bits.
over_bucket as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        count() as book_update_count,
        arraySort(
            groupArrayIf((place, assumeNotNull(mid), assumeNotNull(spread_bps), assumeNotNull(tob_imbalance)), mid is not null)
        ) as valid,
        sum(ofi_increment) as ofi
    from updates
    group by exchange, market_type, symbol, bucket_id
)

select
    c.exchange as exchange,
    c.market_type as market_type,
    c.symbol as symbol,
    c.bucket_id as bucket_id,
    c.bucket_ts_start as bucket_ts_start,
    c.bucket_ts_end as bucket_ts_end,
    c.mid_close as mid_close,
    c.spread_bps_close as spread_bps_close,
    c.tob_imbalance_close as tob_imbalance_close,
    c.microprice_close as microprice_close,
    (c.microprice_close - c.mid_close) / c.mid_close * 10000 as microprice_gap_bps,
    if(c.mid_close is null, null, c.book_age_ms) as book_age_ms,
    toUInt32(ifNull(u.book_update_count, 0)) as book_update_count,
    if(empty(u.valid), null, arrayAvg(u.valid.2)) as mid_mean,
    if(empty(u.valid), null, arrayAvg(u.valid.3)) as spread_bps_mean,
    if(empty(u.valid), null, arrayAvg(u.valid.4)) as tob_imbalance_mean,
    -- no change of a live book is zero imbalance; a dead book is unknown
    coalesce(toFloat64(u.ofi), if(c.mid_close is null, null, 0.)) as ofi
from at_close as c
left join over_bucket as u
    on c.exchange = u.exchange
    and c.market_type = u.market_type
    and c.symbol = u.symbol
    and c.bucket_id = u.bucket_id
