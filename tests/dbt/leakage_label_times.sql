-- A label is known after the features it stands beside: at the end of its own horizon. Purging relies on it. Only a label in
-- buckets can be known in the same instant, where a later bucket ended in it. One row per training row that breaks it.
with labelled as (
    -- every label, by name: a new horizon is tested the day it comes
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_end,
        array(columns('^label_ret_')) as labels,
        array(columns('^label_known_at_')) as known_at,
        array(columns('^label_known_at_[0-9]+s$')) as clock_known_at
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
    empty(labels)
    or empty(clock_known_at)
    or arrayExists(known -> known < bucket_ts_end, known_at)
    or arrayExists(known -> known <= bucket_ts_end, clock_known_at)
    or arrayExists((label, known) -> label is not null and known is null, labels, known_at)
