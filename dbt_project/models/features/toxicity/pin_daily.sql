{{ config(**bucket_grain(order_by='(exchange, market_type, symbol, day_start)', day='day_start')) }}
{%- set appends = is_incremental() and not is_ranged() %}

-- The probability of informed trading of each closed day, from its counts of buys and sells in short intervals.
with
{% if appends %}
published as (
    select
        exchange,
        market_type,
        symbol,
        max(day_start) as last_day
    from {{ this }}
    group by exchange, market_type, symbol
),
{% endif %}

-- A day is closed by a bucket that ended after it, or by the feed's watermark: then its buckets are all there, as they end with the
-- anchor. The bucket that ends with the day is published before that can be known: known_at is a microsecond later.
feeds as (
    select
        exchange,
        market_type,
        symbol,
        max(at) as seen_to
    from (
        select
            exchange,
            market_type,
            symbol,
            max(bucket_ts_end) as at
        from {{ ref('unified_buckets') }}
        group by exchange, market_type, symbol
        union all
        select
            exchange,
            market_type,
            symbol,
            watermark - toIntervalMicrosecond(1) as at
        from {{ ref('stg_watermarks') }}
        where kind = 'trades'
    )
    group by exchange, market_type, symbol
),

closed_tapes as (
    select
        b.exchange as exchange,
        b.market_type as market_type,
        b.symbol as symbol,
        toDateTime64(toStartOfDay(b.bucket_ts_start), 6, 'UTC') as day_start,
        b.tape_us as tape_us,
        b.tape_is_buy as tape_is_buy
    from {{ ref('bucket_tapes') }} as b
    inner join feeds as f
        on b.exchange = f.exchange
        and b.market_type = f.market_type
        and b.symbol = f.symbol
    {%- if appends %}
    left join published as p
        on b.exchange = p.exchange
        and b.market_type = p.market_type
        and b.symbol = p.symbol
    {%- endif %}
    where
        f.seen_to > toStartOfDay(b.bucket_ts_start) + toIntervalDay(1)
        {%- if is_ranged() %}
        and b.bucket_ts_start >= {{ range_start() }}
        and b.bucket_ts_start < {{ range_end() }}
        {%- elif appends %}
        and (p.last_day is null or b.bucket_ts_start >= p.last_day + toIntervalDay(1))
        {%- endif %}
),

intervals as (
    select
        exchange,
        market_type,
        symbol,
        day_start,
        intDiv(trade_us, {{ var('pin_interval_minutes') }} * 60000000) as interval_number,
        toFloat64(countIf(is_buy = 1)) as buys,
        toFloat64(countIf(is_buy = 0)) as sells
    from closed_tapes
    array join
        tape_us as trade_us,
        tape_is_buy as is_buy
    group by exchange, market_type, symbol, day_start, interval_number
),

days as (
    select
        exchange,
        market_type,
        symbol,
        day_start,
        arraySort(groupArray((interval_number, buys, sells))) as counts
    from intervals
    group by exchange, market_type, symbol, day_start
),

fits as (
    select
        *,
        mp_pin(counts.2, counts.3) as fit
    from days
)

select
    exchange,
    market_type,
    symbol,
    day_start,
    day_start + toIntervalDay(1) as timestamp,
    -- a bucket that ends after midnight started after it, so the day's row is there before it
    timestamp + toIntervalMicrosecond(1) as known_at,
    toUInt32(length(counts)) as interval_count,
    tupleElement(fit, 'pin') as pin,
    tupleElement(fit, 'alpha') as alpha,
    tupleElement(fit, 'delta') as delta,
    tupleElement(fit, 'mu') as mu,
    tupleElement(fit, 'epsilon_buy') as epsilon_buy,
    tupleElement(fit, 'epsilon_sell') as epsilon_sell,
    tupleElement(fit, 'error') as udf_error
from fits
