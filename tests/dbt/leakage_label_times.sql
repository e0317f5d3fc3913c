-- A label is known after the features it stands beside: at its own horizon's end. Purging relies on it.
-- Equal only where a later bucket ended in the same instant. One row per training row and horizon that breaks it.
{%- set horizons = [] %}
{%- for column in adapter.get_columns_in_relation(ref('training_set')) if column.name.startswith('label_known_at_') %}
    {%- do horizons.append(column.name[15:]) %}
{%- endfor %}
{%- for h in horizons %}
{%- set is_clock = h.endswith('s') %}
select
    exchange,
    market_type,
    symbol,
    bucket_id,
    '{{ h }}' as horizon,
    bucket_ts_end as as_of,
    label_known_at_{{ h }} as label_known_at
from {{ ref('training_set') }}
where
    label_known_at_{{ h }} {{ '<=' if is_clock else '<' }} bucket_ts_end
    or label_known_at_{{ h }} is null and {{ 'label_ret_' if is_clock else 'label_ret_ps_' }}{{ h }} is not null
{{ 'union all' if not loop.last }}
{%- else %}
select 1 as training_set_has_no_labels
{%- endfor %}
