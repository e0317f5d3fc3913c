{{ config(**bucket_grain()) }}
{%- set window_us = var('vacuum_window_ms') * 1000 %}

-- Depth that collapses within half a second, step by step (it vanishes) or at once and untraded (it is pulled); and icebergs: more is
-- executed at the best than was displayed, and the best is still there. A collapse belongs to the bucket in which it is complete.
with buckets as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        mid_close
    from {{ new_buckets(ref('top_of_book')) }}
),

steps as (
    select
        *,
        toUnixTimestamp64Micro(known_at) as known_us
    from {{ ref('book_steps') }}
    where
        -- the steps of the window before the first, and of the one before that
        known_at >= (select minOrNull(bucket_ts_start) from buckets)
        - toIntervalMillisecond({{ 2 * var('book_max_lag_ms') + var('vacuum_window_ms') }})
        and known_at <= (select maxOrNull(bucket_ts_end) from buckets)
),

with_path as (
    select
        *,
        groupArray((bid_depth, ifNull(bid_depth_before, -1.), bid_executed)) over recent as bid_recent,
        groupArray((ask_depth, ifNull(ask_depth_before, -1.), ask_executed)) over recent as ask_recent
    from steps
    window recent as (
        partition by exchange, market_type, symbol order by known_us range between {{ window_us }} preceding and current row
    )
),

-- The depths before now: the one that the window starts with, where it is known, and those since.
falls as (
    select
        *,
        {%- for side in ['bid', 'ask'] %}
        arrayMax(arrayMap(step -> step.2, {{ side }}_recent)) as {{ side }}_peak,
        if({{ side }}_peak > 0, greatest(1 - {{ side }}_depth / {{ side }}_peak, 0.), 0.) as {{ side }}_fall,
        {{ side }}_fall >= {{ var('vacuum_collapse_share') }} as {{ side }}_is_down,
        {{ var('vacuum_at_once_share') }} * ({{ side }}_peak - {{ side }}_depth) as {{ side }}_large,
        arrayExists(step -> step.2 - step.1 >= {{ side }}_large, {{ side }}_recent) as {{ side }}_at_once,
        arrayExists(step -> step.2 - step.1 - step.3 >= {{ side }}_large, {{ side }}_recent) as {{ side }}_untraded,
        {%- endfor %}
        bid_depth_before is not null as follows
    from with_path
),

onsets as (
    select
        *,
        bid_is_down and not (follows and lagInFrame(bid_is_down) over known) as bid_goes_down,
        ask_is_down and not (follows and lagInFrame(ask_is_down) over known) as ask_goes_down
    from falls
    window known as (partition by exchange, market_type, symbol order by known_us rows between 1 preceding and current row)
),

over_bucket as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        {%- for side in ['bid', 'ask'] %}
        countIf({{ side }}_goes_down and not {{ side }}_at_once) as {{ side }}_vanished,
        countIf({{ side }}_goes_down and {{ side }}_untraded) as {{ side }}_pulled,
        max({{ side }}_fall) as {{ side }}_max_fall,
        countIf({{ side }}_hidden > 0) as {{ side }}_icebergs,
        arraySum(arraySort(groupArray({{ side }}_hidden))) as {{ side }}_hidden_volume,
        {%- endfor %}
        count() as steps
    from onsets
    where known_at >= bucket_ts_start
    group by exchange, market_type, symbol, bucket_id
)

select
    b.exchange as exchange,
    b.market_type as market_type,
    b.symbol as symbol,
    b.bucket_id as bucket_id,
    b.bucket_ts_start as bucket_ts_start,
    b.bucket_ts_end as bucket_ts_end,
    -- a live book that did not change lost nothing; of a dead one nothing is known
    {%- set or_none = 'if(b.mid_close is null, null, 0)' %}
    toUInt32(ifNull(o.bid_vanished, {{ or_none }})) as depth_vanish_count_bid,
    toUInt32(ifNull(o.bid_pulled, {{ or_none }})) as depth_pull_count_bid,
    toFloat64(ifNull(o.bid_max_fall, {{ or_none }})) as depth_fall_max_bid,
    toUInt32(ifNull(o.bid_icebergs, {{ or_none }})) as iceberg_count_bid,
    toFloat64(ifNull(o.bid_hidden_volume, {{ or_none }})) as iceberg_volume_bid,
    toUInt32(ifNull(o.ask_vanished, {{ or_none }})) as depth_vanish_count_ask,
    toUInt32(ifNull(o.ask_pulled, {{ or_none }})) as depth_pull_count_ask,
    toFloat64(ifNull(o.ask_max_fall, {{ or_none }})) as depth_fall_max_ask,
    toUInt32(ifNull(o.ask_icebergs, {{ or_none }})) as iceberg_count_ask,
    toFloat64(ifNull(o.ask_hidden_volume, {{ or_none }})) as iceberg_volume_ask
from buckets as b
left join over_bucket as o
    on b.exchange = o.exchange
    and b.market_type = o.market_type
    and b.symbol = o.symbol
    and b.bucket_id = o.bucket_id
