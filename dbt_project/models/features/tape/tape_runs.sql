{{ config(**bucket_grain()) }}
{%- set prints = [10, 50] %}
{%- set longest = prints | max %}

-- Same-side runs of prints and of 100 ms steps, micro-momentum over the last prints, sweeps through several prices.
with tapes as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end,
        is_new,
        tape_us,
        tape_price,
        tape_quantity,
        tape_is_buy,
        arraySlice(arrayZip(tape_us, tape_price), -{{ longest + 1 }}) as last_prints
    -- a bucket has a print at least: so many buckets hold so many prints
    from {{ new_buckets(ref('bucket_tapes'), context=longest) }}
),

-- Momentum goes back over the buckets before: a reader's last prints do not start with the bucket.
with_past as (
    select
        * except (last_prints),
        arraySlice(arrayFlatten(groupArray(last_prints) over {{ past(longest + 1) }}), -{{ longest + 1 }}) as recent
    from tapes
),

stepped as (
    select
        *,
        arrayMap(side -> if(side, 1, -1), tape_is_buy) as sides,
        arrayMap(t -> intDiv(t, {{ var('tape_step_ms') * 1000 }}), tape_us) as steps,
        arrayMap((quantity, side) -> quantity * side, tape_quantity, sides) as signed_quantities,
        -- what the takers bought, net, in each step with a print
        arrayMap(quantities -> arraySum(quantities), {{ split_on_change('signed_quantities', 'steps') }}) as step_net,
        arrayMap(net -> toInt8(sign(net)), step_net) as step_sides
    from with_past
    where is_new = 1
),

split_runs as (
    select
        *,
        {{ split_on_change('sides', 'sides') }} as print_runs,
        {{ split_on_change('step_sides', 'step_sides') }} as step_runs
    from stepped
),

sweeps as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        arrayFilter(
            order -> order.3 >= {{ var('sweep_min_levels') }}, arrayZip(order_is_buy, order_quantity, order_levels)
        ) as swept,
        arrayFilter(order -> order.1, swept) as bought,
        arrayFilter(order -> not order.1, swept) as sold,
        arraySum(order_quantity) as volume
    from {{ new_buckets(ref('taker_orders')) }}
)

select
    t.exchange as exchange,
    t.market_type as market_type,
    t.symbol as symbol,
    t.bucket_id as bucket_id,
    t.bucket_ts_start as bucket_ts_start,
    t.bucket_ts_end as bucket_ts_end,
    length(t.sides) / length(t.print_runs) as print_run_mean,
    toUInt32(arrayMax(run -> length(run), t.print_runs)) as print_run_max,
    toInt32(arraySum(t.print_runs[-1])) as print_run_last,
    -- a step in which as much was bought as sold is of neither side
    toUInt32(arrayMax(run -> abs(arraySum(run)), t.step_runs)) as step_run_max,
    toInt32(arraySum(t.step_runs[-1])) as step_run_last,
    length(t.step_sides) / (
        intDiv(toUnixTimestamp64Micro(t.bucket_ts_end), {{ var('tape_step_ms') * 1000 }}) - t.steps[1] + 1
    ) as active_step_share,
    {%- for n in prints %}
    if(
        length(t.recent) > {{ n }}
        and t.recent[-{{ n + 1 }}].1 >= toUnixTimestamp64Micro(t.bucket_ts_end) - {{ var('momentum_max_age_s') * 1000000 }},
        toFloat64(t.recent[-1].2 - t.recent[-{{ n + 1 }}].2) / toFloat64(t.recent[-{{ n + 1 }}].2) * 10000,
        null
    ) as micro_momentum_{{ n }}_bps,
    {%- endfor %}
    toUInt32(length(s.bought)) as sweep_count_buy,
    toUInt32(length(s.sold)) as sweep_count_sell,
    toFloat64(arraySum(s.bought.2)) / toFloat64(s.volume) as sweep_share_buy,
    toFloat64(arraySum(s.sold.2)) / toFloat64(s.volume) as sweep_share_sell,
    if(empty(s.bought), toUInt32(0), arrayMax(s.bought.3)) as sweep_levels_buy,
    if(empty(s.sold), toUInt32(0), arrayMax(s.sold.3)) as sweep_levels_sell
from split_runs as t
inner join sweeps as s
    on t.exchange = s.exchange
    and t.market_type = s.market_type
    and t.symbol = s.symbol
    and t.bucket_id = s.bucket_id
