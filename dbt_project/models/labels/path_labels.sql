{{ config(materialized='table', partition_by='toYYYYMMDD(bucket_ts_start)', order_by='(exchange, market_type, symbol, bucket_id)') }}
{%- set horizons = [10, 60, 300] %}
{%- set barriers = [60, 300] %}
{%- set chunk = 60 %}

-- The way to a later mid. The mid is sampled once per whole UTC second, not per bucket: the cost follows the seconds and the buckets,
-- not their product, and buckets that overlap see the same samples. What happens inside a second is not seen.
with buckets as (
    select
        m.exchange as exchange,
        m.market_type as market_type,
        m.symbol as symbol,
        m.bucket_id as bucket_id,
        m.bucket_ts_start as bucket_ts_start,
        m.bucket_ts_end as bucket_ts_end,
        m.mid_close as mid_close,
        -- the first whole second after the bucket
        intDiv(toUnixTimestamp64Micro(m.bucket_ts_end), 1000000) + 1 as first_second
    from {{ ref('bucket_moves') }} as m
),

-- A minute of samples is one row: a horizon of 300 s needs six.
wanted as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        minute
    from buckets
    array join range(intDiv(first_second, {{ chunk }}), intDiv(first_second + {{ horizons | max - 1 }}, {{ chunk }}) + 1) as minute
    where mid_close is not null
),

seconds as (
    select
        exchange,
        market_type,
        symbol,
        minute,
        toDateTime64(minute * {{ chunk }}, 6, 'UTC') + toIntervalSecond(arrayJoin(range({{ chunk }}))) as sampled_at
    from (
        select distinct
            exchange,
            market_type,
            symbol,
            minute
        from wanted
    )
),

books as (
    {{ book_complete_to() }}
),

known as (
    {{ as_of('seconds', ref('book_asof'), {'mid': 'mid'}, var('book_max_lag_ms'), prefix='book', at='sampled_at') }}
),

-- 0 is an unknown mid: no book, one too old, or a second that the book has not reached.
minutes as (
    select
        k.exchange as exchange,
        k.market_type as market_type,
        k.symbol as symbol,
        k.minute as minute,
        arraySort(groupArray((
            toUnixTimestamp(k.sampled_at),
            if(k.sampled_at <= b.complete_to, ifNull(k.mid, 0), 0)
        ))).2 as mids
    from known as k
    inner join books as b
        on k.exchange = b.exchange
        and k.market_type = b.market_type
        and k.symbol = b.symbol
    group by exchange, market_type, symbol, minute
),

sampled as (
    select
        w.exchange as exchange,
        w.market_type as market_type,
        w.symbol as symbol,
        w.bucket_id as bucket_id,
        min(w.minute) as first_minute,
        arrayFlatten(arraySort(groupArray((w.minute, m.mids))).2) as mids
    from wanted as w
    inner join minutes as m
        on w.exchange = m.exchange
        and w.market_type = m.market_type
        and w.symbol = m.symbol
        and w.minute = m.minute
    group by exchange, market_type, symbol, bucket_id
),

-- As returns since the bucket: the whole seconds, then the end of the horizon itself, where it is known.
paths as (
    select
        b.exchange as exchange,
        b.market_type as market_type,
        b.symbol as symbol,
        b.bucket_id as bucket_id,
        b.bucket_ts_start as bucket_ts_start,
        b.bucket_ts_end as bucket_ts_end,
        b.first_second as first_second,
        k.complete_to as complete_to,
        arrayMap(
            mid -> if(mid = 0, nan, mid / assumeNotNull(b.mid_close) - 1),
            arraySlice(s.mids, b.first_second - s.first_minute * {{ chunk }} + 1, {{ horizons | max }})
        ) as path,
        {%- for h in horizons %}
        l.label_ret_{{ h }}s as ret_{{ h }}s,
        arrayConcat(arraySlice(path, 1, {{ h }}), [ifNull(ret_{{ h }}s, nan)]) as path_{{ h }}s,
        {%- endfor %}
        {{ var('label_barrier_sigma') }} * sqrt(nullIf(l.variance_per_second, 0)) as barrier
    from buckets as b
    inner join {{ ref('bucket_labels') }} as l
        on b.exchange = l.exchange
        and b.market_type = l.market_type
        and b.symbol = l.symbol
        and b.bucket_id = l.bucket_id
    left join sampled as s
        on b.exchange = s.exchange
        and b.market_type = s.market_type
        and b.symbol = s.symbol
        and b.bucket_id = s.bucket_id
    left join books as k
        on b.exchange = k.exchange
        and b.market_type = k.market_type
        and b.symbol = k.symbol
),

