{{ config(materialized='table', partition_by='toYYYYMMDD(bucket_ts_start)', order_by='(exchange, market_type, symbol, bucket_id)') }}
{%- set steps = [1, 3, 5, 10] %}
{%- set horizons = [5, 10, 30, 60, 300] %}
{%- set barriers = [60, 300] %}
{%- set names = ['barrier_60s', 'barrier_300s', '5s', '10s', '30s', '60s', '300s'] %}

-- How much of a label is its own: labels that are open at once share what happens, and count for less (López de Prado 2018, ch. 4).
-- A label is open from its bucket's end to its horizon's, if a mid (a barrier: and a scale) was there to start from.
with buckets as (
    select
        l.exchange as exchange,
        l.market_type as market_type,
        l.symbol as symbol,
        l.bucket_id as bucket_id,
        l.bucket_ts_start as bucket_ts_start,
        l.bucket_ts_end as bucket_ts_end,
        b.mid_close is not null as is_open,
        is_open and ifNull(l.variance_per_second > 0, false) as is_open_barrier,
        {%- for k in steps %}
        l.label_known_at_{{ k }} as known_at_{{ k }},
        {%- endfor %}
        {%- for h in barriers %}
        p.label_known_at_barrier_{{ h }}s as known_at_barrier_{{ h }}s,
        {%- endfor %}
        {%- for h in horizons %}
        l.label_known_at_{{ h }}s as known_at_{{ h }}s{%- if not loop.last %},{% endif %}
        {%- endfor %}
    from {{ ref('bucket_labels') }} as l
    inner join {{ ref('path_labels') }} as p
        on l.exchange = p.exchange
        and l.market_type = p.market_type
        and l.symbol = p.symbol
        and l.bucket_id = p.bucket_id
    inner join {{ ref('top_of_book') }} as b
        on l.exchange = b.exchange
        and l.market_type = b.market_type
        and l.symbol = b.symbol
        and l.bucket_id = b.bucket_id
),

-- Over k buckets the grid is the buckets: how many labels are open in each bucket, by order.
shared as (
    select
        *,
        {%- for k in steps %}
        countIf(is_open) over (
            partition by exchange, market_type, symbol
            order by bucket_id
            rows between {{ k }} preceding and 1 preceding
        ) as open_{{ k }},
        countIf(is_open) over (
            partition by exchange, market_type, symbol
            order by bucket_id
            rows between {{ k - 1 }} preceding and {{ k - 1 }} following
        ) as near_{{ k }}{%- if not loop.last %},{% endif %}
        {%- endfor %}
    from buckets
),

stepped as (
    select
        *,
        {%- for k in steps %}
        arraySum(arrayMap(
            n -> 1 / n,
            groupArray(open_{{ k }}) over (
                partition by exchange, market_type, symbol
                order by bucket_id
                rows between 1 following and {{ k }} following
            )
        )) / {{ k }} as uniqueness_{{ k }}{%- if not loop.last %},{% endif %}
        {%- endfor %}
    from shared
),

-- By the clock: every label opens once and closes once.
events as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        span.1 as horizon,
        event.1 as at_us,
        event.2 as opens,
        1 - event.2 as closes
    from buckets
    array join [
        {%- for name in names %}
        ('{{ name }}', {{ 'is_open_barrier' if 'barrier' in name else 'is_open' }}, toUnixTimestamp64Micro(toNullable(known_at_{{ name }})))
        {%- if not loop.last %},{% endif %}
        {%- endfor %}
    ] as span
    array join [(toNullable(toUnixTimestamp64Micro(bucket_ts_end)), 1), (span.3, 0)] as event
    where span.2 and event.1 is not null
),

counted as (
    select
        * except (at_us),
        assumeNotNull(at_us) as at_us,
        sum(opens) over earlier as opened_before,
        sum(closes) over earlier as closed_before,
        sum(closes) over so_far as closed,
        at_us - lagInFrame(at_us, 1, at_us) over in_order as since_us
    from events
    window
        earlier as (
            partition by exchange, market_type, symbol, horizon
            order by at_us
            range between unbounded preceding and 1 preceding
        ),
        so_far as (
            partition by exchange, market_type, symbol, horizon
            order by at_us
            range between unbounded preceding and current row
        ),
        in_order as (
            partition by exchange, market_type, symbol, horizon
            order by at_us
            rows between 1 preceding and current row
        )
),

-- The time that has passed, each moment divided by the labels then open. In integers (1e-12 us): the difference of two cumulative
-- sums is exact, however long the history, and of events in one instant the first has all the time before it, whichever that is.
shares as (
    select
        *,
        toInt64(opened_before) - toInt64(closed_before) as open_before,
        sum(if(open_before > 0, intDiv(toInt128(since_us) * 1000000000000, open_before), 0)) over (
            partition by exchange, market_type, symbol, horizon
            order by at_us
            range between unbounded preceding and current row
        ) as share
    from counted
),

weighed as (
    select
        s.exchange as exchange,
        s.market_type as market_type,
        s.symbol as symbol,
        s.bucket_id as bucket_id,
        {%- for name in names %}
        maxIf(s.at_us, s.horizon = '{{ name }}' and s.closes) as closed_us_{{ name }},
        -- until the clock has passed the label's end, a bucket that opens another label may be missing
        closed_us_{{ name }} > 0 and closed_us_{{ name }} < toUnixTimestamp64Micro(any(f.closed_to)) as is_known_{{ name }},
        if(
            is_known_{{ name }},
            sumIf(toInt64(s.opened_before), s.horizon = '{{ name }}' and s.closes)
            - sumIf(toInt64(s.closed), s.horizon = '{{ name }}' and s.opens)
            - 1,
            null
        ) as overlap_{{ name }},
        if(
            is_known_{{ name }},
            toFloat64(
                sumIf(s.share, s.horizon = '{{ name }}' and s.closes) - sumIf(s.share, s.horizon = '{{ name }}' and s.opens)
            )
            / 1e12
            / (closed_us_{{ name }} - maxIf(s.at_us, s.horizon = '{{ name }}' and s.opens)),
            null
        ) as uniqueness_{{ name }}{%- if not loop.last %},{% endif %}
        {%- endfor %}
    from shares as s
    inner join {{ ref('closed_feeds') }} as f
        on s.exchange = f.exchange
        and s.market_type = f.market_type
        and s.symbol = f.symbol
    group by exchange, market_type, symbol, bucket_id
)

select
    s.exchange as exchange,
    s.market_type as market_type,
    s.symbol as symbol,
    s.bucket_id as bucket_id,
    s.bucket_ts_start as bucket_ts_start,
    s.bucket_ts_end as bucket_ts_end,
    {%- for k in steps %}
    if(s.is_open and s.known_at_{{ k }} is not null, toUInt32(s.near_{{ k }} - 1), null) as label_overlap_{{ k }},
    if(s.is_open and s.known_at_{{ k }} is not null, s.uniqueness_{{ k }}, null) as label_uniqueness_{{ k }},
    s.known_at_{{ k }} as label_known_at_{{ k }},
    {%- endfor %}
    {%- for name in names %}
    toUInt32(w.overlap_{{ name }}) as label_overlap_{{ name }},
    w.uniqueness_{{ name }} as label_uniqueness_{{ name }},
    s.known_at_{{ name }} as label_known_at_{{ name }}{%- if not loop.last %},{% endif %}
    {%- endfor %}
from stepped as s
left join weighed as w
    on s.exchange = w.exchange
    and s.market_type = w.market_type
    and s.symbol = w.symbol
    and s.bucket_id = w.bucket_id
