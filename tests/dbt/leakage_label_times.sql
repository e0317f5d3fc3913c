-- A label is known after the features it stands beside: at the end of its own horizon. Purging relies on it. A label in buckets can be
-- known in the same instant, where a later bucket ended in it; a barrier is touched later than the bucket. One row per training row
-- that breaks it.
{%- set horizons = ['1', '3', '5', '10', '5s', '10s', '30s', '60s', '300s', 'barrier_60s', 'barrier_300s'] %}
with labelled as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_end,
        array(columns('^label_known_at_')) as known_at,
        array(columns('^label_known_at_.*[0-9]s$')) as clock_known_at,
        -- every label, by name: one of a new horizon, or of none, is a row too many
        length(array(columns('^label_ret_'))) as labels,
        length(array(columns('^label_ret_([a-z]+_)*({{ horizons | join('|') }})$'))) as labels_with_a_horizon,
        [
            {%- for horizon in horizons %}
            arrayExists(label -> label is not null, array(columns('^label_ret_([a-z]+_)*{{ horizon }}$')))
            and label_known_at_{{ horizon }} is null,
            {%- endfor %}
            labels != labels_with_a_horizon
        ] as wrongs
    from {{ ref('training_set') }}
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_end as as_of,
    known_at
from labelled
where
    labels = 0
    or length(known_at) != {{ horizons | length }}
    or arrayExists(known -> known < bucket_ts_end, known_at)
    or arrayExists(known -> known <= bucket_ts_end, clock_known_at)
    or has(wrongs, true)
