{%- set appends = is_incremental() and not is_ranged() %}
{{ config(**bucket_grain(order_by='(exchange, market_type, symbol, run_ts)', day='run_ts')) }}
{{ config(post_hook='{{ online_levels() }}') }}

-- The price levels that a run left: clusters of each window's candidates, the heaviest {{ var('footprint_max_clusters') }}.
with
{% if appends %}
published as (
    select
        exchange,
        market_type,
        symbol,
        max(run_ts) as last_run
    from {{ this }}
    group by exchange, market_type, symbol
),
{% endif %}

windows as (
    select w.*
    from {{ ref('footprint_windows') }} as w
    {% if appends %}
    left join published as p
        on w.exchange = p.exchange
        and w.market_type = p.market_type
        and w.symbol = p.symbol
    where p.last_run is null or w.run_ts > p.last_run
    {% elif is_ranged() %}
    where w.run_ts >= {{ range_start() }} and w.run_ts < {{ range_end() }}
    {% endif %}
),

clustered as (
    select
        exchange,
        market_type,
        symbol,
        run_ts,
        window_h,
        volume as window_volume,
        length(candidate_bins) as candidates,
        mp_price_clusters(
            candidate_prices,
            candidate_volumes,
            candidate_deltas,
            arrayMap(t -> toUnixTimestamp64Micro(t), candidate_last_seen),
            toFloat64({{ var('footprint_eps_bps') }}),
            toInt64({{ var('footprint_min_samples') }})
        ) as levels
    from windows
),

runs as (
    select
        exchange,
        market_type,
        symbol,
        run_ts,
        sum(candidates) as candidates,
        -- heaviest first, by share of its window's volume
        arraySlice(
            arraySort(arrayFlatten(groupArray(
                arrayMap(
                    (price, volume, delta, seen, bins) -> (-volume / window_volume, window_h, price, volume, delta, seen, bins),
                    {%- for part in ('price', 'volume', 'delta', 'last_seen', 'bins') %}
                    tupleElement(levels, '{{ part }}'){{ ',' if not loop.last }}
                    {%- endfor %}
                )
            ))),
            1,
            {{ var('footprint_max_clusters') }}
        ) as clusters,
        min(tupleElement(levels, 'error')) as udf_error
    from clustered
    group by exchange, market_type, symbol, run_ts
)

select
    exchange,
    market_type,
    symbol,
    run_ts,
    run_ts as known_at,
    toUInt32(candidates) as candidate_count,
    toUInt32(length(clusters)) as cluster_count,
    clusters.2 as cluster_windows_h,
    clusters.3 as cluster_prices,
    clusters.4 as cluster_volumes,
    arrayMap(c -> -c.1, clusters) as cluster_shares,
    arrayMap(c -> toInt8(sign(c.5)), clusters) as cluster_signs,
    arrayMap(c -> fromUnixTimestamp64Micro(c.6, 'UTC'), clusters) as cluster_last_seen,
    arrayMap(c -> toUInt32(c.7), clusters) as cluster_bins,
    udf_error
from runs
