{#
  Purpose: does any instrument wait for its state to get better, as of its last change? Asked first, because parity costs seconds to plan.
  Arguments: changes: the relation of instrument_state_changes. Returns: boolean (as a Jinja value).
  Example: {% set is_recovering = execute and is_incremental() and is_any_recovering(this) %}
#}
{% macro is_any_recovering(changes) %}
    {#- sqlfluff has no database to ask -#}
    {%- if run_query is not defined -%}
        {{ return(false) }}
    {%- endif -%}
    {%- set counted = run_query(
        'select count() from (select argMax(tuple(better_since), changed_at).1 as at from ' ~ changes
        ~ ' group by exchange, market_type, symbol) where at is not null'
    ) -%}
    {{ return(counted.columns[0].values()[0] | string != '0') }}
{% endmacro %}
