{#- What models read: a version that is published is added here. -#}
{%- set relations = [('feature_vector', 1), ('feature_vector', 2), ('sequence_inputs', 1)] -%}
{%- set instrument = ['exchange', 'market_type', 'symbol'] -%}
-- One row per model, scored bucket and row of the input: what the scorer read, and what an as-of rebuild reads now, feature by feature.
with scored as (
    select
        model_name,
        model_version,
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_end,
        feature_hash
    from {{ source('serving', 'predictions') }}
    where predicted_at > (select max(predicted_at) - toIntervalSecond({{ var('parity_lookback_s') }}) from {{ source('serving', 'predictions') }})
    group by model_name, model_version, exchange, market_type, symbol, bucket_id, bucket_ts_end, feature_hash
),

relation_columns as (
    {%- for name, version in relations %}
    {{ 'union all' if not loop.first }}
    select
        '{{ name }}_v{{ version }}' as relation,
        ['{{ feature_names(name, version) | join("', '") }}'] as names
    {%- endfor %}
),

-- Inputs are put into the relation's order, ahead of them those that it no longer has: then nothing has to be looked up row by row.
models as (
    select
        m.model_name as model_name,
        m.model_version as model_version,
        m.relation as relation,
        m.rows_read as rows_read,
        m.max_gap_s as max_gap_s,
        arrayMap((name, i) -> if(has(r.names, name), toInt64(indexOf(r.names, name)), -toInt64(i)), m.features, arrayEnumerate(m.features)) as places,
        arraySort((name, place) -> place, m.features, places) as features,
        countEqual(arrayMap(place -> place > 0, places), false) as gone,
        arrayMap(name -> has(m.features, name), r.names) as is_read
    from {{ source('serving', 'scored_models') }} as m
    inner join relation_columns as r
        on m.relation = r.relation
    order by m.created_at desc
    limit 1 by m.model_name, m.model_version
),

-- A window spans at most so many buckets, of a day at most, and silences.
bounds as (
    select
        (select min(bucket_ts_end) from scored) as first_end,
        (select max(rows_read * (max_gap_s + 86400)) from models) as longest_s
),

relation_rows as (
    {%- for name, version in relations %}
    {{ 'union all' if not loop.first }}
    select
        '{{ name }}_v{{ version }}' as relation,
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        -- as the scorer reads them
        [
            {%- for feature in feature_names(name, version) %}
            toFloat32(ifNull({{ feature }}, nan)){{ ',' if not loop.last }}
            {%- endfor %}
        ] as row_values
    from {{ ref(name, v=version) }}
    where
        bucket_ts_start >= (select first_end - toIntervalSecond(toUInt64(longest_s)) from bounds)
        and ({{ instrument | join(', ') }}) in (select {{ instrument | join(', ') }} from scored)
    {%- endfor %}
),

numbered as (
    select
        relation,
        exchange,
        market_type,
        symbol,
        bucket_id,
        row_number() over from_first as row_place,
        toFloat64(dateDiff('microsecond', lagInFrame(bucket_ts_end, 1, bucket_ts_start) over from_first, bucket_ts_start)) / 1e6 as silence_s
    from relation_rows
    window from_first as (partition by relation, exchange, market_type, symbol order by bucket_id rows between unbounded preceding and current row)
),

-- A bucket that is no longer there has place 0: no row lies there or before it.
steps as (
    select
        s.model_name as model_name,
        s.model_version as model_version,
        s.exchange as exchange,
        s.market_type as market_type,
        s.symbol as symbol,
        s.bucket_id as bucket_id,
        s.bucket_ts_end as bucket_ts_end,
        s.feature_hash as feature_hash,
        m.relation as relation,
        m.rows_read as rows_read,
        m.max_gap_s as max_gap_s,
        toInt64(ifNull(n.row_place, 0)) as last_place,
        arrayJoin(range(toUInt32(m.rows_read))) as rows_back
    from scored as s
    inner join models as m
        on s.model_name = m.model_name
        and s.model_version = m.model_version
    left join numbered as n
        on m.relation = n.relation
        and s.exchange = n.exchange
        and s.market_type = n.market_type
        and s.symbol = n.symbol
        and s.bucket_id = n.bucket_id
),

-- A long silence before a row cuts off those before it.
windows as (
    select
        s.model_name as model_name,
        s.model_version as model_version,
        s.exchange as exchange,
        s.market_type as market_type,
        s.symbol as symbol,
        s.bucket_id as bucket_id,
        s.bucket_ts_end as bucket_ts_end,
        s.feature_hash as feature_hash,
        s.relation as relation,
        s.rows_read as rows_read,
        s.rows_back as rows_back,
        ifNull(n.bucket_id, 0) as row_bucket_id,
        max(ifNull(n.silence_s, 0)) over (
            partition by s.model_name, s.model_version, s.exchange, s.market_type, s.symbol, s.bucket_id, s.feature_hash
            order by s.rows_back
            rows between unbounded preceding and 1 preceding
        ) > s.max_gap_s as is_cut
    from steps as s
    left join numbered as n
        on s.relation = n.relation
        and s.exchange = n.exchange
        and s.market_type = n.market_type
        and s.symbol = n.symbol
        and s.last_place - s.rows_back = n.row_place
),

-- The same inputs may be stored twice.
inputs as (
    select
        feature_hash,
        argMin(inputs, created_at) as input_values
    from {{ source('serving', 'prediction_inputs') }}
    where feature_hash in (select feature_hash from scored)
    group by feature_hash
)

select
    w.model_name as model_name,
    w.model_version as model_version,
    w.relation as relation,
    w.exchange as exchange,
    w.market_type as market_type,
    w.symbol as symbol,
    w.bucket_id as bucket_id,
    w.bucket_ts_end as bucket_ts_end,
    w.feature_hash as feature_hash,
    w.rows_back as rows_back,
    m.features as features,
    arraySort(
        (x, place) -> place,
        arraySlice(i.input_values, (w.rows_read - 1 - w.rows_back) * length(m.features) + 1, length(m.features)),
        m.places
    ) as read_values,
    arrayMap(
        x -> if(isFinite(x), x, toFloat32(nan)),
        if(
            w.row_bucket_id = 0 or w.is_cut,
            arrayWithConstant(length(m.features), toFloat32(nan)),
            arrayConcat(arrayWithConstant(m.gone, toFloat32(nan)), arrayFilter((x, is_input) -> is_input, r.row_values, m.is_read))
        )
    ) as values_now
from windows as w
inner join models as m
    on w.model_name = m.model_name
    and w.model_version = m.model_version
inner join inputs as i
    on w.feature_hash = i.feature_hash
left join relation_rows as r
    on w.relation = r.relation
    and w.exchange = r.exchange
    and w.market_type = r.market_type
    and w.symbol = r.symbol
    and w.row_bucket_id = r.bucket_id
