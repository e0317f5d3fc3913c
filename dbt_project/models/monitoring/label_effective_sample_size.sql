{{ config(materialized='table', order_by='(horizon, exchange, market_type, symbol)') }}
{%- set weights = [] %}
{%- for name in ['1', '3', '5', '10', '5s', '10s', '30s', '60s', '300s', 'barrier_60s', 'barrier_300s'] %}
{%- do weights.append("('" ~ name ~ "', label_overlap_" ~ name ~ ", label_uniqueness_" ~ name ~ ")") %}
{%- endfor %}

-- How many labels there really are: thousands of buckets may hold the outcomes of a few independent hours.
with weights as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        weight.1 as horizon,
        weight.2 as overlap,
        assumeNotNull(weight.3) as uniqueness
    from {{ ref('label_weights') }}
    array join
        [
            {{ weights | join(',\n            ') }}
        ] as weight
    where weight.3 is not null
),

sums as (
    select
        exchange,
        market_type,
        symbol,
        horizon,
        count() as labels,
        -- in the order of the buckets: the same bits in every build
        arraySort(groupArray((bucket_id, uniqueness))).2 as ordered,
        toUInt32(max(overlap)) as largest_overlap
    from weights
    group by exchange, market_type, symbol, horizon
)

select
    exchange,
    market_type,
    symbol,
    horizon,
    labels,
    arraySum(ordered) as effective_labels,
    effective_labels / labels as mean_uniqueness,
    effective_labels * effective_labels / arraySum(arrayMap(w -> w * w, ordered)) as kish_size,
    largest_overlap
from sums
