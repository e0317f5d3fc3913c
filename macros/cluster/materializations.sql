{#
  Purpose: on a cluster (MARKETPRISM_CLUSTER) every table of a model is a Distributed table over one in each shard. The models say `table` and
    `incremental` and do not know.
  Arguments: none. The adapter's own materializations do the work.
  Example: (called by dbt)
#}
{% materialization table, adapter='clickhouse' %}
    {%- if adapter.get_clickhouse_cluster_name() is none -%}
        {{ return(dbt.materialization_table_clickhouse()) }}
    {%- endif -%}
    {{ return(dbt.materialization_distributed_table_clickhouse()) }}
{% endmaterialization %}

{% materialization incremental, adapter='clickhouse' %}
    {%- if adapter.get_clickhouse_cluster_name() is none -%}
        {{ return(dbt.materialization_incremental_clickhouse()) }}
    {%- endif -%}
    {{ return(dbt.materialization_distributed_incremental_clickhouse()) }}
{% endmaterialization %}
