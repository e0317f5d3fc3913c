{#
  Purpose: lead-lag by correlation on any clock: all pairs of the markets of a relation, over the span that all have in common, with the
    grid and the estimator of `pair_lead_lag`.
  Arguments: ticks: a CTE or relation with exchange, market_type, symbol, timestamp, known_at (the clock to be looked at; both the same) and
    mid, unique per market and time. step_ms, steps: lags from -steps to steps of step_ms; positive: the first market moves
    first. max_lag_ms: an older mid is unknown.
  Returns: a SELECT of first_market, second_market, lag_ms, correlation, points_from, points_to and lags_ms, correlations.
  Example: {{ market_lead_lag('ticks', 10, 20, 10000) }}
#}
{% macro market_lead_lag(ticks, step_ms, steps, max_lag_ms) -%}
with
spans as (
    select
        exchange,
        market_type,
        symbol,
        min(known_at) as first_at,
        max(known_at) as last_at
    from {{ ticks }}
    group by exchange, market_type, symbol
),

grid as (
    select
        s.exchange as exchange,
        s.market_type as market_type,
        s.symbol as symbol,
        fromUnixTimestamp64Micro(arrayJoin(range(c.first_us, c.last_us, {{ step_ms * 1000 }})), 'UTC') as at
    from spans as s
    cross join (
        select
            intDiv(toUnixTimestamp64Micro(max(first_at)), {{ step_ms * 1000 }}) * {{ step_ms * 1000 }} + {{ step_ms * 1000 }} as first_us,
            toUnixTimestamp64Micro(min(last_at)) as last_us
        from spans
    ) as c
),

at_grid as (
    {{ as_of('grid', ticks, {'mid': 'mid'}, max_lag_ms, prefix='tick', at='at') }}
),

paths as (
    select
        exchange,
        market_type,
        symbol,
        arraySort(groupArray((at, ifNull(mid, nan)))) as path
    from at_grid
    group by exchange, market_type, symbol
),

pairs as (
    select
        (a.exchange, a.market_type, a.symbol) as first_market,
        (b.exchange, b.market_type, b.symbol) as second_market,
        a.path[1].1 as points_from,
        a.path[-1].1 as points_to,
        a.path.2 as this_mids,
        b.path.2 as other_mids
    from paths as a
    cross join paths as b
    where (a.exchange, a.market_type, a.symbol) != (b.exchange, b.market_type, b.symbol)
),

correlated as (
    {{ lagged_correlations('pairs', steps, 100) }}
)

select
    first_market,
    second_market,
    arrayMap(k -> (k - {{ steps }}) * {{ step_ms }}, range({{ 2 * steps + 1 }})) as lags_ms,
    {{ strongest('correlations', 'lags_ms') }} as peak,
    peak.2 as lag_ms,
    peak.1 as correlation,
    correlations,
    points_from,
    points_to
from correlated
{%- endmacro %}
