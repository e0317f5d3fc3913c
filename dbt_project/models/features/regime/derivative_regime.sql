{{ config(materialized='view') }}

-- Crowding: a funding rate beyond its threshold while open interest is high among what the instrument itself had seen before.
select
    f.exchange as exchange,
    f.market_type as market_type,
    f.symbol as symbol,
    f.bucket_id as bucket_id,
    f.bucket_ts_start as bucket_ts_start,
    f.bucket_ts_end as bucket_ts_end,
    if(
        f.funding_rate is null or o.open_interest_rank is null,
        null,
        toInt8(multiIf(
            o.open_interest_rank <= {{ var('open_interest_regime_rank') }}, 0,
            f.funding_rate > {{ var('funding_regime_threshold') }}, 2,
            f.funding_rate < -{{ var('funding_regime_threshold') }}, -2,
            0
        ))
    ) as funding_interest_regime
from {{ ref('funding') }} as f
inner join {{ ref('open_interest') }} as o
    on f.exchange = o.exchange
    and f.market_type = o.market_type
    and f.symbol = o.symbol
    and f.bucket_id = o.bucket_id
