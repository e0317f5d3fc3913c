{#
  Purpose: the end of a backfill of minutes that a materialized view keeps, too. An append makes up for what the view has missed (rows that
    came while it was not there). Sums have a difference, so it adds what the raw table holds of a minute beyond what is stored of it:
    nothing, as a rule; a minute without a new row is left out. A build and a rebuild write `counted` as it is.
  Arguments: rows: the column that counts rows. sums, lows, highs: the columns that add up, and those of which the least or the greatest stays.
    also: what a row is of, beside instrument and minute. Expects the CTEs `counted` (all columns) and, in an append, `known` (resume_at).
  Example: {{ missed_minutes(rows='trade_count', sums=['volume'], highs=['high_price']) }}
#}
{% macro missed_minutes(rows, sums, lows=[], highs=[], also=[]) -%}
{%- set appends = is_incremental() and not is_ranged() %}
{%- set grain = ['exchange', 'market_type', 'symbol', 'minute_start'] + also %}
{%- set columns = (grain + [rows] + sums + lows + highs) | join(', ') %}
select
    {{ grain | join(', ') }}
{%- for column in [rows] + sums %},
    sumSimpleState(m.{{ column }} * m.is_new) as {{ column }}
{%- endfor %}
{%- for column in lows %},
    minSimpleState(m.{{ column }}) as {{ column }}
{%- endfor %}
{%- for column in highs %},
    maxSimpleState(m.{{ column }}) as {{ column }}
{%- endfor %}
from (
    select
        {{ columns }},
        1 as is_new
    from counted
{%- if appends %}
    union all
    select
        {{ columns }},
        -1 as is_new
    from {{ this }}
    where minute_start >= (select min(resume_at) from known)
{%- endif %}
) as m
group by {{ grain | join(', ') }}
{%- if appends %}
having sum(m.{{ rows }} * m.is_new) > 0
{%- endif %}
{%- endmacro %}
