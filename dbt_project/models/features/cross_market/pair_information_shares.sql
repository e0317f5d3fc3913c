{%- set appends = is_incremental() and not is_ranged() %}
{%- set pair_key = '(exchange, market_type, symbol, other_exchange, other_market_type, other_symbol, known_at)' %}
{%- set coverage = ref('venue_coverage') %}
{%- set period_s = var('information_share_period_s') %}
{{ config(**bucket_grain(order_by=pair_key, day='known_at')) }}

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

minutes as (
    select
        i.base_asset as base_asset,
        m.exchange as exchange,
        m.market_type as market_type,
        m.symbol as symbol,
        m.known_at as minute_end,
        toDateTime64(intDiv(toUnixTimestamp(m.known_at) + {{ period_s - 1 }}, {{ period_s }}) * {{ period_s }}, 6, 'UTC') as period_end,
        m.grid_mids as grid_mids
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

seconds as (
    select
        base_asset,
        exchange,
        market_type,
        symbol,
        minute_end,
        period_end,
        {{ each_second('grid_mids') }} as mids
    from minutes
),

-- Each two markets once: the other way round the shares are what is left of one.
pairs as (
    select
        (a.exchange, a.market_type, a.symbol) as market,
        (b.exchange, b.market_type, b.symbol) as other_market,
        a.period_end as period_end,
        arraySort(groupArray((toUnixTimestamp(a.minute_end), a.mids, b.mids))) as minutes
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
    group by market, other_market, period_end
),

-- A gap between minutes is an unknown second.
series as (
    select
        market,
        other_market,
        period_end,
        arrayDifference(minutes.1) as since_last,
        arrayFlatten(arrayMap((m, s) -> if(s > 60, arrayPushFront(m, nan), m), minutes.2, since_last)) as this_mids,
        arrayFlatten(arrayMap((m, s) -> if(s > 60, arrayPushFront(m, nan), m), minutes.3, since_last)) as other_mids
    from pairs
),

discovery as (
    select
        market,
        other_market,
        period_end,
        mp_information_share(this_mids, other_mids, toInt64({{ var('information_share_lags') }})) as answer,
        tupleElement(answer, 'low') as low,
        tupleElement(answer, 'high') as high,
        tupleElement(answer, 'component') as component_of_market,
        tupleElement(answer, 'error') as udf_error
    from series
),

both_ways as (
    select
        if(is_mirrored, other_market, market) as this,
        if(is_mirrored, market, other_market) as other,
        period_end,
        if(is_mirrored, 1 - high, low) as share_low,
        if(is_mirrored, 1 - low, high) as share_high,
        if(is_mirrored, 1 - component_of_market, component_of_market) as component,
        udf_error
    from discovery
    array join [false, true] as is_mirrored
)

select
    this.1 as exchange,
    this.2 as market_type,
    this.3 as symbol,
    other.1 as other_exchange,
    other.2 as other_market_type,
    other.3 as other_symbol,
    period_end as timestamp,
    period_end as known_at,
    share_low,
    share_high,
    component,
    udf_error
from both_ways