outcomes as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        {%- for h in barriers %}
        barrier * sqrt({{ h }}) as barrier_{{ h }}s,
        -- the first sample outside, or the first that is not known: what lies behind it decides nothing
        arrayFirstIndex(r -> abs(r) >= ifNull(barrier_{{ h }}s, inf) or isNaN(r), path_{{ h }}s) as stop_{{ h }}s,
        multiIf(
            barrier is null, null,
            stop_{{ h }}s = 0, path_{{ h }}s[-1],
            isNaN(path_{{ h }}s[stop_{{ h }}s]), null,
            path_{{ h }}s[stop_{{ h }}s]
        ) as outcome_{{ h }}s,
        outcome_{{ h }}s is not null and stop_{{ h }}s > 0 as is_touched_{{ h }}s,
        least(
            toDateTime64(first_second + stop_{{ h }}s - 1, 6, 'UTC'),
            bucket_ts_end + toIntervalSecond({{ h }})
        ) as touched_at_{{ h }}s,
        {%- endfor %}
        {%- for h in horizons %}
        not arrayExists(r -> isNaN(r), path_{{ h }}s) as is_whole_{{ h }}s,
        ret_{{ h }}s,
        path_{{ h }}s,
        -- ten steps, whatever the horizon: shapes of 10 s and of 300 s mean the same
        arrayConcat([0], arrayMap(i -> path_{{ h }}s[i * {{ h // 10 }}], range(1, 10)), [path_{{ h }}s[-1]]) as points_{{ h }}s,
        arraySum(arrayMap(i -> abs(points_{{ h }}s[i + 1] - points_{{ h }}s[i]), range(1, 11))) as travelled_{{ h }}s,
        {%- for name, sign in [('v', '-'), ('inverted_v', '')] %}
        arrayMax(arrayMap(r -> {{ sign }}r, points_{{ h }}s)) as there_{{ name }}_{{ h }}s,
        there_{{ name }}_{{ h }}s - ({{ sign }}points_{{ h }}s[-1]) as back_{{ name }}_{{ h }}s,
        if(
            round(least(there_{{ name }}_{{ h }}s, back_{{ name }}_{{ h }}s) / greatest(there_{{ name }}_{{ h }}s, back_{{ name }}_{{ h }}s), 8)
            >= round({{ var('label_path_leg') }}, 8),
            round((there_{{ name }}_{{ h }}s + back_{{ name }}_{{ h }}s) / travelled_{{ h }}s, 8),
            0
        ) as {{ name }}_{{ h }}s,
        {%- endfor %}
        {%- endfor %}
        complete_to
    from paths
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    {%- for h in barriers %}
    toNullable(toInt8(if(outcome_{{ h }}s is null, null, if(is_touched_{{ h }}s, sign(outcome_{{ h }}s), 0)))) as label_barrier_{{ h }}s,
    outcome_{{ h }}s as label_ret_barrier_{{ h }}s,
    if(
        is_touched_{{ h }}s,
        dateDiff('microsecond', bucket_ts_end, touched_at_{{ h }}s) / 1e6,
        null
    ) as label_touch_s_barrier_{{ h }}s,
    multiIf(
        is_touched_{{ h }}s, touched_at_{{ h }}s,
        bucket_ts_end + toIntervalSecond({{ h }}) <= complete_to, bucket_ts_end + toIntervalSecond({{ h }}),
        null
    ) as label_known_at_barrier_{{ h }}s,
    {%- endfor %}
    {%- for h in horizons %}
    if(is_whole_{{ h }}s, ret_{{ h }}s, null) as label_ret_path_{{ h }}s,
    if(is_whole_{{ h }}s, greatest(arrayMax(path_{{ h }}s), 0), null) as label_mfe_{{ h }}s,
    if(is_whole_{{ h }}s, least(arrayMin(path_{{ h }}s), 0), null) as label_mae_{{ h }}s,
    toLowCardinality(multiIf(
        not is_whole_{{ h }}s, null,
        travelled_{{ h }}s = 0, 'flat',
        round(abs(points_{{ h }}s[-1]) / travelled_{{ h }}s, 8) >= {{ var('label_path_efficiency') }}, 'monotone',
        v_{{ h }}s >= {{ var('label_path_efficiency') }} and v_{{ h }}s >= inverted_v_{{ h }}s, 'v',
        inverted_v_{{ h }}s >= {{ var('label_path_efficiency') }}, 'inverted_v',
        'choppy'
    )) as label_shape_{{ h }}s,
    bucket_ts_end + toIntervalSecond({{ h }}) as label_known_at_{{ h }}s{%- if not loop.last %},{% endif %}
    {%- endfor %}
from outcomes
