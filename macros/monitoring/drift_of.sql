{#
  Purpose: population stability index and two-sample Kolmogorov-Smirnov of each feature (or model) and instrument, last window against a
    reference: the whole of feature_drift and prediction_drift but their own columns.
  Arguments: subject: 'feature' or 'prediction'.
  Returns: a SELECT: reference, its span and the current one, exchange, market_type, symbol, feature, known values on both sides, the
    current counts by bin, psi, ks and its asymptotic p-value. Rows with fewer than `drift_min_rows` values on either side are left out.
  Example: with drifted as ({{ drift_of('feature') }}) select * from drifted
#}
{% macro drift_of(subject) -%}
{%- set least = var('drift_min_rows') -%}
{%- set key = 'exchange, market_type, symbol, feature' -%}
{%- for reference in ['week', 'training'] -%}
{%- set span = {} -%}
{%- for bound in ['reference_from', 'reference_to', 'current_from', 'current_to'] -%}
    {#- no such reference: an empty span, not NULL -#}
    {%- do span.update({bound: "assumeNotNull((select max(" ~ bound ~ ") from " ~ ref('drift_spans') ~ " where reference = '" ~ reference ~ "'))"}) -%}
{%- endfor %}
    {{ 'union all' if not loop.first }}
    select
        b.reference as reference,
        b.reference_from as reference_from,
        b.reference_to as reference_to,
        {{ span.current_from }} as current_from,
        {{ span.current_to }} as current_to,
        b.exchange as exchange,
        b.market_type as market_type,
        b.symbol as symbol,
        b.feature as feature,
        b.known as reference_known,
        length(c.current_values) as current_known,
        arrayMap(
            (edge, i) -> arrayCount(x -> x <= edge, c.current_values) - if(i = 1, 0, arrayCount(x -> x <= b.edges[i - 1], c.current_values)),
            arrayPushBack(b.edges, inf),
            range(1, length(b.edges) + 2)
        ) as current_counts,
        -- an empty bin counts as one in ten thousand: its logarithm must be finite
        arraySum(
            (p, q) -> (greatest(p / current_known, 1e-4) - greatest(q / reference_known, 1e-4))
            * log(greatest(p / current_known, 1e-4) / greatest(q / reference_known, 1e-4)),
            current_counts,
            b.counts
        ) as psi,
        if(isFinite(k.test.1), k.test.1, null) as ks,
        if(isFinite(k.test.2), k.test.2, null) as ks_p_value
    from {{ ref('drift_bins') }} as b
    inner join (
        select {{ key }}, groupArray(value) as current_values
        from {{ drift_values(subject, span.current_from, span.current_to) }}
        group by {{ key }}
        having count() >= {{ least }}
    ) as c
        on b.exchange = c.exchange
        and b.market_type = c.market_type
        and b.symbol = c.symbol
        and b.feature = c.feature
    -- bins outlive the rows that they were made of; this test needs the rows
    left join (
        select
            {{ key }},
            arrayReduce(
                'kolmogorovSmirnovTest(\'two-sided\', \'asymp\')',
                arrayConcat(reference_values, last_values),
                arrayConcat(arrayWithConstant(length(reference_values), 0), arrayWithConstant(length(last_values), 1))
            ) as test
        from (
            select {{ key }}, groupArrayIf(value, not is_last) as reference_values, groupArrayIf(value, is_last) as last_values
            from (
                select *, false as is_last from {{ drift_values(subject, span.reference_from, span.reference_to) }}
                union all
                select *, true as is_last from {{ drift_values(subject, span.current_from, span.current_to) }}
            )
            group by {{ key }}
            having countIf(is_last) >= {{ least }} and countIf(not is_last) >= {{ least }}
        )
    ) as k
        on b.exchange = k.exchange
        and b.market_type = k.market_type
        and b.symbol = k.symbol
        and b.feature = k.feature
    where
        b.subject = '{{ subject }}'
        and b.reference = '{{ reference }}'
        and b.reference_from = {{ span.reference_from }}
        and b.reference_to = {{ span.reference_to }}
        and b.known >= {{ least }}
{%- endfor -%}
{%- endmacro %}
