{{ config(**bucket_grain()) }}
{%- set n = var('rolling_buckets') %}
{%- set horizons = [1, 5, 30] %}

-- What taking liquidity cost: at once, after the mid had answered, and as the bounce of prices tells it.
with joined as (
    select
        s.exchange as exchange,
        s.market_type as market_type,
        s.symbol as symbol,
        s.bucket_id as bucket_id,
        s.bucket_ts_start as bucket_ts_start,
        s.bucket_ts_end as bucket_ts_end,
        s.is_new as is_new,
        {%- for h in horizons %}
        s.settled_volume_{{ h }}s as settled_volume_{{ h }}s,
        s.realized_{{ h }}s as realized_{{ h }}s,
        s.impact_{{ h }}s as impact_{{ h }}s,
        {%- endfor %}
        t.tape_price as tape_price,
        t.tape_quantity as tape_quantity,
        t.tape_is_buy as tape_is_buy,
        q.tape_bid as tape_bid,
        q.tape_ask as tape_ask
    from {{ new_buckets(ref('settled_trades'), context=n) }} as s
    inner join {{ ref('bucket_tapes') }} as t
        on s.exchange = t.exchange
        and s.market_type = t.market_type
        and s.symbol = t.symbol
        and s.bucket_id = t.bucket_id
    inner join {{ ref('tape_quotes') }} as q
        on s.exchange = q.exchange
        and s.market_type = q.market_type
        and s.symbol = q.symbol
        and s.bucket_id = q.bucket_id
),

-- A trade without a quote weighs nothing. Prices also as whole numbers of 1e-8, so that their sums are exact.
tapes as (
    select
        * except (tape_price, tape_quantity, tape_bid, tape_ask),
        arrayPopFront(arrayDifference(arrayMap(p -> reinterpret(p, 'Int64'), tape_price))) as changes,
        arrayMap(p -> toFloat64(p), tape_price) as prices,
        prices[-1] as last_price,
        arrayMap((quantity, bid) -> if(bid is null, 0, toFloat64(quantity)), tape_quantity, tape_bid) as weights,
        arrayMap(bid -> toFloat64(ifNull(bid, 1)), tape_bid) as bids,
        arrayMap(ask -> toFloat64(ifNull(ask, 1)), tape_ask) as asks
    from joined
),

buckets as (
    select
        * except (changes, weights, bids, asks, prices, tape_is_buy),
        arraySum(weights) as quoted_volume,
        arraySum(
            (w, bid, ask, price, is_buy) -> w * 2 * if(is_buy, 1, -1) * (price - (bid + ask) / 2) / ((bid + ask) / 2),
            weights, bids, asks, prices, tape_is_buy
        ) as effective,
        arraySum((w, bid, ask) -> w * (ask - bid) / ((bid + ask) / 2), weights, bids, asks) as quoted,
        arraySum(
            (w, bid, ask, price, is_buy) -> if(if(is_buy, price < ask, price > bid), w, 0),
            weights, bids, asks, prices, tape_is_buy
        ) as improved,
        greatest(length(changes), 1) - 1 as pairs,
        arraySum(c -> toInt128(c), arrayPopFront(changes)) as later_changes,
        arraySum(c -> toInt128(c), arrayPopBack(changes)) as earlier_changes,
        arraySum((c, d) -> toInt128(c) * d, arrayPopFront(changes), arrayPopBack(changes)) as products
    from tapes
),

windows as (
    select
        *,
        {%- for h in horizons %}
        arraySum(groupArray(settled_volume_{{ h }}s) over {{ past(n) }}) as settled_{{ h }}s,
        arraySum(groupArray(realized_{{ h }}s) over {{ past(n) }}) / nullIf(settled_{{ h }}s, 0) as realized_spread_{{ h }}s,
        arraySum(groupArray(impact_{{ h }}s) over {{ past(n) }}) / nullIf(settled_{{ h }}s, 0) as price_impact_{{ h }}s,
        {%- endfor %}
        sum(pairs) over {{ past(n) }} as all_pairs,
        -- n^2 times the covariance, exact
        toInt256(all_pairs) * sum(products) over {{ past(n) }}
        - toInt256(sum(later_changes) over {{ past(n) }}) * sum(earlier_changes) over {{ past(n) }} as scaled_covariance
    from buckets
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    effective / nullIf(quoted_volume, 0) * 10000 as effective_spread_bps,
    quoted / nullIf(quoted_volume, 0) * 10000 as quoted_spread_traded_bps,
    effective / nullIf(quoted, 0) as effective_to_quoted_ratio,
    improved / nullIf(quoted_volume, 0) as price_improvement_share,
    {%- for h in horizons %}
    realized_spread_{{ h }}s * 10000 as realized_spread_{{ h }}s_bps,
    price_impact_{{ h }}s * 10000 as price_impact_{{ h }}s_bps,
    {%- endfor %}
    if(
        all_pairs >= 10 and scaled_covariance < 0,
        2 * sqrt(-toFloat64(scaled_covariance)) / all_pairs / 1e8 / last_price * 10000,
        null
    ) as roll_spread_bps
from windows
where is_new = 1
