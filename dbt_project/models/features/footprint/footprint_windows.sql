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
    from {{ ref('footprint_bin_minutes') }} as m
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
    from {{ ref('footprint_bin_minutes') }} as m
    inner join new_runs as r
        on m.exchange = r.exchange
        and m.market_type = r.market_type
        and m.symbol = r.symbol
    where
        m.known_at >= (select minOrNull(first_run) from new_runs) - toIntervalMinute({{ hours[-1] * 60 + 1 }})
        and m.known_at >= r.first_run - toIntervalMinute({{ hours[-1] * 60 + 1 }})
        and m.known_at <= r.last_run
),

moves as (
    select
        *,
        high_price - low_price as price_range,
        if(before.1 + toIntervalMinute(1) = minute, close_price - before.2, null) as price_move
    from minutes
),

-- five minutes are enough to know: windows begin and end with runs
parts as (
    select
        exchange,
        market_type,
        symbol,
        toStartOfInterval(minute, toIntervalMinute(5)) + toIntervalMinute(5) as part_end,
        addend.1 as price_bin,
        any(first_run) as first_run,
        any(last_run) as last_run,
        sum(addend.2) as bought,
        sum(addend.3) as sold,
        sum(addend.4) as turnover,
        -- exact, hence the same bits in any order of addition
        sum(addend.5) as volume_times_range,
        sum(addend.6) as followed_volume,
        sum(addend.7) as volume_times_move,
        max(addend.8) as last_seen
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
                    (buy + sell) * assumeNotNull(price_move),
                    toDateTime64(0, 6, 'UTC')
                ),
                if(price_move is null, [], before.3), if(price_move is null, [], before.4), if(price_move is null, [], before.5)
            )
        ) as addend
    group by exchange, market_type, symbol, part_end, price_bin
),

-- each part counts in every run up to a day later
parts_of_runs as (
    select
        *,
        later,
        toDateTime64(part_end + toIntervalMinute(5 * later), 6, 'UTC') as run_ts
    from parts
    array join
        range(
            toUInt64(greatest(0, intDiv(dateDiff('minute', part_end, first_run), 5))),
            toUInt64(greatest(0, least({{ 12 * hours[-1] }}, intDiv(dateDiff('minute', part_end, last_run), 5) + 1)))
        ) as later
    where (exchange, market_type, symbol, run_ts) in (select (exchange, market_type, symbol, run_ts) from runs)
),

bins as (
    select
        exchange,
        market_type,
        symbol,
        run_ts,
        window_h,
        price_bin,
        sum(bought) as bought,
        sum(sold) as sold,
        sum(turnover) as turnover,
        sum(volume_times_range) as volume_times_range,
        sum(followed_volume) as followed_volume,
        sum(volume_times_move) as volume_times_move,
        max(last_seen) as last_seen
    from parts_of_runs
    array join arrayFilter(h -> later < 12 * h, {{ hours }}) as window_h
    group by exchange, market_type, symbol, run_ts, window_h, price_bin
),

windows as (
    select
        exchange,
        market_type,
        symbol,
        run_ts,
        window_h,
        count() as bin_count,
        sum(bought + sold) as volume,
        arrayReduce('quantileExact({{ var("footprint_volume_quantile") }})', groupArray(bought + sold)) as volume_threshold,
        groupArray((price_bin, bought, sold, turnover, volume_times_range, followed_volume, volume_times_move, last_seen)) as bins_of_window
    from bins
    -- a bin may have been followed in the window and traded just before it
    where bought + sold > 0
    group by exchange, market_type, symbol, run_ts, window_h
),

-- a row of zeros where no bin is above the threshold
heavy_bins as (
    select
        exchange,
        market_type,
        symbol,
        run_ts,
        window_h,
        bin_count,
        volume,
        volume_threshold,
        bin.1 as price_bin,
        toFloat64(bin.2 + bin.3) as bin_volume,
        toFloat64(bin.2 - bin.3) as bin_delta,
        toFloat64(bin.4) / bin_volume as price,
        toFloat64(bin.5) / toFloat64(bin.4) * 10000 as range_bps,
        if(bin.6 > 0, toFloat64(bin.7) / toFloat64(bin.6) / price * 10000, null) as reversal_bps,
        bin.8 as last_seen,
        abs(bin_delta) / bin_volume as one_sidedness
    from windows
    left array join arrayFilter(b -> b.2 + b.3 > volume_threshold, bins_of_window) as bin
),

judged as (
    select
        *,
        -- absorbed: traded on both sides, or by one side alone, and the price stood still
        range_bps < {{ var('footprint_max_range_bps') }}
        and (one_sidedness < {{ var('footprint_balanced') }} or one_sidedness > {{ var('footprint_one_sided') }}) as is_absorption,
        -- exhausted: traded by one side alone, and the price went the other way
        one_sidedness > {{ var('footprint_one_sided') }} and ifNull(sign(bin_delta) * reversal_bps < 0, false) as is_exhaustion
    from heavy_bins
),

collected as (
    select
        exchange,
        market_type,
        symbol,
        run_ts,
        window_h,
        any(bin_count) as bin_count,
        any(volume) as volume,
        any(volume_threshold) as volume_threshold,
        arraySort(groupArrayIf(
            (price_bin, price, bin_volume, bin_delta, range_bps, reversal_bps, last_seen, is_absorption, is_exhaustion),
            bin_volume > 0 and (is_absorption or is_exhaustion)
        )) as candidates
    from judged
    group by exchange, market_type, symbol, run_ts, window_h
)

select
    exchange,
    market_type,
    symbol,
    run_ts,
    run_ts as known_at,
    toUInt8(window_h) as window_h,
    toUInt32(bin_count) as bin_count,
    toFloat64(volume) as volume,
    toFloat64(volume_threshold) as volume_threshold,
    candidates.1 as candidate_bins,
    candidates.2 as candidate_prices,
    candidates.3 as candidate_volumes,
    candidates.4 as candidate_deltas,
    candidates.5 as candidate_ranges_bps,
    candidates.6 as candidate_reversals_bps,
    candidates.7 as candidate_last_seen,
    candidates.8 as candidate_is_absorption,
    candidates.9 as candidate_is_exhaustion
from collected
