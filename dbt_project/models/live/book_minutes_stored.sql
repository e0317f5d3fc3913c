{%- set appends = is_incremental() and not is_ranged() %}
{{ config(**bucket_grain(order_by='(exchange, market_type, symbol, minute_start)', day='minute_start')) }}
{{ config(
    engine='AggregatingMergeTree()',
    settings={'non_replicated_deduplication_window': 10000, 'replicated_deduplication_window': 10000},
) }}

-- The best level per minute, as the materialized view and this backfill write it: `book_minutes` is what to read.
--
-- An append adds what the view has missed. It looks back an hour from the last minute of the instrument that is furthest behind, and at
-- rows that have been there for `live_settle_s`: younger ones may be on their way through the view.
-- The deduplication window is the view's: a block that a killed load sends again under its token is not added twice.
with
{% if appends %}
known as (
    select
        (exchange, market_type, symbol) as instrument,
        toDateTime64(max(minute_start), 6, 'UTC') - toIntervalHour(1) as resume_at
    from {{ this }}
    group by instrument
),
{% endif %}

raw as (
    select
        exchange,
        market_type,
        symbol,
        timestamp,
        last_update_id,
        best_bid_price,
        best_ask_price,
        best_bid_quantity,
        best_ask_quantity,
        known_at
    from {{ raw_rows('orderbooks') }}
    where
        {{ feeds_the_clock('orderbooks') }}
        {%- if is_ranged() %}
        and known_at >= {{ range_start() }}
        and known_at < {{ range_end() }}
        {%- elif appends %}
        and created_at <= now64(3, 'UTC') - toIntervalSecond({{ var('live_settle_s') }})
        and (known_at >= (select min(resume_at) from known) or (exchange, market_type, symbol) not in (select instrument from known))
        {%- endif %}
),

counted as (
    {{ book_minute_sums('raw') }}
)

{{ missed_minutes(
    rows='state_count', sums=['two_sided_count', 'mid_sum_2', 'spread_bps_sum', 'tob_imbalance_sum'], highs=['newest_state']
) }}
