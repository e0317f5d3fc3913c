{{ config(materialized='table', order_by='(label, exchange, market_type, symbol, day)') }}
{%- set classes = [] %}
{%- for name in ['cls_1', 'cls_3', 'cls_5', 'cls_10', 'cls_5s', 'cls_10s', 'cls_30s', 'cls_60s', 'cls_300s'] %}
{%- do classes.append("('label_" ~ name ~ "', l.label_" ~ name ~ ")") %}
{%- endfor %}
{%- for name in ['barrier_60s', 'barrier_300s'] %}
{%- do classes.append("('label_" ~ name ~ "', p.label_" ~ name ~ ")") %}
{%- endfor %}

-- Shares of the classes: a class that hardly occurs cannot be learned, and one that is nearly always right teaches nothing.
with buckets as (
    select
        l.exchange as exchange,
        l.market_type as market_type,
        l.symbol as symbol,
        toDate(l.bucket_ts_end) as day, -- noqa: RF04
        arrayJoin([
            {{ classes | join(',\n            ') }}
        ]) as class_label
    from {{ ref('bucket_labels') }} as l
    inner join {{ ref('path_labels') }} as p
        on l.exchange = p.exchange
        and l.market_type = p.market_type
        and l.symbol = p.symbol
        and l.bucket_id = p.bucket_id
),

labels as (
    select
        exchange,
        market_type,
        symbol,
        day,
        class_label.1 as label,
        class_label.2 as outcome
    from buckets
)

select
    exchange,
    market_type,
    symbol,
    label,
    day,
    count() as buckets,
    count(outcome) as labelled,
    countIf(outcome = -1) / nullIf(labelled, 0) as share_down,
    countIf(outcome = 0) / nullIf(labelled, 0) as share_flat,
    countIf(outcome = 1) / nullIf(labelled, 0) as share_up,
    ifNull(
        labelled >= {{ var('label_balance_min_rows') }}
        and (
            least(share_down, share_flat, share_up) < {{ var('label_balance_min_share') }}
            or greatest(share_down, share_flat, share_up) > {{ var('label_balance_max_share') }}
        ),
        false
    ) as is_breach
from labels
group by exchange, market_type, symbol, label, day
