{#
  Purpose: ranges of a partition do not overlap, in the order of their bounds, and none ends before it starts.
  Arguments: lower_bound_column, upper_bound_column: of one comparable type. NULL in either fails.
    partition_by: a column or a comma-separated list; ranges are compared within it (default: the whole model).
    gaps: `allowed` (default), `not_allowed` (a range starts where the one before ends) or `required`.
    zero_length_range_allowed: may a range end where it starts? (default: no)
  Fails with: the ranges that break a rule, each with the end of the one before.
  Example:
    - mutually_exclusive_ranges:
        arguments:
          lower_bound_column: bucket_ts_start
          upper_bound_column: bucket_ts_end
          partition_by: exchange, market_type, symbol
          zero_length_range_allowed: true
#}
{% test mutually_exclusive_ranges(
    model, lower_bound_column, upper_bound_column, partition_by=none, gaps='allowed', zero_length_range_allowed=false
) %}
{%- set operators = {'allowed': '<=', 'not_allowed': '=', 'required': '<'} -%}
{%- if gaps not in operators -%}
    {{ exceptions.raise_compiler_error("mutually_exclusive_ranges: gaps is allowed, not_allowed or required, not '" ~ gaps ~ "'") }}
{%- endif %}
select *
from (
    select
        {{ partition_by ~ ',' if partition_by }}
        {{ lower_bound_column }} as lower_bound,
        {{ upper_bound_column }} as upper_bound,
        lagInFrame(toNullable({{ upper_bound_column }}), 1, null) over in_order as upper_bound_before,
        row_number() over in_order as place
    from {{ model }}
    window in_order as (
        {{ 'partition by ' ~ partition_by if partition_by }}
        order by {{ lower_bound_column }}, {{ upper_bound_column }}
        rows between unbounded preceding and current row
    )
)
where
    not ifNull(lower_bound {{ '<=' if zero_length_range_allowed else '<' }} upper_bound, false)
    or (place > 1 and not ifNull(upper_bound_before {{ operators[gaps] }} lower_bound, false))
{% endtest %}
