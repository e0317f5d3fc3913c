{%- set appends = is_incremental() and not is_ranged() %}
{%- set pair_key = '(exchange, market_type, symbol, other_exchange, other_market_type, other_symbol, known_at)' %}
{%- set coverage = ref('venue_coverage') %}
{%- set run_s = var('cross_run_s') %}
{%- set window_s = var('cross_window_s') %}
{%- set steps = var('lead_lag_steps') %}
{%- set step_ms = var('lead_lag_step_ms') %}
{{ config(**bucket_grain(order_by=pair_key, day='known_at')) }}

-- Which of two markets moves first: correlations over a grid of lags, each run, over the closed minutes of the window before it.
with
{% if appends %}
published as (
    select
        exchange,
        market_type,
        symbol,
        other_exchange,
        other_market_type,
        other_symbol,
        max(known_at) as resume_at
    from {{ this }}
    group by exchange, market_type, symbol, other_exchange, other_market_type, other_symbol
),
{% endif %}

minutes as (
    select
        i.base_asset as base_asset,
        m.exchange as exchange,
        m.market_type as market_type,
        m.symbol as symbol,
        m.known_at as known_at,
        m.grid_mids as grid_mids,
        m.tick_us as tick_us,
        m.tick_mids as tick_mids
    from {{ ref('venue_minutes') }} as m
    inner join {{ ref('instruments') }} as i
        on m.exchange = i.exchange
        and m.market_type = i.market_type
        and m.symbol = i.symbol
    {%- if is_ranged() %}
    where
        m.known_at > {{ range_start() }} - toIntervalSecond({{ window_s }})
        and m.known_at < {{ range_end() }}
    {%- elif appends %}
    where m.known_at > {{ pairs_resume_at('published', coverage) }} - toIntervalSecond({{ window_s }})
    {%- endif %}
),

windows as (
    select
        base_asset,
        exchange,
        market_type,
        symbol,
        run_at,
        arraySort(groupArray((known_at, grid_mids))) as grids,
        arraySort(groupArray((known_at, tick_us, tick_mids))) as ticks
    from minutes
    array join {{ runs_of('known_at', run_s, window_s) }} as run_at
    {%- if is_ranged() %}
    where
        run_at >= {{ range_start() }}
        and run_at < {{ range_end() }}
    {%- endif %}
    group by base_asset, exchange, market_type, symbol, run_at
    having count() = {{ window_s // 60 }}
),

-- Each two markets once: the other way round all lags change their sign.
pairs as (
    select
        (a.exchange, a.market_type, a.symbol) as market,
        (b.exchange, b.market_type, b.symbol) as other_market,
        a.run_at as run_at,
        arrayFlatten(a.grids.2) as this_mids,
        arrayFlatten(b.grids.2) as other_mids,
        arrayFlatten(a.ticks.2) as this_us,
        arrayFlatten(b.ticks.2) as other_us,
        arrayFlatten(a.ticks.3) as this_ticks,
        arrayFlatten(b.ticks.3) as other_ticks
    from windows as a
    inner join windows as b
        on a.base_asset = b.base_asset
        and a.run_at = b.run_at
    {%- if appends %}
    left join published as p
        on a.exchange = p.exchange
        and a.market_type = p.market_type
        and a.symbol = p.symbol
        and b.exchange = p.other_exchange
        and b.market_type = p.other_market_type
        and b.symbol = p.other_symbol
    {%- endif %}
    where
        (a.exchange, a.market_type, a.symbol) < (b.exchange, b.market_type, b.symbol)
        {%- if appends %}
        and (p.resume_at is null or a.run_at > p.resume_at)
        {%- endif %}
),

on_grid as (
    {{ lagged_correlations('pairs', steps, window_s * 100 // step_ms) }}
),

on_ticks as (
    {{ hayashi_yoshida('on_grid', step_ms * 1000, steps, var('book_max_lag_ms') * 1000) }}
),

both_ways as (
    select
        if(is_mirrored, other_market, market) as this,
        if(is_mirrored, market, other_market) as other,
        run_at,
        if(is_mirrored, arrayReverse(correlations), correlations) as correlations_of_this,
        if(is_mirrored, arrayReverse(hy_correlations), hy_correlations) as hy_correlations_of_this
    from on_ticks
    array join [false, true] as is_mirrored
),

peaks as (
    select
        *,
        arrayMap(k -> (k - {{ steps }}) * {{ step_ms }}, range({{ 2 * steps + 1 }})) as lags_ms,
        {{ strongest('correlations_of_this', 'lags_ms') }} as peak,
        {{ strongest('hy_correlations_of_this', 'lags_ms') }} as hy_peak,
        arraySum(arrayMap((c, l) -> if(l > 0, c * c, 0), hy_correlations_of_this, lags_ms)) as hy_forward,
        arraySum(arrayMap((c, l) -> if(l < 0, c * c, 0), hy_correlations_of_this, lags_ms)) as hy_backward
    from both_ways
)

select
    this.1 as exchange,
    this.2 as market_type,
    this.3 as symbol,
    other.1 as other_exchange,
    other.2 as other_market_type,
    other.3 as other_symbol,
    run_at as timestamp,
    run_at as known_at,
    peak.2 as lag_ms,
    peak.1 as correlation,
    if(isNaN(correlations_of_this[{{ steps + 1 }}]), null, correlations_of_this[{{ steps + 1 }}]) as correlation_at_zero,
    hy_peak.2 as hy_lag_ms,
    hy_peak.1 as hy_correlation,
    if(hy_forward >= 0 and hy_backward > 0, hy_forward / hy_backward, null) as hy_ratio,
    correlations_of_this as correlations,
    hy_correlations_of_this as hy_correlations
from peaks
