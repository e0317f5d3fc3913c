{{ config(materialized='table', partition_by='toYYYYMMDD(bucket_ts_start)', order_by='(bucket_ts_end, exchange, market_type, symbol, bucket_id)') }}

-- Features as of the bucket's end beside what came after it. Split by time and purge by label_known_at_*: never at random.
select
    f.*,
    {%- for suffix in ['1', '3', '5', '5s', '10s', '30s', '60s', '300s'] %}
    l.label_ret_{{ 'ps_' if suffix | length == 1 }}{{ suffix }} as label_ret_{{ 'ps_' if suffix | length == 1 }}{{ suffix }},
    l.label_cls_{{ suffix }} as label_cls_{{ suffix }},
    l.label_known_at_{{ suffix }} as label_known_at_{{ suffix }}{{ ',' if not loop.last }}
    {%- endfor %}
from {{ ref('feature_vector', v=1) }} as f
inner join {{ ref('bucket_labels') }} as l
    on f.exchange = l.exchange
    and f.market_type = l.market_type
    and f.symbol = l.symbol
    and f.bucket_id = l.bucket_id
