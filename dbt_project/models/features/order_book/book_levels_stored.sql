{%- set appends = is_incremental() and not is_ranged() %}
{{ config(**bucket_grain(order_by='(exchange, market_type, symbol, known_at, timestamp, last_update_id)', day='known_at')) }}
{{ config(engine='ReplacingMergeTree()') }}

-- Every book state with its first 20 levels a side as arrays, as a materialized view and a backfill write them: `book_levels` is what
-- to read. An append looks back an hour from each instrument's last state: what neither of the two has written yet is found.
with
{% if appends %}
published as (
    select
        exchange,
        market_type,
        symbol,
        max(known_at) - toIntervalHour(1) as resume_at
    from {{ this }}
    group by exchange, market_type, symbol
),

written as (
    select (exchange, market_type, symbol, known_at, timestamp, last_update_id) as row_key
    from {{ this }}
    where known_at >= (select min(resume_at) from published)
),

-- says nothing new beside the condition on resume_at below, but lets ClickHouse skip what every instrument has published
unpublished as (
    select *
    from {{ ref('stg_orderbooks') }}
    where
        known_at >= (select min(resume_at) from published)
        or (exchange, market_type, symbol) not in (select (exchange, market_type, symbol) from published)
),

states as (
    select b.*
    from unpublished as b
    left join published as p
        on b.exchange = p.exchange
        and b.market_type = p.market_type
        and b.symbol = p.symbol
    where
        (p.resume_at is null or b.known_at >= p.resume_at)
        and (b.exchange, b.market_type, b.symbol, b.known_at, b.timestamp, b.last_update_id) not in (select row_key from written)
)
{% else %}
states as (
    select *
    from {{ ref('stg_orderbooks') }}
    {% if is_ranged() %}where known_at >= {{ range_start() }} and known_at < {{ range_end() }}{% endif %}
)
{% endif %}

select
    exchange,
    market_type,
    symbol,
    timestamp,
    last_update_id,
    known_at,
    {{ parsed_levels('bids', 1) }} as bid_prices,
    {{ parsed_levels('bids', 2) }} as bid_quantities,
    {{ parsed_levels('asks', 1) }} as ask_prices,
    {{ parsed_levels('asks', 2) }} as ask_quantities
from states
