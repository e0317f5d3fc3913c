{{ config(**bucket_grain()) }}
{%- set n = var('rolling_buckets') %}

-- A fit a minute is enough for what changes over hundreds of trades: in the first bucket that ends in it.
with windows as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        is_new,
        toStartOfMinute(bucket_ts_end) as minute,
        {{ before('toStartOfMinute(bucket_ts_end)', 1) }} as minute_before,
        groupArrayLastArray({{ var('hawkes_trades') }})(tape_us) over {{ past(n) }} as trade_times -- noqa: LT01
    from {{ new_buckets(ref('bucket_tapes'), context=n) }}
),

firsts as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        -- an instant is one arrival, however many trades an order was split into
        arrayCompact(arraySort(trade_times)) as arrivals
    from windows
    where
        is_new = 1
        and (minute_before is null or minute_before < minute)
),

fits as (
    select
        * except (arrivals),
        toUInt32(length(arrivals)) as arrival_count,
        mp_hawkes(arrayMap((t, first) -> (t - first) / 1e6, arrivals, arrayWithConstant(length(arrivals), arrivals[1]))) as fit
    from firsts
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    arrival_count,
    tupleElement(fit, 'branching_ratio') as branching_ratio,
    tupleElement(fit, 'baseline') as baseline,
    tupleElement(fit, 'decay') as decay,
    tupleElement(fit, 'error') as udf_error
from fits
