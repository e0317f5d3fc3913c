{{ config(**bucket_grain()) }}
{%- set n = var('rolling_buckets') %}
{%- set bins = {'100ms': 100000, '1s': 1000000} %}

-- How often trades come, and how much they come in bursts: in whole bins from the bucket's start. The trade that started it would make
-- the first bin a full one by construction.
with tapes as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        is_new,
        {%- for name, width in bins.items() %}
        intDiv(dateDiff('microsecond', bucket_ts_start, bucket_ts_end), {{ width }}) as bins_{{ name }},
        arrayFilter(
            bin -> bin < bins_{{ name }},
            arrayMap(t -> intDiv(t - toUnixTimestamp64Micro(bucket_ts_start), {{ width }}), arrayPopFront(tape_us))
        ) as binned_{{ name }},
        {%- endfor %}
        trade_count
    from {{ new_buckets(ref('bucket_tapes'), context=n) }}
),

windows as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        is_new,
        {%- for name in bins %}
        sum(bins_{{ name }}) over {{ past(n) }} as all_bins_{{ name }},
        sum(length(binned_{{ name }})) over {{ past(n) }} as counts_{{ name }},
        -- the k-th trade of a bin adds 2k - 1 to the square of its count
        sum(arraySum(k -> 2 * k - 1, arrayEnumerateUniq(binned_{{ name }}))) over {{ past(n) }} as squares_{{ name }},
        {%- endfor %}
        count() over {{ past(n) }} as points,
        sum(trade_count) over {{ past(n) }} as trades,
        dateDiff('microsecond', min(bucket_ts_start) over {{ past(n) }}, bucket_ts_end) / 1e6 as seconds
    from tapes
),

features as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        {%- for name in bins %}
        if(
            all_bins_{{ name }} >= 50 and counts_{{ name }} > 0,
            squares_{{ name }} / counts_{{ name }} - counts_{{ name }} / all_bins_{{ name }},
            null
        ) as fano_{{ name }},
        {%- endfor %}
        if(points >= 10, trades / nullIf(seconds, 0), null) as trade_intensity
    from windows
    where is_new = 1
),

fits as (
    select
        exchange,
        market_type,
        symbol,
        bucket_ts_end as timestamp,
        bucket_ts_end as known_at,
        branching_ratio
    from {{ ref('hawkes_fits') }}
),

joined as (
    {{ as_of('features', 'fits', {'branching_ratio': 'hawkes_branching_ratio'}, 60000, prefix='hawkes') }}
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    trade_intensity,
    {%- for name in bins %}
    fano_{{ name }},
    {%- endfor %}
    hawkes_branching_ratio
from joined
