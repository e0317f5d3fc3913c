{%- set appends = is_incremental() and not is_ranged() %}
{%- set hours = [1, 4, 24] %}
{{ config(**bucket_grain(order_by='(exchange, market_type, symbol, run_ts, window_h)', day='run_ts')) }}
{{ config(query_settings={'max_bytes_before_external_group_by': 4000000000}) }}

-- What each price bin traded in the hours before a run, and which bins stand out: the candidates.
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

-- A run each five minutes, as soon as the minutes before it are closed.
runs as (
    select
        m.exchange as exchange,
        m.market_type as market_type,
        m.symbol as symbol,
        m.known_at as run_ts
    from {{ ref('footprint_minutes') }} as m
    {% if appends %}
    left join published as p
        on m.exchange = p.exchange
        and m.market_type = p.market_type
        and m.symbol = p.symbol
    {% endif %}
    where
        toUnixTimestamp(m.minute) % 300 = 240
        {%- if appends %}
        and (p.last_run is null or m.known_at > p.last_run)
        {%- elif is_ranged() %}
        and m.known_at >= {{ range_start() }}
        and m.known_at < {{ range_end() }}
        {%- endif %}
        {%- if var('run_ts') is not none %}
        and m.known_at <= parseDateTime64BestEffort('{{ var("run_ts") }}', 6, 'UTC')
        {%- endif %}
),

new_runs as (
    select
        exchange,
        market_type,
        symbol,
        min(run_ts) as first_run,
        max(run_ts) as last_run
    from runs
    group by exchange, market_type, symbol
),

-- each minute beside the one before it: what the price did after that one is known only now
minutes as (
    select
        m.exchange as exchange,
        m.market_type as market_type,
        m.symbol as symbol,
        m.minute as minute,
        m.known_at as known_at,
        m.low_price as low_price,
        m.high_price as high_price,
        m.close_price as close_price,
        m.price_bins as price_bins,
        m.buy_volumes as buy_volumes,
        m.sell_volumes as sell_volumes,
        m.turnovers as turnovers,
        r.first_run as first_run,
        r.last_run as last_run,
        lagInFrame((m.minute, m.close_price, m.price_bins, m.buy_volumes, m.sell_volumes)) over (
            partition by m.exchange, m.market_type, m.symbol
            order by m.minute
            rows between 1 preceding and current row
        ) as before
    from {{ ref('footprint_minutes') }} as m
    inner join new_runs as r
        on m.exchange = r.exchange
        and m.market_type = r.market_type
        and m.symbol = r.symbol
    where
        m.known_at >= (select min(first_run) from new_runs) - toIntervalMinute({{ hours[-1] * 60 + 1 }})
        and m.known_at >= r.first_run - toIntervalMinute({{ hours[-1] * 60 + 1 }})
        and m.known_at <= r.last_run
),

moves as (
    select
        *,
        high_price - low_price as price_range,
        if(before.1 + toIntervalMinute(1) = minute, close_price - before.2, null) as move
    from minutes
),

-- five minutes are enough to know: windows begin and end with runs
parts as (
    select
        exchange,
        market_type,
        symbol,
        toStartOfInterval(minute, toIntervalMinute(5)) + toIntervalMinute(5) as part_end,
        part.1 as price_bin,
        any(first_run) as first_run,
        any(last_run) as last_run,
        sum(part.2) as bought,
        sum(part.3) as sold,
        sum(part.4) as turnover,
        -- exact, hence the same bits in any order of addition
        sum(part.5) as volume_times_range,
        sum(part.6) as followed_volume,
        sum(part.7) as volume_times_move,
        max(part.8) as last_seen
    from moves
    array join
        arrayConcat(
            arrayMap(
                (bin, buy, sell, value) -> (
                    bin, buy, sell, value, (buy + sell) * assumeNotNull(price_range), toDecimal128(0, 8), toDecimal128(0, 16), known_at
                ),
                price_bins, buy_volumes, sell_volumes, turnovers
            ),
            arrayMap(
                (bin, buy, sell) -> (
                    bin,
                    toDecimal128(0, 8),
                    toDecimal128(0, 8),
                    toDecimal128(0, 16),
                    toDecimal128(0, 16),
                    buy + sell,
                    (buy + sell) * assumeNotNull(move),
                    toDateTime64(0, 6, 'UTC')
                ),
                if(move is null, [], before.3), if(move is null, [], before.4), if(move is null, [], before.5)
            )
        ) as part
    group by exchange, market_type, symbol, part_end, price_bin
),

