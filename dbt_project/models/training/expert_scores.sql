{{ config(materialized='table', order_by='(expert, horizon, decided_at, decision_id)') }}
{%- set horizons = label_horizons() %}

-- Decisions on the labels of the models. A decision counts from the end of the first bucket that ends at or after it: a label that began
-- before it would hold a move that the expert had seen. What is scored is the last version entered before the label was known.
with decisions as (
    select
        decision_id,
        any(exchange) as exchange,
        any(market_type) as market_type,
        any(symbol) as symbol,
        any(decided_at) as decided_at,
        any(horizon) as horizon
    from {{ ref('expert_decision_versions') }}
    group by decision_id
),

ends as (
    select
        exchange,
        market_type,
        symbol,
        bucket_ts_end,
        max(bucket_id) as bucket_id
    from {{ ref('bucket_labels') }}
    group by exchange, market_type, symbol, bucket_ts_end
),

placed as (
    select
        d.*,
        if(e.bucket_ts_end <= d.decided_at + toIntervalSecond({{ var('expert_max_lag_s') }}), e.bucket_id, null) as bucket_id
    from decisions as d
    asof left join ends as e
        on d.exchange = e.exchange
        and d.market_type = e.market_type
        and d.symbol = e.symbol
        and d.decided_at <= e.bucket_ts_end
),

labels as (
    select
        l.exchange as exchange,
        l.market_type as market_type,
        l.symbol as symbol,
        l.bucket_id as bucket_id,
        l.bucket_ts_end as bucket_ts_end,
        -- there and back as a taker: half the spread and a fee each way
        (greatest(ifNull(f.spread_bps_close, 0), 0) + 2 * {{ var('label_taker_fee_bps') }}) / 1e4 as cost,
        -- one row per horizon. A label in buckets is a return per second: times its seconds it is the return.
        arrayJoin([
            {%- for h in horizons %}
            {%- if h.endswith('s') %}
            ('{{ h }}', toNullable(l.label_known_at_{{ h }}), toNullable(l.label_ret_{{ h }}), l.label_cls_{{ h }})
            {%- else %}
            (
                '{{ h }}',
                l.label_known_at_{{ h }},
                l.label_ret_ps_{{ h }}
                * greatest(dateDiff('microsecond', l.bucket_ts_end, l.label_known_at_{{ h }}) / 1e6, {{ var('label_floor_s') }}),
                l.label_cls_{{ h }}
            )
            {%- endif %}{{ ',' if not loop.last }}
            {%- endfor %}
        ]) as label
    from {{ ref('bucket_labels') }} as l
    inner join {{ ref('feature_vector', v=2) }} as f
        on l.exchange = f.exchange
        and l.market_type = f.market_type
        and l.symbol = f.symbol
        and l.bucket_id = f.bucket_id
    where (l.exchange, l.market_type, l.symbol, l.bucket_id) in (
        select
            exchange,
            market_type,
            symbol,
            assumeNotNull(bucket_id)
        from placed
        where bucket_id is not null
    )
),

labelled as (
    select
        p.decision_id as decision_id,
        p.bucket_id as bucket_id,
        l.bucket_ts_end as bucket_ts_end,
        l.cost as cost,
        l.label.2 as label_known_at,
        l.label.3 as label_return,
        l.label.4 as label_class
    from placed as p
    left join labels as l
        on p.exchange = l.exchange
        and p.market_type = l.market_type
        and p.symbol = l.symbol
        and p.bucket_id = l.bucket_id
        and p.horizon = l.label.1
),

-- In hindsight, where every version came once the label was known, the last one stands for the decision, marked.
chosen as (
    select
        v.decision_id as decision_id,
        toUInt32(count()) as versions,
        countIf(ifNull(v.entered_at < l.label_known_at, 1)) as in_time,
        if(in_time > 0, maxIf(v.version, ifNull(v.entered_at < l.label_known_at, 1)), max(v.version)) as version,
        argMaxIf(v.outcome, v.version, v.outcome != '') as last_outcome
    from {{ ref('expert_decision_versions') }} as v
    inner join labelled as l
        on v.decision_id = l.decision_id
    group by v.decision_id
)

select
    v.decision_id as decision_id,
    v.expert as expert,
    v.exchange as exchange,
    v.market_type as market_type,
    v.symbol as symbol,
    v.decided_at as decided_at,
    v.entered_at as entered_at,
    v.entered_at_source as entered_at_source,
    v.horizon as horizon,
    v.intent as intent,
    v.score as score,
    v.size as size,
    v.confidence as confidence,
    v.rationale as rationale,
    c.last_outcome as outcome,
    c.versions as versions,
    v.version as scored_version,
    toUInt8(c.in_time = 0) as is_hindsight,
    toFloat64(dateDiff('microsecond', v.decided_at, v.entered_at)) / 1e6 as entry_lag_s,
    l.bucket_id as bucket_id,
    l.bucket_ts_end as bucket_ts_end,
    l.label_known_at as label_known_at,
    l.label_return as label_return,
    l.label_class as label_class,
    toNullable(toUInt8(if(l.label_class is null, null, v.score = l.label_class))) as hit,
    v.score * l.label_return as signed_return,
    v.score * l.label_return - abs(v.score) * l.cost as net_return,
    toLowCardinality(multiIf(l.bucket_id is null, 'no_bucket', l.label_return is null, 'label_unknown', '')) as unscored
from {{ ref('expert_decision_versions') }} as v
inner join chosen as c
    on v.decision_id = c.decision_id
    and v.version = c.version
inner join labelled as l
    on v.decision_id = l.decision_id
