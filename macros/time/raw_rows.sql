{#
  Purpose: every row of a raw table once, wherever it lies: in hot, or archived in cold. A move of rows from one to the other is two
    changes; in between, its row in archive_moves says which of the two databases still, or already, shows them.
  Arguments: table: a raw table. also: its materialized columns, which a star leaves out.
  Example: from {{ raw_rows('trades', also=['trade_seq']) }}
#}
{% macro raw_rows(table, also=[]) -%}
{%- set columns = ', '.join(['*'] + also) -%}
{%- set moves = 'from ' ~ source('cold', 'archive_moves') ~ " final where data_type = '" ~ table ~ "' and state = " -%}
{%- set leaving = moves ~ "'copied'" -%}
{%- set arriving = moves ~ "'copying'" -%}
(
        select {{ columns }}
        from {{ source('hot', table) }} final
        -- no move: from 1970 to 1970
        where
            not (
                timestamp >= (select max(range_start) {{ leaving }})
                and timestamp < (select max(range_end) {{ leaving }})
                and created_at <= (select max(until) {{ leaving }})
            )
        union all
        select {{ columns }}
        from {{ source('cold', table) }} final
        where
            not (
                timestamp >= (select max(range_start) {{ arriving }})
                and timestamp < (select max(range_end) {{ arriving }})
                and created_at > (select max(since) {{ arriving }})
            )
    )
{%- endmacro %}
