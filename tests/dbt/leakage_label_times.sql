-- A label is known after the features it stands beside: at the end of its own horizon. Purging relies on it. A label in buckets can be
-- known in the same instant, where a later bucket ended in it; a barrier is touched later than the bucket. One row per training row that breaks it.
{%- set names = adapter.get_columns_in_relation(ref('training_set')) | map(attribute='name') | list if execute else [] %}
{%- set labels, horizons = [], [] %}
{%- for name in names %}
{%- if name.startswith('label_ret_') %}{% do labels.append(name) %}{% endif %}
{%- if name.startswith('label_known_at_') %}{% do horizons.append(name[15:]) %}{% endif %}
{%- endfor %}
with labelled as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_end,
        -- every label, by name: a new horizon is tested the day it comes
        array(columns('^label_known_at_')) as known_at,
        array(columns('^label_known_at_.*[0-9]s$')) as clock_known_at,
        [
            {%- for horizon in horizons %}
            {%- for name in labels if name.endswith('_' ~ horizon) %}
            ({{ name }} is not null, label_known_at_{{ horizon }} is not null),
            {%- endfor %}
            {%- endfor %}
            (false, true)
        ] as values
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
    empty(clock_known_at)
    -- none is left without a time (the last pair is none)
    or length(values) <= {{ labels | length }}
    or {{ labels | length }} = 0
    or arrayExists(known -> known < bucket_ts_end, known_at)
    or arrayExists(known -> known <= bucket_ts_end, clock_known_at)
    or arrayExists(value -> value.1 and not value.2, values)
