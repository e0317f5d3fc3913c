-- What a bucket says about its book updates comes from updates known after the end of the bucket before, not before its own
-- start, and not after its own end. Counted here without assigning updates to buckets: by running totals at those moments.
-- One row per bucket that knows of more updates than that, or of as many with another imbalance.
with totals as (
    select
        exchange,
        market_type,
        symbol,
        known_at,
        sum(known_now) over so_far as updates,
        sum(imbalance_now) over so_far as imbalance
    from (
        select
            exchange,
            market_type,
            symbol,
            known_at,
            count() as known_now,
            toDecimal128(sum(ifNull(ofi_increment, 0)), 8) as imbalance_now
        from {{ ref('book_updates') }}
        group by exchange, market_type, symbol, known_at
    )
    window so_far as (
        partition by exchange, market_type, symbol
        order by known_at
        rows between unbounded preceding and current row
    )
),

buckets as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_end,
        greatest(
            bucket_ts_start - toIntervalMicrosecond(1),
            lagInFrame(bucket_ts_end) over (partition by exchange, market_type, symbol order by bucket_id)
        ) as taken_until
    from {{ ref('unified_buckets') }}
),

-- join_use_nulls: before the first update there is no row, which is none
known_by_end as (
    select
        b.*,
        ifNull(t.updates, 0) as updates_at_end,
        ifNull(t.imbalance, 0) as imbalance_at_end
    from buckets as b
    asof left join totals as t
        on b.exchange = t.exchange
        and b.market_type = t.market_type
        and b.symbol = t.symbol
        and b.bucket_ts_end >= t.known_at
),

known as (
    select
        b.exchange as exchange,
        b.market_type as market_type,
        b.symbol as symbol,
        b.bucket_id as bucket_id,
        b.bucket_ts_end as bucket_ts_end,
        b.updates_at_end - ifNull(t.updates, 0) as updates,
        b.imbalance_at_end - ifNull(t.imbalance, 0) as imbalance
    from known_by_end as b
    asof left join totals as t
        on b.exchange = t.exchange
        and b.market_type = t.market_type
        and b.symbol = t.symbol
        and b.taken_until >= t.known_at
)

select
    k.exchange as exchange,
    k.market_type as market_type,
    k.symbol as symbol,
    k.bucket_id as bucket_id,
    k.bucket_ts_end as as_of,
    f.book_update_count as book_update_count,
    k.updates as known_updates,
    f.ofi as ofi,
    k.imbalance as known_imbalance
from {{ ref('top_of_book') }} as f
inner join known as k
    on f.exchange = k.exchange
    and f.market_type = k.market_type
    and f.symbol = k.symbol
    and f.bucket_id = k.bucket_id
where
    f.book_update_count > k.updates
    -- a NULL increment adds nothing; a bucket of nothing but those has no imbalance of its own
    or (f.book_update_count = k.updates and f.ofi is not null and f.ofi != toFloat64(k.imbalance))
