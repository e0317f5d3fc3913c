{{ config(**bucket_grain()) }}
{{ config(settings={'index_granularity': 256, 'min_compress_block_size': 1024, 'max_compress_block_size': 4096}) }}

{%- set sides = ['bid', 'ask'] %}
{%- set levels = range(1, 11) %}
{#- Without the unit of an instrument (but for ofi), so that one network reads many: the tape and the touch,
    then what is slow or elsewhere. -#}
{%- set features = [
    'flow_imbalance', 'trades_per_second', 'duration_s', 'mid_return', 'vpin', 'rv', 'jump', 'active_step_share',
    'print_run_mean', 'micro_momentum_10_bps', 'sweep_share_buy', 'sweep_share_sell',
    'tob_imbalance_mean', 'microprice_gap_bps', 'ofi',
    'funding_rate', 'basis_bps', 'open_interest_log_change', 'cointegration_residual_z',
    'realized_volatility_60s', 'realized_volatility_rank', 'trade_intensity_rank', 'volatility_ratio',
] %}

-- One time step of a sequence model: the scorer and training take the last rows of an instrument as they lie here.
-- Small granules and blocks: as in feature_vector.
with buckets as (
    select
        {%- for name in features %}
        {{ name }},
        {%- endfor %}
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end
    from {{ new_buckets(ref('feature_vector', v=2)) }}
),

-- days before the first new bucket are not read
books as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        {%- for side in sides %}
        arraySlice({{ side }}_distances_bps, 1, 10) as {{ side }}_gaps,
        arraySlice({{ side }}_quantities, 1, 10) as {{ side }}_sizes,
        {%- endfor %}
        arrayAvg(arrayConcat(bid_sizes, ask_sizes)) as mean_size
    from {{ ref('closing_book') }}
    where bucket_ts_start >= (select min(bucket_ts_start) from buckets)
)

-- a level that is not shown is unknown, not empty
select
    b.exchange as exchange,
    b.market_type as market_type,
    b.symbol as symbol,
    b.bucket_id as bucket_id,
    b.bucket_ts_start as bucket_ts_start,
    b.bucket_ts_end as bucket_ts_end,
    {%- for side in sides %}
    {%- for i in levels %}
    if(length(books.{{ side }}_gaps) >= {{ i }}, books.{{ side }}_gaps[{{ i }}], null) as {{ side }}_gap_bps_{{ i }},
    {%- endfor %}
    {%- for i in levels %}
    if(length(books.{{ side }}_sizes) >= {{ i }}, log1p(books.{{ side }}_sizes[{{ i }}] / books.mean_size), null)
        as {{ side }}_size_{{ i }},
    {%- endfor %}
    {%- endfor %}
    {%- for name in features %}
    b.{{ name }} as {{ name }}{% if not loop.last %},{% endif %}
    {%- endfor %}
from buckets as b
inner join books
    on b.exchange = books.exchange
    and b.market_type = books.market_type
    and b.symbol = books.symbol
    and b.bucket_id = books.bucket_id
