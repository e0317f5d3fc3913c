{{ config(**bucket_grain(order_by='(exchange, market_type, symbol, valid_from)', day='valid_from')) }}

-- The clock's parameters for each anchor that has trades, from data known before the anchor only.
with
{% if is_incremental() and not is_ranged() %}
-- read as far back as the instrument that is furthest behind needs, and all of an instrument that is new
known as (
    select
        (exchange, market_type, symbol) as instrument,
        max(valid_from) - toIntervalDay(8) as resume_from
    from {{ this }}
    group by instrument
),
{% endif %}

on_time_trades as (
    select
        exchange,
        market_type,
        symbol,
        timestamp,
        quantity
    from {{ ref('stg_trades') }}
    where
        is_on_time
        {%- if is_live() %}
        and timestamp < {{ live_complete_to() }}
        {%- endif %}
        {%- if is_ranged() %}
        and timestamp >= {{ range_start() }} - toIntervalDay(8)
        and timestamp < {{ range_end() }}
        {%- elif is_incremental() %}
        and ((exchange, market_type, symbol) not in (select instrument from known) or timestamp >= (select min(resume_from) from known))
        {%- endif %}
),

minutes as (
    select
        exchange,
        market_type,
        symbol,
        toStartOfMinute(timestamp) as minute,
        toFloat64(sum(quantity)) / 60 as volume_per_second
    from on_time_trades
    group by exchange, market_type, symbol, minute
),

-- The row of its own if the instrument has one, else the row of stars.
defaults as (
    select
        i.exchange as exchange,
        i.market_type as market_type,
        i.symbol as symbol,
        d.* except (exchange, market_type, symbol, notes)
    from (
        select distinct
            exchange,
            market_type,
            symbol
        from minutes
    ) as i
    cross join {{ ref('bucket_defaults') }} as d
    where d.exchange in (i.exchange, '*') and d.market_type in (i.market_type, '*') and d.symbol in (i.symbol, '*')
    order by (d.symbol = '*') + (d.market_type = '*') + (d.exchange = '*')
    limit 1 by exchange, market_type, symbol
),

anchored_minutes as (
    select
        m.exchange as exchange,
        m.market_type as market_type,
        m.symbol as symbol,
        m.minute as minute,
        m.volume_per_second as volume_per_second,
        d.lookback_hours as lookback_hours,
        if(d.anchor = 'day', 86400, 3600) as anchor_seconds,
        toDateTime(intDiv(toUnixTimestamp(m.minute), anchor_seconds) * anchor_seconds, 'UTC') as anchor
    from minutes as m
    inner join defaults as d
        on m.exchange = d.exchange
        and m.market_type = d.market_type
        and m.symbol = d.symbol
),

anchors as (
    select distinct
        exchange,
        market_type,
        symbol,
        anchor
    from anchored_minutes
),

-- A minute informs the anchors that start after it and at most lookback_hours after it.
history as (
    select
        exchange,
        market_type,
        symbol,
        arrayJoin(
            arrayMap(
                k -> anchor + toIntervalSecond(k * anchor_seconds),
                range(1, toUInt32(ceil(lookback_hours * 3600 / anchor_seconds)) + 1)
            )
        ) as informed_anchor,
        minute,
        volume_per_second
    from anchored_minutes
    where minute >= informed_anchor - toIntervalHour(lookback_hours)
),

calibrated as (
    select
        exchange,
        market_type,
        symbol,
        informed_anchor,
        quantileExact(0.5)(volume_per_second) as vps_p50, -- noqa: LT01
        count() as minutes_seen
    from history
    group by exchange, market_type, symbol, informed_anchor
)

select
    a.exchange as exchange,
    a.market_type as market_type,
    a.symbol as symbol,
    a.anchor as valid_from,
    a.anchor + toIntervalSecond(anchor_seconds) as valid_to,
    toUInt32(if(d.anchor = 'day', 86400, 3600)) as anchor_seconds,
    {% if var('mode') is not none %}'{{ var("mode") }}'{% else %}toString(d.mode){% endif %} as mode,
    toUInt64({% if var('t_target_s') is not none %}{{ var('t_target_s') }}{% else %}d.t_target_s{% endif %} * 1000000) as t_target_us,
    toUInt64({% if var('t_max_s') is not none %}{{ var('t_max_s') }}{% else %}d.t_max_s{% endif %} * 1000000) as t_max_us,
    coalesce(c.minutes_seen, 0) >= d.min_minutes as is_calibrated,
    toDecimal64(
        if(
            is_calibrated,
            greatest(least(t_target_us / 1000000 * coalesce(c.vps_p50, 0), toFloat64(d.q_max)), toFloat64(d.q_min)),
            -- the seed's size is for the seed's target time
            toFloat64(d.q_bucket) * t_target_us / (toFloat64(d.t_target_s) * 1000000)
        ), 8
    ) as q_bucket,
    toUInt32(d.n_trades) as n_trades,
    toUInt32(d.n_min) as n_min,
    toUInt32(d.n_updates) as n_updates,
    if(is_calibrated, c.vps_p50, null) as vps_p50,
    toUInt32(coalesce(c.minutes_seen, 0)) as minutes_seen
from anchors as a
inner join defaults as d
    on a.exchange = d.exchange
    and a.market_type = d.market_type
    and a.symbol = d.symbol
left join calibrated as c
    on a.exchange = c.exchange
    and a.market_type = c.market_type
    and a.symbol = c.symbol
    and a.anchor = c.informed_anchor
{% if is_ranged() %}
where a.anchor >= {{ range_start() }} and a.anchor < {{ range_end() }}
{% elif is_incremental() %}
where
    (a.exchange, a.market_type, a.symbol, a.anchor) not in (
        select
            exchange,
            market_type,
            symbol,
            valid_from
        from {{ this }}
    )
{% endif %}
