{#
  Purpose: the models of this run that get a live view: incremental ones (appended to) and tables (replaced). `*_stored` are written by
    materialized views on insert.
  Arguments: node: a model of the graph. Returns: boolean (as a Jinja value).
  Example: {% if is_live_node(graph.nodes[id]) %}
#}
{% macro is_live_node(node) %}
    {{ return(
        node.unique_id in selected_resources
        and node.resource_type == 'model'
        and node.config.materialized in ('incremental', 'table')
        and not node.name.endswith('_stored')
    ) }}
{% endmacro %}

{#
  Purpose: the nearest live models that a model reads, through views and whatever else is in between.
  Arguments: node: a model of the graph. Returns: a list of unique ids, sorted.
  Example: {% for id in live_parents(model) %}
#}
{% macro live_parents(node) %}
    {%- set found, seen, ahead = [], [], node.depends_on.nodes | list -%}
    {%- for _ in range(100000) if ahead -%}
        {%- set id = ahead.pop() -%}
        {%- if id not in seen and id in graph.nodes -%}
            {%- do seen.append(id) -%}
            {%- if is_live_node(graph.nodes[id]) -%}
                {%- do found.append(id) -%}
            {%- else -%}
                {%- do ahead.extend(graph.nodes[id].depends_on.nodes) -%}
            {%- endif -%}
        {%- endif -%}
    {%- endfor -%}
    {{ return(found | sort) }}
{% endmacro %}

{#
  Purpose: the live views of these models. Arguments: relation: any in their schema. ids: unique ids. Returns: a list of names.
  Example: {% set names = live_view_names(this, live_parents(model)) %}
#}
{% macro live_view_names(relation, ids) %}
    {%- set names = [] -%}
    {%- for id in ids -%}
        {%- do names.append(relation.incorporate(path={'identifier': graph.nodes[id].alias ~ '_live'}) | string) -%}
    {%- endfor -%}
    {{ return(names) }}
{% endmacro %}

{#
  Purpose: makes `<model>_live`, a refreshable view that appends to the model's own table what the incremental form of its SQL selects
    (a model that is no incremental one is replaced whole), each time that all live models it reads have been refreshed.
    Rows go in by one thread in the order of days and keys: whatever dies in the middle, what is there is complete up to some moment.
  Arguments: target: the model's relation. sql: the compiled model.
  Example: (called by the materializations below)
#}
{% macro create_live_view(target, sql) %}
    {%- set view = target.incorporate(path={'identifier': target.identifier ~ '_live'}, type=none) -%}
    {%- set appends = model.config.materialized == 'incremental' -%}
    {%- if load_cached_relation(this) is none or should_full_refresh() or is_ranged() -%}
        {{ exceptions.raise_compiler_error(target.identifier ~ ': live views append to tables that are there: build first, without `live`') }}
    {%- endif -%}
    {%- set names = live_view_names(target, live_parents(model)) or [target.incorporate(path={'identifier': 'live_passes_live'}) | string] -%}
    {%- set order = [] -%}
    {%- if appends -%}
        {%- do order.append((config.get('partition_by') or 'tuple()') | replace('toYYYYMMDD(', '(')) -%}
        {%- do order.append(config.get('order_by')) -%}
    {%- endif -%}
    {%- set settings = {'join_use_nulls': 1, 'precise_float_parsing': 1, 'max_insert_threads': 1} -%}
    {%- do settings.update(config.get('query_settings') or {}) -%}
    {%- set body -%}
        create materialized view {{ view }} {{ on_cluster_clause(view) }}
        refresh depends on {{ names | join(', ') }}
        settings refresh_retries = -1, refresh_retry_initial_backoff_ms = 500, refresh_retry_max_backoff_ms = 10000
        {{ 'append' if appends }} to {{ target }} empty
        as select * from ({{ sql }})
        {% if order %}order by {{ order | join(', ') }}{% endif %}
        settings {% for name, value in settings.items() %}{{ name }} = {{ value }}{{ ', ' if not loop.last }}{% endfor %}
    {%- endset -%}
    {%- do run_query('drop view if exists ' ~ view ~ ' ' ~ on_cluster_clause(view) ~ ' sync') -%}
    {%- call statement('main') -%}{{ body }}{%- endcall -%}
    {%- if model.name == 'feature_vector' -%}
        {%- do create_arrivals_view(target) -%}
    {%- endif -%}
{% endmacro %}

{#
  Purpose: notes when each row of a feature vector is inserted, while there are live views: `<feature vector>_arrivals_live`.
  Arguments: relation: the feature vector's table.
  Example: {% do create_arrivals_view(this) %}
#}
{% macro create_arrivals_view(relation) %}
    {%- set view = relation.incorporate(path={'identifier': relation.identifier ~ '_arrivals_live'}, type=none) -%}
    {%- do run_query('drop view if exists ' ~ view ~ ' ' ~ on_cluster_clause(view) ~ ' sync') -%}
    {%- do run_query(
        'create materialized view ' ~ view ~ ' ' ~ on_cluster_clause(view)
        ~ ' to ' ~ relation.incorporate(path={'identifier': 'feature_arrivals_stored'})
        ~ " as select '" ~ relation.identifier ~ "' as feature_vector, exchange, market_type, symbol, bucket_id, bucket_ts_end, "
        ~ "now64(3, 'UTC') as arrived_at from " ~ relation
    ) -%}
{% endmacro %}

{#
  Purpose: closes the loop, at the end of a run with var `live`: `live_passes_live` begins a pass when all views are done that no other waits for.
    Passes never overlap, so each does what one `dbt run` does. The first one is begun by hand.
  Arguments: results: as dbt passes them to on-run-end.
  Example: on-run-end: "{{ close_live_loop(results) }}"
#}
{% macro close_live_loop(results) %}
    {%- if execute and is_live() and results and results | rejectattr('status', 'equalto', 'success') | list | length == 0 -%}
        {%- set last, read = [], [] -%}
        {%- for node in graph.nodes.values() if is_live_node(node) -%}
            {%- do last.append(node.unique_id) -%}
            {%- do read.extend(live_parents(node)) -%}
        {%- endfor -%}
        {%- set passes = source('hot', 'live_passes') -%}
        {%- set view = api.Relation.create(schema=target.schema, identifier='live_passes_live') -%}
        {%- do run_query('drop view if exists ' ~ view ~ ' ' ~ on_cluster_clause(view) ~ ' sync') -%}
        create materialized view {{ view }} {{ on_cluster_clause(view) }}
        refresh depends on {{ live_view_names(view, last | reject('in', read) | sort) | join(', ') }}
        settings refresh_retries = -1, refresh_retry_initial_backoff_ms = 500, refresh_retry_max_backoff_ms = 10000
        append to {{ passes }} empty
        as select now64(3, 'UTC') as started_at from numbers(1) where sleep({{ var('live_pause_s') }}) = 0
    {%- endif -%}
{% endmacro %}

{#
  Purpose: refuses to fill a table that a live view appends to: both would add the same rows.
  Arguments: none.
  Example: {% do refuse_if_live() %}
#}
{% macro refuse_if_live() %}
    {%- set view = load_cached_relation(this.incorporate(path={'identifier': this.identifier ~ '_live'})) -%}
    {%- if view is not none -%}
        {{ exceptions.raise_compiler_error(view ~ ' writes this table: stop the live views first, with `marketprism live stop`') }}
    {%- endif -%}
{% endmacro %}
