{#
  Purpose: the numbers whose distribution is watched, one below the other, as a FROM item: those of feature_vector, by its contract, or the
    models' scores. What is missing or not finite is left out.
  Arguments: subject: 'feature' or 'prediction'. after, until: SQL: the span of bucket_ts_end, open at its start.
  Returns: exchange, market_type, symbol, feature (a model's is name:version), value.
  Example: select feature, avg(value) from {{ drift_values('feature', '(select current_from from drift_spans)', 'now64()') }} group by feature
#}
{% macro drift_values(subject, after, until) -%}
{%- if subject == 'feature' -%}
{%- set features = feature_names('feature_vector', 2) -%}
(
        select exchange, market_type, symbol, feature, value
        from {{ ref('feature_vector', v=2) }}
        array join
            ['{{ features | join("', '") }}'] as feature,
            [
                {%- for feature in features %}
                toFloat64(ifNull({{ feature }}, nan)){{ ',' if not loop.last }}
                {%- endfor %}
            ] as value
        where
            bucket_ts_end > {{ after }}
            and bucket_ts_end <= {{ until }}
            -- whole days can be skipped; no bucket is longer than one
            and bucket_ts_start > {{ after }} - toIntervalDay(1)
            and bucket_ts_start <= {{ until }}
            and isFinite(value)
    )
{%- else -%}
(
        select exchange, market_type, symbol, concat(model_name, ':', model_version) as feature, score as value
        from {{ ref('scored_buckets') }}
        where bucket_ts_end > {{ after }} and bucket_ts_end <= {{ until }} and isFinite(score)
    )
{%- endif -%}
{%- endmacro %}