bins as (
    select
        exchange,
        market_type,
        symbol,
        toDateTime64(part_end + toIntervalMinute(5 * later), 6, 'UTC') as run_ts,
        price_bin,
        {%- for h in hours %}
        (
            sumIf(bought, later < {{ 12 * h }}),
            sumIf(sold, later < {{ 12 * h }}),
            sumIf(turnover, later < {{ 12 * h }}),
            sumIf(volume_times_range, later < {{ 12 * h }}),
            sumIf(followed_volume, later < {{ 12 * h }}),
            sumIf(volume_times_move, later < {{ 12 * h }}),
            maxIf(last_seen, later < {{ 12 * h }})
        ) as sums_{{ h }}{{ ',' if not loop.last }}
        {%- endfor %}
    from parts
    array join range(
        toUInt64(greatest(0, intDiv(dateDiff('minute', part_end, first_run), 5))),
        toUInt64(greatest(0, least({{ 12 * hours[-1] }}, intDiv(dateDiff('minute', part_end, last_run), 5) + 1)))
    ) as later
    group by exchange, market_type, symbol, run_ts, price_bin
),

profiles as (
    select
        exchange,
        market_type,
        symbol,
        run_ts,
        {%- for h in hours %}
        arraySort(groupArrayIf((price_bin, sums_{{ h }}), sums_{{ h }}.1 + sums_{{ h }}.2 > 0)) as profile_{{ h }}{{ ',' if not loop.last }}
        {%- endfor %}
    from bins
    group by exchange, market_type, symbol, run_ts
),

windows as (
    select
        r.exchange as exchange,
        r.market_type as market_type,
        r.symbol as symbol,
        r.run_ts as run_ts,
        window_h,
        profile,
        arrayMap(bin -> bin.2.1 + bin.2.2, profile) as volumes,
        arraySum(volumes) as volume,
        arrayReduce('quantileExact({{ var("footprint_volume_quantile") }})', volumes) as threshold,
        arrayMap(
            bin -> (
                bin.1,
                toFloat64(bin.2.3) / toFloat64(bin.2.1 + bin.2.2),
                toFloat64(bin.2.1 + bin.2.2),
                toFloat64(bin.2.1 - bin.2.2),
                toFloat64(bin.2.4) / toFloat64(bin.2.3) * 10000,
                if(bin.2.5 > 0, toFloat64(bin.2.6) / toFloat64(bin.2.5) / (toFloat64(bin.2.3) / toFloat64(bin.2.1 + bin.2.2)) * 10000, null),
                bin.2.7
            ),
            arrayFilter(bin -> bin.2.1 + bin.2.2 > threshold, profile)
        ) as high
    from runs as r
    left join profiles as p
        on r.exchange = p.exchange
        and r.market_type = p.market_type
        and r.symbol = p.symbol
        and r.run_ts = p.run_ts
    array join
        {{ hours }} as window_h,
        [{% for h in hours %}p.profile_{{ h }}{{ ', ' if not loop.last }}{% endfor %}] as profile
),

judged as (
    select
        *,
        arrayFilter(
            bin -> bin.8 or bin.9,
            arrayMap(
                bin -> tupleConcat(
                    bin,
                    (
                        -- absorbed: traded on both sides, or by one side alone, and the price stood still
                        bin.5 < {{ var('footprint_max_range_bps') }} and (
                            abs(bin.4) / bin.3 < {{ var('footprint_balanced') }} or abs(bin.4) / bin.3 > {{ var('footprint_one_sided') }}
                        ),
                        -- exhausted: traded by one side alone, and the price went the other way
                        abs(bin.4) / bin.3 > {{ var('footprint_one_sided') }} and ifNull(sign(bin.4) * bin.6 < 0, false)
                    )
                ),
                high
            )
        ) as candidates
    from windows
)

select
    exchange,
    market_type,
    symbol,
    run_ts,
    run_ts as known_at,
    toUInt8(window_h) as window_h,
    toUInt32(length(volumes)) as bin_count,
    toFloat64(volume) as volume,
    toFloat64(threshold) as volume_threshold,
    candidates.1 as candidate_bins,
    candidates.2 as candidate_prices,
    candidates.3 as candidate_volumes,
    candidates.4 as candidate_deltas,
    candidates.5 as candidate_ranges_bps,
    candidates.6 as candidate_reversals_bps,
    candidates.7 as candidate_last_seen,
    candidates.8 as candidate_is_absorption,
    candidates.9 as candidate_is_exhaustion
from judged
