-- One row per instrument and bucket: the move of the mid since the bucket before, beside what traded. Input of the rolling families.
select
    f.exchange as exchange,
    f.market_type as market_type,
    f.symbol as symbol,
    f.bucket_id as bucket_id,
    f.bucket_ts_start as bucket_ts_start,
    f.bucket_ts_end as bucket_ts_end,
    f.volume as volume,
    f.notional as notional,
    f.buy_volume - f.sell_volume as signed_volume,
    b.mid_close as mid_close
from {{ ref('trade_flow') }} as f
inner join {{ ref('top_of_book') }} as b
    on f.exchange = b.exchange
    and f.market_type = b.market_type
    and f.symbol = b.symbol
    and f.bucket_id = b.bucket_id
