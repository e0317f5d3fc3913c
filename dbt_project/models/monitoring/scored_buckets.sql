{%- set outcomes = label_outcomes() -%}
-- One row per model, instrument and bucket that it scored: what it said first, and what came.
with first_said as (
    select
        model_name,
        model_version,
        exchange,
        market_type,
        symbol,
        bucket_id,
        any(bucket_ts_end) as bucket_end,
        argMin(probabilities, (predicted_at, request_id)) as said,
        argMin(signal, (predicted_at, request_id)) as first_signal
    from {{ source('serving', 'predictions') }}
    group by model_name, model_version, exchange, market_type, symbol, bucket_id
),

known_classes as (
    select
        model_name,
        model_version,
        classes
    from {{ source('serving', 'scored_models') }}
    order by created_at desc
    limit 1 by model_name, model_version
),

cards as (
    select
        model_name,
        model_version,
        JSONExtractString(card, 'label') as label
    from {{ source('serving', 'models') }}
    order by at desc
    limit 1 by model_name, model_version
),

labelled as (
    select
        p.model_name as model_name,
        p.model_version as model_version,
        p.exchange as exchange,
        p.market_type as market_type,
        p.symbol as symbol,
        p.bucket_id as bucket_id,
        p.bucket_end as bucket_ts_end,
        p.said as probabilities,
        c.classes as classes,
        p.first_signal as signal, -- noqa: RF04
        ifNull(m.label, '') as label,
        arrayFirst(
            outcome -> outcome.1 = label, -- noqa: RF02
            [
                {%- for label, value in outcomes %}
                ('{{ label }}', o.{{ label }}, o.{{ value }}){{ ',' if not loop.last }}
                {%- endfor %}
            ]
        ) as came
    from first_said as p
    inner join known_classes as c
        on p.model_name = c.model_name
        and p.model_version = c.model_version
    left join cards as m
        on p.model_name = m.model_name
        and p.model_version = m.model_version
    left join {{ ref('bucket_labels') }} as o
        on p.exchange = o.exchange
        and p.market_type = o.market_type
        and p.symbol = o.symbol
        and p.bucket_id = o.bucket_id
)

select
    model_name,
    model_version,
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_end,
    probabilities,
    -- from what the model said: a row that was not fit has score 0
    arraySum((p, class) -> toFloat64(p) * sign(class), probabilities, classes) as score,
    signal,
    toFloat64(arrayMax(probabilities)) as confidence,
    classes[indexOf(probabilities, arrayMax(probabilities))] as said_class,
    label,
    came.2 as class, -- noqa: RF04
    came.3 as came_return
from labelled
