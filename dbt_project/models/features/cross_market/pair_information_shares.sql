{%- set appends = is_incremental() and not is_ranged() %}
{%- set coverage = ref('venue_coverage') %}
{%- set period_s = var('information_share_period_s') %}
{%- set per_second = 1000 // var('lead_lag_step_ms') %}
{{ config(**bucket_grain(order_by='(exchange, market_type, symbol, other_exchange, other_market_type, other_symbol, known_at)', day='known_at')) }}

-- Which of two markets discovers the price: one row a closed period (a UTC day, unless the var says less), from its mids second by second.
with
{% if appends %}
published as (
    select
        exchange,
        market_type,
        symbol,
        other_exchange,
        other_market_type,
        other_symbol,
        max(known_at) as resume_at
    from {{ this }}
    group by exchange, market_type, symbol, other_exchange, other_market_type, other_symbol
),
{% endif %}

seconds as (
    select
        i.base_asset as base_asset,
        m.exchange as exchange,
        m.market_type as market_type,
        m.symbol as symbol,
        m.known_at as minute_end,
        toDateTime64(intDiv(toUnixTimestamp(m.known_at) + {{ period_s - 1 }}, {{ period_s }}) * {{ period_s }}, 6, 'UTC') as period_end,
        arrayFilter((x, place) -> place % {{ per_second }} = 1 % {{ per_second }}, m.grid_mids, arrayEnumerate(m.grid_mids)) as mids
    from {{ ref('venue_minutes') }} as m
    inner join {{ ref('instruments') }} as i
        on m.exchange = i.exchange
        and m.market_type = i.market_type
        and m.symbol = i.symbol
    inner join {{ ref('closed_feeds') }} as f
        on m.exchange = f.exchange
        and m.market_type = f.market_type
        and m.symbol = f.symbol
    where
        period_end < f.closed_to
        {%- if is_ranged() %}
        and m.known_at > {{ range_start() }} - toIntervalSecond({{ period_s }})
        and m.known_at < {{ range_end() }}
        and period_end >= {{ range_start() }}
        and period_end < {{ range_end() }}
        {%- elif appends %}
        and m.known_at > {{ pairs_resume_at('published', coverage) }} - toIntervalSecond({{ period_s }})
        {%- endif %}
),

-- Each two markets once: the other way round the shares are what is left of one. A gap between minutes is an unknown second.
pairs as (
    select
        a.exchange as exchange,
        a.market_type as market_type,
        a.symbol as symbol,
        b.exchange as other_exchange,
        b.market_type as other_market_type,
        b.symbol as other_symbol,
        a.period_end as period_end,
        arraySort(groupArray((toUnixTimestamp(a.minute_end), a.mids, b.mids))) as minutes,
        arrayDifference(minutes.1) as since_last,
        arrayFlatten(arrayMap((m, s) -> if(s > 60, arrayPushFront(m, nan), m), minutes.2, since_last)) as this_mids,
        arrayFlatten(arrayMap((m, s) -> if(s > 60, arrayPushFront(m, nan), m), minutes.3, since_last)) as other_mids
    from seconds as a
    inner join seconds as b
        on a.base_asset = b.base_asset
        and a.minute_end = b.minute_end
    {%- if appends %}
    left join published as p
        on a.exchange = p.exchange
        and a.market_type = p.market_type
        and a.symbol = p.symbol
        and b.exchange = p.other_exchange
        and b.market_type = p.other_market_type
        and b.symbol = p.other_symbol
    {%- endif %}
    where
        (a.exchange, a.market_type, a.symbol) < (b.exchange, b.market_type, b.symbol)
        {%- if appends %}
        and (p.resume_at is null or a.period_end > p.resume_at)
        {%- endif %}
    group by exchange, market_type, symbol, other_exchange, other_market_type, other_symbol, period_end
),

shares as (
    select
        * except (minutes, since_last, this_mids, other_mids),
        mp_information_share(this_mids, other_mids, toInt64({{ var('information_share_lags') }})) as share
    from pairs
)

select
    if(is_mirrored, s.other_exchange, s.exchange) as exchange,
    if(is_mirrored, s.other_market_type, s.market_type) as market_type,
    if(is_mirrored, s.other_symbol, s.symbol) as symbol,
    if(is_mirrored, s.exchange, s.other_exchange) as other_exchange,
    if(is_mirrored, s.market_type, s.other_market_type) as other_market_type,
    if(is_mirrored, s.symbol, s.other_symbol) as other_symbol,
    s.period_end as timestamp,
    s.period_end as known_at,
    if(is_mirrored, 1 - s.share.high, s.share.low) as share_low,
    if(is_mirrored, 1 - s.share.low, s.share.high) as share_high,
    if(is_mirrored, 1 - s.share.component, s.share.component) as component,
    s.share.error as udf_error
from shares as s
array join [false, true] as is_mirrored
