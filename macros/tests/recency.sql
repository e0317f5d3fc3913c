{#
  Purpose: the newest row is at most so old. Without any row the test fails (per group it cannot know of a group without rows).
  Arguments: field: a time column (UTC). datepart and interval: the age, as `hour` and 3: any unit of ClickHouse's toInterval….
    group_by_columns: the newest row of each combination of these (default: of the whole model).
  Fails with: each group's newest time that is older.
  Example:
    - recency:
        arguments: {datepart: minute, field: bucket_ts_end, interval: 10, group_by_columns: [exchange, market_type, symbol]}
#}
{% test recency(model, field, datepart, interval, group_by_columns=[]) %}
select
    {{ group_by_columns | join(', ') ~ ',' if group_by_columns }}
    max({{ field }}) as most_recent
from {{ model }}
{{ 'group by ' ~ group_by_columns | join(', ') if group_by_columns }}
having ifNull(most_recent < now64(6, 'UTC') - toInterval{{ datepart | capitalize }}({{ interval }}), true)
{% endtest %}
