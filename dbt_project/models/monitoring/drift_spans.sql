{%- set length = "toIntervalSecond(" ~ var('drift_window_s') ~ ")" %}
{%- set step = var('drift_step_s') %}
-- One row per reference: the span that is judged, and the one that it is held against.
with judged as (
    select toDateTime64(intDiv(toUnixTimestamp({{ health_now() }}), {{ step }}) * {{ step }}, 6, 'UTC') as ends_at
),

champion as (
    select
        champion_name,
        champion_version
    from {{ source('serving', 'deployments') }}
    order by sequence desc
    limit 1
),

trained as (
    select
        parseDateTime64BestEffort(JSONExtractString(m.card, 'training_first_as_of'), 6, 'UTC') as first_as_of,
        parseDateTime64BestEffort(JSONExtractString(m.card, 'training_last_as_of'), 6, 'UTC') as last_as_of
    from {{ source('serving', 'models') }} as m
    inner join champion as c
        on m.model_name = c.champion_name
        and m.model_version = c.champion_version
    order by m.at desc
    limit 1
)

select
    'week' as reference,
    ends_at - {{ length }} - {{ length }} as reference_from,
    ends_at - {{ length }} as reference_to,
    ends_at - {{ length }} as current_from,
    ends_at as current_to
from judged
union all
select
    'training' as reference,
    -- spans are open at their start
    t.first_as_of - toIntervalMicrosecond(1) as reference_from,
    t.last_as_of as reference_to,
    j.ends_at - {{ length }} as current_from,
    j.ends_at as current_to
from trained as t
cross join judged as j
