{%- set appends = is_incremental() and not is_ranged() %}
{%- set pair_key = '(exchange, market_type, symbol, other_exchange, other_market_type, other_symbol, known_at)' %}
{%- set coverage = ref('venue_coverage') %}
{%- set run_s = var('cross_run_s') %}
{%- set window_s = var('cross_window_s') %}
{%- set hurst_lags = [1, 2, 4, 8, 16, 32] %}
{{ config(**bucket_grain(order_by=pair_key, day='known_at')) }}

-- How the prices of two markets hang together: each run, over the closed minutes of the window before it, second by second.
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
        m.second_prices as second_prices
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
        arraySort(groupArray((known_at, {{ each_second('grid_mids') }}, second_prices))) as grids
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

pairs as (
    select
        a.exchange as exchange,
        a.market_type as market_type,
        a.symbol as symbol,
        b.exchange as other_exchange,
        b.market_type as other_market_type,
        b.symbol as other_symbol,
        a.run_at as run_at,
        arrayFlatten(a.grids.2) as this_mids,
        arrayFlatten(b.grids.2) as other_mids,
        arrayFlatten(a.grids.3) as this_price,
        arrayFlatten(b.grids.3) as other_price
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
        (a.exchange, a.market_type, a.symbol) != (b.exchange, b.market_type, b.symbol)
        {%- if appends %}
        and (p.resume_at is null or a.run_at > p.resume_at)
        {%- endif %}
),

-- Ordinary least squares of this log mid on the other's.
regressed as (
    select
        *,
        arrayMap(m -> log(m), this_mids) as this_log,
        arrayMap(m -> log(m), other_mids) as other_log,
        arrayFilter(d -> not isNaN(d), arrayMap((p, q) -> abs(p - q) / (p + q) * 20000, this_price, other_price)) as differences,
        arrayFilter(z -> not isNaN(z.1 + z.2), arrayZip(this_log, other_log)) as both_known,
        length(both_known) as points,
        arrayAvg(both_known.1) as this_mean,
        arrayAvg(both_known.2) as other_mean,
        arrayMap(y -> y - this_mean, this_log) as this_deviation,
        arrayMap(x -> x - other_mean, other_log) as other_deviation,
        arraySum(arrayMap(x -> if(isNaN(x), 0, x * x), arrayMap((y, x) -> x + 0 * y, this_deviation, other_deviation))) as variation,
        arraySum(arrayMap(v -> if(isNaN(v), 0, v), arrayMap((y, x) -> x * y, this_deviation, other_deviation))) as covariation,
        covariation / variation as slope,
        arrayMap((y, x) -> y - slope * x, this_deviation, other_deviation) as residuals,
        sqrt(arraySum(arrayMap(e -> if(isNaN(e), 0, e * e), residuals)) / points) as residual_sd
    from pairs
),

-- The residual against itself a second before, and how the spread's moves grow with their length.
dynamics as (
    select
        *,
        arrayFilter(z -> not isNaN(z.1 + z.2), arrayZip(arrayPopBack(residuals), arrayPopFront(residuals))) as steps,
        arrayMap(e -> e - arrayAvg(steps.1), steps.1) as residuals_before,
        arrayMap(e -> e - arrayAvg(steps.2), steps.2) as residuals_after,
        arrayDotProduct(residuals_before, residuals_after) / arrayDotProduct(residuals_before, residuals_before) as persistence,
        arrayMap((y, x) -> y - x, this_log, other_log) as spreads,
        [
            {%- for lag in hurst_lags %}
            arrayFilter(
                d -> not isNaN(d),
                arrayMap((s, t) -> t - s, arraySlice(spreads, 1, -{{ lag }}), arraySlice(spreads, {{ lag + 1 }}))
            ){{ ',' if not loop.last }}
            {%- endfor %}
        ] as lagged_moves,
        arrayMap(m -> arrayReduce('varPopStable', m), lagged_moves) as move_variances
    from regressed
)

select
    exchange,
    market_type,
    symbol,
    other_exchange,
    other_market_type,
    other_symbol,
    run_at as timestamp,
    run_at as known_at,
    toUInt32(length(differences)) as shared_seconds,
    if(shared_seconds >= 10, arrayAvg(differences), null) as difference_mean_bps,
    if(shared_seconds >= 10, arrayReduce('quantileExactInclusive(0.99)', differences), null) as difference_p99_bps,
    toUInt32(points) as points,
    points >= {{ window_s // 10 }} and variation > 0 as is_regressed,
    if(is_regressed, slope, null) as slope,
    if(is_regressed, this_mean - slope * other_mean, null) as intercept,
    if(is_regressed, residual_sd * 10000, null) as residual_sd_bps,
    is_regressed and length(steps) >= {{ window_s // 10 }} and persistence > 0 and persistence < 1 as reverts,
    if(reverts, -log(2) / log(persistence), null) as half_life_s,
    -- slope of log sd on log lag; the lags are powers of 2
    if(
        length(lagged_moves[-1]) >= {{ window_s // 10 }} and arrayAll(v -> v > 0, move_variances),
        arraySum(arrayMap((v, i) -> (i - {{ (hurst_lags | length + 1) / 2 }}) * log(v) / 2, move_variances, arrayEnumerate(move_variances)))
        / {{ (hurst_lags | length) * ((hurst_lags | length) ** 2 - 1) / 12 }} / log(2),
        null
    ) as hurst
from dynamics
