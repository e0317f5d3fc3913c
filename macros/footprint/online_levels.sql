{#
  Purpose: the statement that makes the parameterized view `footprint_online`: the level features of one instrument at a time and mid of the
    caller's, from the newest run of the candidates by then. The same macros as in footprint_levels, so the same numbers. No row: no
    fresh run. A post-hook makes it, as dbt has no model for a view with parameters.
  Example: select * from footprint_online(exchange = 'alpha', market_type = 'linear', symbol = 'AAAUSDT', mid = 1236.5, at = now64(6, 'UTC'))
#}
{% macro online_levels() -%}
create or replace view {{ this.schema }}.footprint_online {{ on_cluster_clause(this) if execute }} as
with newest as (
    select
        run_ts,
        udf_error,
        cluster_count,
        cluster_prices,
        cluster_shares,
        cluster_signs,
        cluster_last_seen
    from {{ this }}
    where
        exchange = {exchange:String}
        and market_type = {market_type:String}
        and symbol = {symbol:String}
        and run_ts <= {at:DateTime64(6, 'UTC')}
        and run_ts >= {at:DateTime64(6, 'UTC')} - toIntervalSecond({{ var('footprint_max_lag_s') }})
        and udf_error is null
    order by run_ts desc
    limit 1
),

levels as (
    select
        run_ts,
        cluster_count,
        cluster_signs,
        {{ level_distances('cluster_prices', '{mid:Float64}') }} as distances,
        {{ level_strengths('distances', 'cluster_shares', 'cluster_last_seen', "{at:DateTime64(6, 'UTC')}") }} as strengths
    from newest
)

select
    {{ level_features('distances', 'strengths', 'cluster_signs', 'true') }},
    cluster_count as level_count,
    dateDiff('microsecond', run_ts, {at:DateTime64(6, 'UTC')}) / 1000 / 1000 as level_run_age_s
from levels
{%- endmacro %}
