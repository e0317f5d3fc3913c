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
        volume,
        arrayFilter(x -> x.3 >= {{ var('sweep_min_levels') }}, arrayZip(order_is_buy, order_quantity, order_levels)) as sweeps,
        arraySlice(
            arrayMap((place, t, price) -> (bucket_id, place, t, price), arrayEnumerate(tape_us), tape_us, tape_price), -{{ longest + 1 }}
        ) as last_prints
    -- a bucket has a print at least: so many buckets hold so many prints
    from {{ new_buckets(ref('taker_orders'), context=longest) }}
),

-- Momentum goes back over the buckets before: a reader's last prints do not start with the bucket.
with_past as (
    select
        * except (last_prints),
        -- the last ones, in no order: sorted here
        arraySort(groupArrayLastArray({{ longest + 1 }})(last_prints) over {{ past(longest + 1) }}) as recent  -- noqa: LT01
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
        {{ split_on_change('step_sides', 'step_sides') }} as step_runs,
        arrayFilter(x -> x.1, sweeps) as bought,
        arrayFilter(x -> not x.1, sweeps) as sold
    from stepped
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    length(sides) / length(print_runs) as print_run_mean,
    toUInt32(arrayMax(run -> length(run), print_runs)) as print_run_max,
    toInt32(arraySum(print_runs[-1])) as print_run_last,
    -- a step in which as much was bought as sold is of neither side
    toUInt32(arrayMax(run -> abs(arraySum(run)), step_runs)) as step_run_max,
    toInt32(arraySum(step_runs[-1])) as step_run_last,
    length(step_sides) / (
        intDiv(toUnixTimestamp64Micro(bucket_ts_end), {{ var('tape_step_ms') * 1000 }}) - steps[1] + 1
    ) as active_step_share,
    {%- for n in prints %}
    if(
        length(recent) > {{ n }}
        and recent[-{{ n + 1 }}].3 >= toUnixTimestamp64Micro(bucket_ts_end) - {{ var('momentum_max_age_s') * 1000000 }},
        toFloat64(recent[-1].4 - recent[-{{ n + 1 }}].4) / toFloat64(recent[-{{ n + 1 }}].4) * 10000,
        null
    ) as micro_momentum_{{ n }}_bps,
    {%- endfor %}
    toUInt32(length(bought)) as sweep_count_buy,
    toUInt32(length(sold)) as sweep_count_sell,
    toFloat64(arraySum(bought.2)) / toFloat64(volume) as sweep_share_buy,
    toFloat64(arraySum(sold.2)) / toFloat64(volume) as sweep_share_sell,
    if(empty(bought), toUInt32(0), arrayMax(bought.3)) as sweep_levels_buy,
    if(empty(sold), toUInt32(0), arrayMax(sold.3)) as sweep_levels_sell
from split_runs
