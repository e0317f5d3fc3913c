{%- set appends = is_incremental() and not is_ranged() %}
{{ config(**bucket_grain(order_by='(exchange, market_type, symbol, minute_start, price)', day='minute_start')) }}
{{ config(
    engine='AggregatingMergeTree()',
    settings={'non_replicated_deduplication_window': 10000, 'replicated_deduplication_window': 10000},
) }}

-- What traded per minute and price, as the materialized view and this backfill write it: `footprint_minutes` is what to read.
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
        price,
        quantity,
        side,
        known_at
    from {{ raw_rows('trades', also=['trade_seq']) }}
    where
        {{ feeds_the_clock('trades') }}
        {%- if is_ranged() %}
        and timestamp >= {{ range_start() }}
        and timestamp < {{ range_end() }}
        {%- elif appends %}
        and created_at <= now64(3, 'UTC') - toIntervalSecond({{ var('live_settle_s') }})
        and (timestamp >= (select min(resume_at) from known) or (exchange, market_type, symbol) not in (select instrument from known))
        {%- endif %}
),

counted as (
    {{ footprint_minute_sums('raw') }}
)

{{ missed_minutes(
    rows='trade_count', sums=['buy_volume', 'sell_volume'], also=['price']
) }}
