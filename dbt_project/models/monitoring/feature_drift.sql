{{ config(materialized='table', order_by='(reference, exchange, market_type, symbol, feature)', tags=['drift']) }}
-- One row per reference, instrument and feature: how far its distribution has moved.
with drifted as (
    {{ drift_of('feature') }}
)

select
    reference,
    reference_from,
    reference_to,
    current_from,
    current_to,
    exchange,
    market_type,
    symbol,
    feature,
    feature in (
        select name
        from {{ ref('feature_catalog') }}
        where unit = 'quote'
    ) as is_price,
    reference_known,
    current_known,
    current_counts,
    psi,
    ks,
    ks_p_value
from drifted
