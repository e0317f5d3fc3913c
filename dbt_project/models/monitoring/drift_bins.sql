{{ config(
    materialized='incremental',
    incremental_strategy='append',
    partition_by='toYYYYMM(reference_to)',
    order_by='(subject, reference, exchange, market_type, symbol, feature, reference_to, reference_from)',
    on_schema_change='fail',
    full_refresh=false,
    tags=['drift'],
) }}
{%- set key = 'exchange, market_type, symbol, feature' %}
{%- set levels = [] %}
{%- for tenth in range(1, 10) %}{% do levels.append(tenth / 10) %}{% endfor %}
-- One row per reference span, instrument and feature: the deciles of its values there, and how many lay between them.
with spans as (
    select
        reference,
        reference_from,
        reference_to
    from {{ ref('drift_spans') }}
),

reference_values as (
    {%- for subject in ['feature', 'prediction'] %}
    {%- set outer_loop = loop %}
    {%- for reference in ['week', 'training'] %}
    {{ 'union all' if not (loop.first and outer_loop.first) }}
    select
        '{{ subject }}' as subject,
        '{{ reference }}' as reference,
        {{ key }},
        value
    from {{ drift_values(
        subject,
        "(select max(reference_from) from spans where reference = '" ~ reference ~ "')",
        "(select max(reference_to) from spans where reference = '" ~ reference ~ "')",
    ) }}
    {%- endfor %}
    {%- endfor %}
),

described as (
    select
        subject,
        reference,
        {{ key }},
        -- ties make edges meet: a flag has one
        arrayDistinct(quantilesExactInclusive({{ levels | join(', ') }})(value)) as edges, -- noqa: LT01
        groupArray(value) as all_values
    from reference_values
    group by subject, reference, {{ key }}
),

binned as (
    select
        subject,
        reference,
        {{ key }},
        edges,
        arrayMap(
            (edge, i) -> toUInt64(arrayCount(x -> x <= edge, all_values) - if(i = 1, 0, arrayCount(x -> x <= edges[i - 1], all_values))),
            arrayPushBack(edges, inf),
            range(1, length(edges) + 2)
        ) as counts,
        toUInt64(length(all_values)) as known
    from described
)

select
    b.subject as subject,
    b.reference as reference,
    s.reference_from as reference_from,
    s.reference_to as reference_to,
    b.exchange as exchange,
    b.market_type as market_type,
    b.symbol as symbol,
    b.feature as feature,
    b.edges as edges,
    b.counts as counts,
    b.known as known
from binned as b
inner join spans as s on b.reference = s.reference
{% if is_incremental() -%}
where
    (b.subject, b.reference, s.reference_from, s.reference_to, b.exchange, b.market_type, b.symbol, b.feature) not in (
        select
            subject,
            reference,
            reference_from,
            reference_to,
            {{ key }}
        from {{ this }}
    )
{%- endif %}
