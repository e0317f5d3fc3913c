{{ config(
    materialized='table',
    partition_by='toYYYYMMDD(bucket_ts_start)',
    order_by='(bucket_ts_end, exchange, market_type, symbol, bucket_id)',
) }}

with labels as (
    select
        l.exchange as exchange,
        l.market_type as market_type,
        l.symbol as symbol,
        l.bucket_id as bucket_id,
        {%- for k in [1, 3, 5, 10] %}
        l.expected_duration_{{ k }}_s as expected_duration_{{ k }}_s,
        l.label_ret_ps_{{ k }} as label_ret_ps_{{ k }},
        l.label_cls_{{ k }} as label_cls_{{ k }},
        l.label_ret_wins_{{ k }} as label_ret_wins_{{ k }},
        l.label_ret_raw_{{ k }} as label_ret_raw_{{ k }},
        w.label_uniqueness_{{ k }} as label_uniqueness_{{ k }},
        l.label_known_at_{{ k }} as label_known_at_{{ k }},
        {%- endfor %}
        {%- for h in [5, 10, 30, 60, 300] %}
        l.label_ret_{{ h }}s as label_ret_{{ h }}s,
        l.label_cls_{{ h }}s as label_cls_{{ h }}s,
        {%- if h in [10, 60, 300] %}
        p.label_mfe_{{ h }}s as label_mfe_{{ h }}s,
        p.label_mae_{{ h }}s as label_mae_{{ h }}s,
        {%- endif %}
        w.label_uniqueness_{{ h }}s as label_uniqueness_{{ h }}s,
        l.label_known_at_{{ h }}s as label_known_at_{{ h }}s,
        {%- endfor %}
        {%- for h in [60, 300] %}
        p.label_barrier_{{ h }}s as label_barrier_{{ h }}s,
        p.label_ret_barrier_{{ h }}s as label_ret_barrier_{{ h }}s,
        w.label_uniqueness_barrier_{{ h }}s as label_uniqueness_barrier_{{ h }}s,
        p.label_known_at_barrier_{{ h }}s as label_known_at_barrier_{{ h }}s{%- if not loop.last %},{% endif %}
        {%- endfor %}
    from {{ ref('bucket_labels') }} as l
    inner join {{ ref('path_labels') }} as p
        on l.exchange = p.exchange
        and l.market_type = p.market_type
        and l.symbol = p.symbol
        and l.bucket_id = p.bucket_id
    inner join {{ ref('label_weights') }} as w
        on l.exchange = w.exchange
        and l.market_type = w.market_type
        and l.symbol = w.symbol
        and l.bucket_id = w.bucket_id
)

-- Features as of the bucket's end beside what came after it. Split by time and purge by label_known_at_*: never at random.
-- `f.*`: the contract names every column. `clock` is left out: training knows the logical clock alone.
select
    f.* except (clock), -- noqa: AM04
    l.* except (exchange, market_type, symbol, bucket_id)
from {{ ref('feature_vector', v=2) }} as f
inner join labels as l
    on f.exchange = l.exchange
    and f.market_type = l.market_type
    and f.symbol = l.symbol
    and f.bucket_id = l.bucket_id
