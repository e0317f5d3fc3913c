{#
  Purpose: every row of a raw table once, wherever it lies: in hot, or archived in cold. A move of rows from one to the other is two
    changes; in between, its row in archive_moves says which of the two databases still, or already, shows them.
  Arguments: table: a raw table. also: its materialized columns, which a star leaves out.
  Example: from {{ raw_rows('trades', also=['trade_seq']) }}
#}
{% macro raw_rows(table, also=[]) -%}
{%- set columns = ', '.join(['*'] + also) -%}
(
        with
            (
                select (max(range_start), max(range_end), max(until))
                from {{ source('cold', 'archive_moves') }} final
                where data_type = '{{ table }}' and state = 'copied'
            ) as leaving
        select {{ columns }}
        from {{ source('hot', table) }} final
        where not (timestamp >= leaving.1 and timestamp < leaving.2 and created_at <= leaving.3)
        union all
        with
            (
                select (max(range_start), max(range_end), max(since))
                from {{ source('cold', 'archive_moves') }} final
                where data_type = '{{ table }}' and state = 'copying'
            ) as arriving
        select {{ columns }}
        from {{ source('cold', table) }} final
        where not (timestamp >= arriving.1 and timestamp < arriving.2 and created_at > arriving.3)
    )
{%- endmacro %}
