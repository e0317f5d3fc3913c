{#
  Purpose: what `table` and `incremental` become: with var `live` a refreshable view that fills the table; on a cluster
    (MARKETPRISM_CLUSTER) a Distributed table over one in each shard; else the adapter's own. The models do not know.
  Arguments: none. The adapter's own materializations do the work.
  Example: (called by dbt)
#}
{% materialization incremental, adapter='clickhouse' %}
    {%- if is_live() -%}
        {{ return(live_materialization()) }}
    {%- endif -%}
    {%- do refuse_if_live() -%}
    {%- if adapter.get_clickhouse_cluster_name() is none -%}
        {{ return(dbt.materialization_incremental_clickhouse()) }}
    {%- endif -%}
    {{ return(dbt.materialization_distributed_incremental_clickhouse()) }}
{% endmaterialization %}

{% materialization table, adapter='clickhouse' %}
    {%- if is_live() -%}
        {{ return(live_materialization()) }}
    {%- endif -%}
    {%- do refuse_if_live() -%}
    {%- if adapter.get_clickhouse_cluster_name() is none -%}
        {{ return(dbt.materialization_table_clickhouse()) }}
    {%- endif -%}
    {{ return(dbt.materialization_distributed_table_clickhouse()) }}
{% endmaterialization %}
