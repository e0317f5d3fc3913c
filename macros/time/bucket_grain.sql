{#
  Purpose: the table settings of every model at the grain instrument and bucket. Days are partitions, so that a ranged
    rebuild replaces whole days atomically; without a range new buckets are appended and published ones never change.
  Arguments: order_by: the sorting key. day: the expression whose date is the partition.
  Example: {{ config(**bucket_grain()) }}
#}
{% macro bucket_grain(order_by='(exchange, market_type, symbol, bucket_id)', day='bucket_ts_start') %}
    {{ return({
        'materialized': 'incremental',
        'incremental_strategy': 'insert_overwrite' if is_ranged() else 'append',
        'partition_by': 'toYYYYMMDD(' ~ day ~ ')',
        'order_by': order_by,
        'sharding_key': 'cityHash64(exchange, market_type, symbol)',
        'on_schema_change': 'fail',
    }) }}
{% endmacro %}
