-- One row per model and feature: how many inputs the scorer read, and how many an as-of rebuild gives otherwise, compared as float32 bits.
with inputs as (
    select
        model_name,
        model_version,
        relation,
        concat(exchange, ':', market_type, ':', symbol) as instrument,
        bucket_id,
        feature,
        read_value,
        value_now,
        multiIf(
            isNaN(read_value) and isNaN(value_now), 'same',
            isNaN(read_value), 'missing',
            isNaN(value_now), 'extra',
            reinterpretAsUInt32(read_value) = reinterpretAsUInt32(value_now), 'same',
            'mismatch'
        ) as comparison
    from {{ ref('feature_parity_rows') }}
    array join
        features as feature,
        read_values as read_value,
        values_now as value_now
)

select
    model_name,
    model_version,
    relation,
    feature,
    count() as compared,
    countIf(comparison = 'mismatch') as mismatches,
    countIf(comparison = 'missing') as missing,
    countIf(comparison = 'extra') as extra,
    1 - (mismatches + missing + extra) / compared as parity_share,
    maxIf(abs(toFloat64(read_value) - toFloat64(value_now)), not isNaN(read_value) and not isNaN(value_now)) as largest_difference,
    minIf(bucket_id, comparison != 'same') as first_differing_bucket_id,
    argMinIf(instrument, (bucket_id, instrument), comparison != 'same') as first_differing_instrument
from inputs
group by model_name, model_version, relation, feature
