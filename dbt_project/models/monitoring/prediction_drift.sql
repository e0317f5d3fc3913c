{{ config(materialized='table', order_by='(reference, exchange, market_type, symbol, model_name, model_version)', tags=['drift']) }}
-- One row per reference, instrument and model: how far its distribution has moved.
with drifted as (
    {{ drift_of('prediction') }}
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
    splitByChar(':', feature)[1] as model_name,
    splitByChar(':', feature)[2] as model_version,
    reference_known,
    current_known,
    current_counts,
    psi,
    ks,
    ks_p_value
from drifted
