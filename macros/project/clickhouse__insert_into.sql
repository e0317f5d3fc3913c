{#
  Purpose: makes the append of an incremental model survive a kill at any point. An INSERT is atomic per block and partition only: a
    server that dies in the middle can keep later buckets without earlier ones, and the next append would resume behind the
    hole. So new rows go to a staging table and move into the target day by day, oldest first, each day in one step:
    whatever dies, what is there is complete up to some moment, and the next run continues from there.
  Arguments: as the adapter's own macro of this name, which it replaces for incremental models and calls for all others.
  Example: (called by dbt-clickhouse)
#}
{% macro clickhouse__insert_into(target_relation, sql, has_contract, use_columns_from_sql=False) %}
    {%- set plain = dbt.clickhouse__insert_into -%}
    {%- if model.config.materialized != 'incremental' or target_relation.identifier != this.identifier -%}
        {{ plain(target_relation, sql, has_contract, use_columns_from_sql) }}
    {%- elif adapter.get_clickhouse_cluster_name() is not none -%}
        {{ append_on_cluster(target_relation, sql, has_contract) }}
    {%- else -%}
        {%- set staging = target_relation.incorporate(path={'identifier': target_relation.identifier ~ '__arriving'}) -%}
        {%- do run_query('drop table if exists ' ~ staging ~ ' ' ~ on_cluster_clause(staging) ~ ' sync') -%}
        {%- do run_query('create table ' ~ staging ~ ' ' ~ on_cluster_clause(staging) ~ ' as ' ~ target_relation) -%}
        {%- call statement('arrive') -%}{{ plain(staging, sql, has_contract) }}{%- endcall -%}
        {%- set days = run_query(
            "select partition_id, count() from system.parts where active and database = '" ~ staging.schema
            ~ "' and table = '" ~ staging.identifier ~ "' group by partition_id order by partition_id"
        ) -%}
        {%- for day, parts in days.rows -%}
            {%- if parts > 1 -%}
                {%- do run_query('optimize table ' ~ staging ~ " partition id '" ~ day ~ "' final") -%}
            {%- endif -%}
            {%- do run_query('alter table ' ~ target_relation ~ " attach partition id '" ~ day ~ "' from " ~ staging) -%}
        {%- endfor -%}
        {%- do run_query('drop table ' ~ staging ~ ' ' ~ on_cluster_clause(staging) ~ ' sync') -%}
        select 1
    {%- endif -%}
{% endmacro %}
