{{ config(materialized='table', order_by='(exchange, market_type, symbol, decided_at, decision_id)') }}
{%- set keys = ['exchange', 'market_type', 'symbol', 'bucket_id', 'bucket_ts_start', 'bucket_ts_end'] %}
{%- set features = columns_of('feature_vector', 2) %}
{%- set texts, numbers = [], [] %}
{%- for column, type in features.items() if column not in keys %}
    {%- do (texts if 'String' in type else numbers).append(column) %}
{%- endfor %}

-- The market that an expert saw: the last feature row whose bucket had ended when the decision was made. No feature reads a decision.
with decisions as (
    select *
    from {{ ref('expert_decision_versions') }}
    order by version desc
    limit 1 by decision_id
),

-- buckets that end in one instant: the last of them knows most
ends as (
    select
        exchange,
        market_type,
        symbol,
        bucket_ts_end as timestamp,
        bucket_ts_end as known_at,
        max(bucket_id) as bucket_id
    from {{ ref('feature_vector', v=2) }}
    group by exchange, market_type, symbol, bucket_ts_end
),

seen as (
    {{ as_of('decisions', 'ends', {'bucket_id': 'bucket_id'}, var('expert_max_lag_s') * 1000, prefix='state', at='decided_at') }}
),

firsts as (
    select
        exchange,
        market_type,
        symbol,
        min(timestamp) as first_end
    from ends
    group by exchange, market_type, symbol
),

states as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_end,
        map(
            {%- for column in numbers %}
            '{{ column }}', toNullable(toFloat64({{ column }})){{ ',' if not loop.last }}
            {%- endfor %}
        ) as state,
        map(
            {%- for column in texts %}
            '{{ column }}', toString({{ column }}){{ ',' if not loop.last }}
            {%- endfor %}
        ) as state_text
    from {{ ref('feature_vector', v=2) }}
    where (exchange, market_type, symbol, bucket_id) in (
        select
            exchange,
            market_type,
            symbol,
            assumeNotNull(bucket_id)
        from seen
        where bucket_id is not null
    )
)

select
    d.decision_id as decision_id,
    d.expert as expert,
    d.exchange as exchange,
    d.market_type as market_type,
    d.symbol as symbol,
    d.decided_at as decided_at,
    d.entered_at as entered_at,
    d.known_at as known_at,
    d.intent as intent,
    d.size as size,
    d.confidence as confidence,
    d.horizon as horizon,
    d.rationale as rationale,
    d.outcome as outcome,
    d.version as versions,
    d.bucket_id as bucket_id,
    s.bucket_ts_end as bucket_ts_end,
    d.state_age_ms as state_age_ms,
    toLowCardinality(multiIf(
        d.bucket_id is not null, '',
        f.first_end is null, 'no_buckets',
        d.decided_at < f.first_end, 'before_first_bucket',
        'too_old'
    )) as state_missing,
    cast(if(d.bucket_id is null, map(), s.state), 'Map(String, Nullable(Float64))') as state,
    cast(if(d.bucket_id is null, map(), s.state_text), 'Map(String, String)') as state_text
from seen as d
left join firsts as f
    on d.exchange = f.exchange
    and d.market_type = f.market_type
    and d.symbol = f.symbol
left join states as s
    on d.exchange = s.exchange
    and d.market_type = s.market_type
    and d.symbol = s.symbol
    and d.bucket_id = s.bucket_id
