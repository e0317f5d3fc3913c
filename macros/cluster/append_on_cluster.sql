{#
  Purpose: the append of `clickhouse__insert_into` on a cluster: new rows go to a staging table in each shard, and each shard moves them into its
    own part of the target day by day, oldest first. An instrument lies in one shard, so that what was said of a kill there holds here.
  Arguments: as of `clickhouse__insert_into`. target_relation is the Distributed table.
  Example: (called by clickhouse__insert_into)
#}
{% macro append_on_cluster(target_relation, sql, has_contract) %}
    {%- set suffix = adapter.get_clickhouse_local_suffix() -%}
    {%- set on_cluster = on_cluster_clause(target_relation) -%}
    {%- set target_local = target_relation.incorporate(path={'identifier': target_relation.identifier ~ suffix}) -%}
    {%- set staging = target_relation.incorporate(path={'identifier': target_relation.identifier ~ '__arriving'}) -%}
    {%- set staging_local = target_relation.incorporate(path={'identifier': target_relation.identifier ~ '__arriving' ~ suffix}) -%}
    {%- for relation in (staging, staging_local) -%}
        {%- do run_query('drop table if exists ' ~ relation ~ ' ' ~ on_cluster ~ ' sync') -%}
    {%- endfor -%}
    {%- do run_query('create table ' ~ staging_local ~ ' ' ~ on_cluster ~ ' as ' ~ target_local) -%}
    {%- do run_query(create_distributed_table(staging, staging_local)) -%}
    {%- call statement('arrive') -%}{{ dbt.clickhouse__insert_into(staging, sql, has_contract) }}{%- endcall -%}
    {%- set days = run_query(
        'select distinct partition_id from cluster(' ~ adapter.get_clickhouse_cluster_name() ~ ", system.parts) where active and database = '"
        ~ staging.schema ~ "' and table = '" ~ staging_local.identifier ~ "' order by partition_id"
    ) -%}
    {%- for day in days.columns[0].values() -%}
        {%- do run_query('optimize table ' ~ staging_local ~ ' ' ~ on_cluster ~ " partition id '" ~ day ~ "' final") -%}
        {%- do run_query('alter table ' ~ target_local ~ ' ' ~ on_cluster ~ " attach partition id '" ~ day ~ "' from " ~ staging_local) -%}
    {%- endfor -%}
    {%- for relation in (staging, staging_local) -%}
        {%- do run_query('drop table if exists ' ~ relation ~ ' ' ~ on_cluster ~ ' sync') -%}
    {%- endfor -%}
    select 1
{% endmacro %}
