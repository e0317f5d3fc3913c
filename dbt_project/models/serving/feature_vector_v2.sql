{{ config(**bucket_grain()) }}
{{ config(settings={'index_granularity': 256, 'min_compress_block_size': 1024, 'max_compress_block_size': 4096}) }}

{#- Every family's model with its columns. Names are unique over all families: see seeds/feature_catalog.csv. -#}
{%- set families = {
    'trade_flow': [
        'trade_count', 'buy_count', 'sell_count', 'volume', 'buy_volume', 'sell_volume', 'flow_imbalance', 'vwap', 'notional',
        'open_price', 'high_price', 'low_price', 'close_price', 'mean_trade_size', 'max_trade_size', 'duration_s', 'trades_per_second',
    ],
    'top_of_book': [
        'mid_close', 'spread_bps_close', 'tob_imbalance_close', 'microprice_close', 'microprice_gap_bps', 'book_age_ms',
        'book_update_count', 'mid_mean', 'spread_bps_mean', 'tob_imbalance_mean', 'ofi',
    ],
    'price_impact': [
        'mid_return', 'kyle_lambda', 'amihud',
    ],
    'vpin': [
        'vpin',
    ],
    'realized_variance': [
        'rv', 'bv', 'jump',
    ],
} %}

-- Version 2 of the public feature row: every feature of the catalogue. Small granules and blocks: the scorer reads single rows.
with buckets as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end
    from {{ new_buckets(ref('unified_buckets')) }}
),

-- days before the first new bucket are not read
{% for model in families -%}
{{ model }} as (
    select *
    from {{ ref(model) }}
    where bucket_ts_start >= (select min(bucket_ts_start) from buckets)
){% if not loop.last %},

{% endif %}
{%- endfor %}

select
    b.exchange as exchange,
    b.market_type as market_type,
    b.symbol as symbol,
    b.bucket_id as bucket_id,
    b.bucket_ts_start as bucket_ts_start,
    b.bucket_ts_end as bucket_ts_end,
    {%- for model, columns in families.items() %}
    {%- for column in columns %}
    {{ model }}.{{ column }} as {{ column }},
    {%- endfor %}
    {%- endfor %}
    toLowCardinality('bucket') as clock
from buckets as b
{% for model in families -%}
inner join {{ model }}
    on b.exchange = {{ model }}.exchange
    and b.market_type = {{ model }}.market_type
    and b.symbol = {{ model }}.symbol
    and b.bucket_id = {{ model }}.bucket_id
{% endfor %}
