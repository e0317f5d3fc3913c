{{ config(**bucket_grain()) }}

-- Resistance and support around the mid at the bucket's end, from the newest run of the candidates by then.
with buckets as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        mid_close
    from {{ new_buckets(ref('top_of_book')) }}
),

-- a run whose clusters failed knows nothing
runs as (
    select
        exchange,
        market_type,
        symbol,
        run_ts,
        run_ts as timestamp,
        known_at
    from {{ ref('footprint_clusters') }}
    where udf_error is null
),

at_close as (
    {{ as_of('buckets', 'runs', {'run_ts': 'run_ts'}, var('footprint_max_lag_s') * 1000, prefix='run') }}
),

clusters as (
    select
        exchange,
        market_type,
        symbol,
        run_ts,
        cluster_count,
        cluster_prices,
        cluster_shares,
        cluster_signs,
        cluster_last_seen
    from {{ ref('footprint_clusters') }}
    where run_ts in (select run_ts from at_close)
),

levels as (
    select
        b.exchange as exchange,
        b.market_type as market_type,
        b.symbol as symbol,
        b.bucket_id as bucket_id,
        b.bucket_ts_start as bucket_ts_start,
        b.bucket_ts_end as bucket_ts_end,
        b.run_ts as run_ts,
        b.run_age_ms as run_age_ms,
        b.run_ts is not null and b.mid_close is not null as is_known,
        assumeNotNull(b.mid_close) as mid,
        c.cluster_count as cluster_count,
        c.cluster_signs as cluster_signs,
        {{ level_distances('c.cluster_prices', 'mid') }} as distances,
        {{ level_strengths('distances', 'c.cluster_shares', 'c.cluster_last_seen', 'b.bucket_ts_end') }} as strengths
    from at_close as b
    left join clusters as c
        on b.exchange = c.exchange
        and b.market_type = c.market_type
        and b.symbol = c.symbol
        and b.run_ts = c.run_ts
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    {{ level_features('distances', 'strengths', 'cluster_signs', 'is_known') }},
    cluster_count as level_count,
    run_age_ms / 1000 as level_run_age_s
from levels
