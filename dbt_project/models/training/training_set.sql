{{ config(
    materialized='table',
    partition_by='toYYYYMMDD(bucket_ts_start)',
    order_by='(bucket_ts_end, exchange, market_type, symbol, bucket_id)',
) }}

-- Features as of the bucket's end beside what came after it. Split by time and purge by label_known_at_*: never at random.
-- `f.*`: the contract names every column. `clock` is left out: training knows the logical clock alone.
select
    f.* except (clock), -- noqa: AM04
    {%- for k in [1, 3, 5] %}
    l.label_ret_ps_{{ k }} as label_ret_ps_{{ k }},
    l.label_cls_{{ k }} as label_cls_{{ k }},
    l.label_known_at_{{ k }} as label_known_at_{{ k }},
    {%- endfor %}
    {%- for h in [5, 10, 30, 60, 300] %}
    l.label_ret_{{ h }}s as label_ret_{{ h }}s,
    l.label_cls_{{ h }}s as label_cls_{{ h }}s,
    l.label_known_at_{{ h }}s as label_known_at_{{ h }}s{%- if not loop.last %},{% endif %}
    {%- endfor %}
from {{ ref('feature_vector', v=2) }} as f
inner join {{ ref('bucket_labels') }} as l
    on f.exchange = l.exchange
    and f.market_type = l.market_type
    and f.symbol = l.symbol
    and f.bucket_id = l.bucket_id
