{{ config(**bucket_grain()) }}
{%- set n = var('rolling_buckets') %}

-- Open interest that builds up while the book leans and its spread narrows: what precedes a squeeze.
with books as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        is_new,
        tob_imbalance_close as imbalance,
        1 / spread_bps_close as tightness
    from {{ new_buckets(ref('top_of_book'), context=n) }}
),

windows as (
    select
        *,
        groupArray(imbalance) over {{ past(n) }} as imbalances,
        groupArray(tightness) over {{ past(n) }} as tightnesses
    from books
),

interests as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        open_interest_change_z
    from {{ ref('open_interest') }}
    where bucket_ts_start >= (select minOrNull(bucket_ts_start) from books)
)

select
    w.exchange as exchange,
    w.market_type as market_type,
    w.symbol as symbol,
    w.bucket_id as bucket_id,
    w.bucket_ts_start as bucket_ts_start,
    w.bucket_ts_end as bucket_ts_end,
    {{ z_score('w.imbalance', 'w.imbalances') }} as tob_imbalance_z,
    {{ z_score('w.tightness', 'w.tightnesses') }} as inverse_spread_z,
    -- the sign is the side that the book leans to; a falling open interest or a widening spread is no squeeze
    if(
        o.open_interest_change_z is null or inverse_spread_z is null,
        null,
        greatest(o.open_interest_change_z, 0) * tob_imbalance_z * greatest(inverse_spread_z, 0)
    ) as squeeze_score
from windows as w
inner join interests as o
    on w.exchange = o.exchange
    and w.market_type = o.market_type
    and w.symbol = o.symbol
    and w.bucket_id = o.bucket_id
where w.is_new = 1
