{{ config(materialized="view") }}

-- One row per instrument and bucket: its tape and its taker orders as arrays. An order is what one side printed at one timestamp: its
-- fills come as several prints. An order that the bucket's end cuts in two is a smaller one in each.
with sorted_tapes as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        volume,
        tape_us,
        tape_price,
        tape_quantity,
        tape_is_buy,
        arraySort(arrayZip(tape_us, tape_is_buy, tape_price, tape_quantity)) as prints
    from {{ ref('bucket_tapes') }}
),

split_tapes as (
    select
        *,
        {{ split_on_change('prints', 'arrayZip(prints.1, prints.2)') }} as orders
    from sorted_tapes
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    volume,
    tape_us,
    tape_price,
    tape_quantity,
    tape_is_buy,
    arrayMap(fills -> fills[1].1, orders) as order_us,
    arrayMap(fills -> fills[1].2, orders) as order_is_buy,
    arrayMap(fills -> arraySum(fills.4), orders) as order_quantity,
    arrayMap(fills -> toUInt32(length(arrayDistinct(fills.3))), orders) as order_levels
from split_tapes
