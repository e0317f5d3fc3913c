{{ config(**bucket_grain()) }}
{%- set n = var('rolling_buckets') %}

-- How informed trading looks: by the imbalance of equal volumes, and by the model of days with and without news.
with windows as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        is_new,
        -- in no order, which a sum of whole numbers does not need
        groupArrayLastArray({{ n }})(imbalances) over {{ past(4 * n) }} as last_imbalances, -- noqa: LT01
        groupArrayLastArray({{ n }})(arrayWithConstant(length(imbalances), bar_volume)) over {{ past(4 * n) }} as last_volumes -- noqa: LT01
    from {{ new_buckets(ref('vpin_bars'), context=4 * n) }}
),

buckets as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        if(
            length(last_volumes) >= 10,
            toFloat64(arraySum(last_imbalances)) / toFloat64(arraySum(last_volumes)),
            null
        ) as vpin_exact
    from windows
    where is_new = 1
),

joined as (
    {{ as_of('buckets', ref('pin_daily'), {'pin': 'pin'}, 1000 * var('pin_max_lag_s'), prefix='pin') }}
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    vpin_exact,
    pin
from joined
