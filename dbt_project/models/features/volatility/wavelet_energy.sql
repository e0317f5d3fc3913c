{{ config(**bucket_grain()) }}
{%- set n = var('wavelet_buckets') %}

-- How much of the mid's movement over the last buckets is short-lived, and how much lasts.
with returns as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        is_new,
        log(mid_close / {{ before('mid_close', 1) }}) as r
    from {{ new_buckets(ref('bucket_moves'), context=n) }}
),

windows as (
    select
        *,
        -- NULLs are left out of an array: it is full only where every return is known
        groupArray(r) over {{ past(n) }} as rs
    from returns
),

transformed as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        mp_wavelet_energy(rs) as energy
    from windows
    where
        is_new = 1
        and length(rs) = {{ n }}
)

select
    w.exchange as exchange,
    w.market_type as market_type,
    w.symbol as symbol,
    w.bucket_id as bucket_id,
    w.bucket_ts_start as bucket_ts_start,
    w.bucket_ts_end as bucket_ts_end,
    tupleElement(t.energy, 'approximation') as wavelet_energy_approximation,
    tupleElement(t.energy, 'detail_3') as wavelet_energy_detail_3,
    tupleElement(t.energy, 'detail_2') as wavelet_energy_detail_2,
    tupleElement(t.energy, 'detail_1') as wavelet_energy_detail_1,
    tupleElement(t.energy, 'snr') as wavelet_snr,
    tupleElement(t.energy, 'error') as udf_error
from windows as w
left join transformed as t
    on w.exchange = t.exchange
    and w.market_type = t.market_type
    and w.symbol = t.symbol
    and w.bucket_id = t.bucket_id
where w.is_new = 1
