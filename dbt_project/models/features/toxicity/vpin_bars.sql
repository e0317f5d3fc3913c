{{ config(**bucket_grain()) }}
{%- set appends = is_incremental() and not is_ranged() %}
{%- set n = var('rolling_buckets') %}

-- Bars of exactly equal volume: a trade that reaches over a bar's end is split. They start anew at every anchor, with the anchor's own
-- q_bucket as their volume, so that any day can be rebuilt alone. Whole numbers of 1e-8 throughout: nothing is rounded.
with
{% if appends %}
published as (
    select
        exchange,
        market_type,
        symbol,
        argMax((anchor_ts, traded_in_anchor, bought_in_anchor, bought_in_bars), bucket_id) as last_bucket
    from {{ this }}
    group by exchange, market_type, symbol
),
{% endif %}

tapes as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        anchor_ts,
        toInt128(reinterpret(q_bucket, 'Int64')) as bar_volume,
        arrayMap(q -> toInt128(reinterpret(q, 'Int64')), tape_quantity) as traded,
        arrayMap((q, is_buy) -> if(is_buy, q, toInt128(0)), traded, tape_is_buy) as bought
    from {{ new_buckets(ref('bucket_tapes')) }}
),

-- What had traded in the anchor, and what of it was bought, before each trade.
running as (
    select
        t.exchange as exchange,
        t.market_type as market_type,
        t.symbol as symbol,
        t.bucket_id as bucket_id,
        t.bucket_ts_start as bucket_ts_start,
        t.bucket_ts_end as bucket_ts_end,
        t.anchor_ts as anchor_ts,
        t.bar_volume as bar_volume,
        t.traded as traded,
        t.bought as bought,
        {% if appends %}
        if(p.last_bucket.1 = t.anchor_ts, assumeNotNull(p.last_bucket.2), toInt128(0)) as traded_at_start,
        if(p.last_bucket.1 = t.anchor_ts, assumeNotNull(p.last_bucket.3), toInt128(0)) as bought_at_start,
        if(p.last_bucket.1 = t.anchor_ts, assumeNotNull(p.last_bucket.4), toInt128(0)) as in_bars_at_start,
        {% else %}
        toInt128(0) as traded_at_start,
        toInt128(0) as bought_at_start,
        toInt128(0) as in_bars_at_start,
        {% endif %}
        traded_at_start + sum(arraySum(t.traded)) over earlier as traded_before,
        bought_at_start + sum(arraySum(t.bought)) over earlier as bought_before,
        traded_before + arraySum(t.traded) as traded_in_anchor,
        bought_before + arraySum(t.bought) as bought_in_anchor,
        intDiv(traded_in_anchor, t.bar_volume) as last_bar,
        last_bar - intDiv(traded_before, t.bar_volume) as closed_bars
    from tapes as t
    {% if appends %}
    left join published as p
        on t.exchange = p.exchange
        and t.market_type = p.market_type
        and t.symbol = p.symbol
    {% endif %}
    window earlier as (
        partition by exchange, market_type, symbol, anchor_ts
        order by bucket_id
        rows between unbounded preceding and 1 preceding
    )
),

-- What had been bought when each bar ended. Of more than {{ n }} bars in one bucket only the last are asked for, and the end before them.
bar_ends as (
    select
        * except (traded, bought),
        arrayFlatten(arrayMap(
            (quantity, buys, upto, bought_upto) -> arrayMap(
                bar -> bought_upto - if(buys = 0, 0, upto - bar * bar_volume),
                range(
                    toUInt64(greatest(intDiv(upto - quantity, bar_volume) + 1, last_bar - {{ n }})),
                    toUInt64(intDiv(upto, bar_volume) + 1)
                )
            ),
            traded,
            bought,
            arrayMap(x -> traded_before + x, arrayCumSum(traded)),
            arrayMap(x -> bought_before + x, arrayCumSum(bought))
        )) as bought_at_ends,
        -- what is bought only grows: the greatest is the last
        greatest(
            in_bars_at_start,
            max(if(empty(bought_at_ends), toInt128(0), bought_at_ends[-1])) over (
                partition by exchange, market_type, symbol, anchor_ts
                order by bucket_id
                rows between unbounded preceding and 1 preceding
            )
        ) as bought_in_bars_before
    from running
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    anchor_ts,
    bar_volume,
    toUInt64(closed_bars) as closed_bars,
    arrayMap(
        of_bar -> abs(2 * of_bar - bar_volume),
        arrayPopFront(arrayDifference(
            if(closed_bars > {{ n }}, bought_at_ends, arrayPushFront(bought_at_ends, bought_in_bars_before))
        ))
    ) as imbalances,
    traded_in_anchor,
    bought_in_anchor,
    if(empty(bought_at_ends), bought_in_bars_before, bought_at_ends[-1]) as bought_in_bars
from bar_ends
