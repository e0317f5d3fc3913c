{%- set models = {
    'footprint_clusters': 'known_at',
    'hawkes_fits': 'bucket_ts_end',
    'pair_information_shares': 'known_at',
    'pin_daily': 'known_at',
    'trade_clusters': 'bucket_ts_end',
    'wavelet_energy': 'bucket_ts_end',
} -%}
-- One row per model, instrument, hour and reason: rows whose function raised, and whose features are NULL for it.
{% for model, time in models.items() -%}
select
    '{{ model }}' as model_name,
    exchange,
    market_type,
    symbol,
    toStartOfHour({{ time }}) as hour,
    assumeNotNull(udf_error) as reason,
    count() as failed_rows
from {{ ref(model) }}
where udf_error is not null
group by exchange, market_type, symbol, hour, reason
{%- if not loop.last %}
union all
{% endif %}
{%- endfor %}
