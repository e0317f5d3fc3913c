{%- set appends = is_incremental() and not is_ranged() %}
{{ config(**bucket_grain(order_by='(kind, exchange, market_type, symbol, known_at)', day='known_at')) }}
-- Months, as in the raw tables: a daily index of some years has a few rows in each. A ranged rebuild replaces those of its days.
{{ config(partition_by='toYYYYMM(known_at)') }}
{%- set n = var('slow_history') %}
{%- set series = 'kind, exchange, market_type, symbol' %}
{%- set so_far = '(partition by ' ~ series ~ ' order by known_at rows between unbounded preceding and current row)' %}
{%- set before = '(partition by ' ~ series ~ ' order by known_at rows between unbounded preceding and 1 preceding)' %}
{%- set in_run = '(partition by ' ~ series ~ ', run order by known_at rows between unbounded preceding and current row)' %}
{%- set changes_before = '(partition by ' ~ series ~ ', is_change order by known_at rows between ' ~ n ~ ' preceding and 1 preceding)' %}

-- What is published by the minute or more slowly, as this system came to know it, beside its own past. One shape for all kinds.
with published as (
    select
        'funding_rates' as kind,
        exchange,
        market_type,
        symbol,
        timestamp,
        known_at,
        toNullable(funding_rate) as reading,
        toNullable(funding_time) as funding_time,
        next_funding_time,
        -- of several rows of one moment the one with the smallest: here the next settlement
        toUnixTimestamp64Micro(assumeNotNull(funding_time)) as preference
    from {{ ref('stg_funding_rates') }}
    union all
    select
        'open_interests' as kind,
        exchange,
        market_type,
        symbol,
        timestamp,
        known_at,
        open_interest as reading,
        null as funding_time,
        null as next_funding_time,
        toInt64(0) as preference
    from {{ ref('stg_open_interests') }}
    {%- for kind, who in [('lsr_all_accounts', 'account'), ('lsr_top_positions', 'position')] %}
    union all
    select
        '{{ kind }}' as kind,
        exchange,
        market_type,
        symbol,
        timestamp,
        known_at,
        -- both zero: not given
        if(long_{{ who }}_ratio + short_{{ who }}_ratio > 0, long_{{ who }}_ratio - short_{{ who }}_ratio, null) as reading,
        null as funding_time,
        null as next_funding_time,
        -- the shortest period
        toInt64OrZero(extract(period, '^[0-9]+'))
        * transform(extract(period, '[a-zA-Z]+$'), ['m', 'h', 'H', 'd', 'D'], [60, 3600, 3600, 86400, 86400], 1) as preference
    from {{ ref('stg_' ~ kind) }}
    {%- endfor %}
    union all
    -- an index belongs to an asset, wherever it is published
    select
        'volatility_indices' as kind,
        '' as exchange,
        '' as market_type,
        underlying_asset as symbol,
        timestamp,
        known_at,
        nullIf(index_value, 0) as reading,
        null as funding_time,
        null as next_funding_time,
        -- the nearest maturity
        toInt64(toUInt32(maturity_date)) * 0x100000000 + cityHash64(exchange, market_type, symbol) % 0x100000000 as preference
    from {{ ref('stg_volatility_indices') }}
),

{% if appends %}
last_published as (
    select
        kind,
        exchange,
        market_type,
        symbol,
        max(known_at) as last_known_at
    from {{ this }}
    group by kind, exchange, market_type, symbol
),

arrived as (
    select a.*
    from published as a
    left join last_published as l
        on a.kind = l.kind
        and a.exchange = l.exchange
        and a.market_type = l.market_type
        and a.symbol = l.symbol
    where l.last_known_at is null or a.known_at > l.last_known_at
),
{% endif %}

moments as (
    select
        kind,
        exchange,
        market_type,
        symbol,
        timestamp,
        known_at,
        reading,
        funding_time,
        next_funding_time,
        {% if is_ranged() -%}
        known_at >= toDateTime64(toStartOfMonth({{ range_start() }}), 6, 'UTC')
        and known_at < toDateTime64(addMonths(toStartOfMonth({{ range_end() }} - toIntervalDay(1)), 1), 6, 'UTC')
        {%- else -%}
        true
        {%- endif %} as is_new
    from {{ 'arrived' if appends else 'published' }}
    order by {{ series }}, known_at, timestamp desc, preference, reading
    limit 1 by {{ series }}, known_at
),

incoming as (
    select *
    from moments
    {%- if appends %}
    -- the last state, and the changes that the windows look back at
    union all
    select
        kind,
        exchange,
        market_type,
        symbol,
        timestamp,
        known_at,
        reading,
        funding_time,
        next_funding_time,
        false as is_new
    from {{ this }}
    where (kind, exchange, market_type, symbol, known_at) in (select * from last_published)
    union all
    select *
    from (
        select
            kind,
            exchange,
            market_type,
            symbol,
            timestamp,
            known_at,
            reading,
            funding_time,
            next_funding_time,
            false as is_new
        from {{ this }}
        where is_change and (kind, exchange, market_type, symbol, known_at) not in (select * from last_published)
        order by known_at desc
        limit {{ n + 3 }} by kind, exchange, market_type, symbol
    )
    {%- endif %}
),

-- What arrives after something newer is known is stale on arrival.
kept as (
    select *
    from (
        select
            *,
            max(timestamp) over {{ so_far }} as newest_so_far
        from incoming
    )
    where timestamp = newest_so_far
),

changed as (
    select
        *,
        -- NULLs are passed over: a feed that comes back with its old value has not changed
        anyLast(reading) over {{ before }} as reading_seen,
        reading is not null and (reading_seen is null or reading != reading_seen) as is_change
    from kept
),

runs as (
    select
        *,
        sum(is_change) over {{ so_far }} as run,
        if(is_change, groupArray(assumeNotNull(reading)) over {{ changes_before }}, []) as past_readings,
        if(
            kind = 'open_interests',
            log(reading / nullIf(past_readings[-1], 0)),
            if(empty(past_readings), null, reading - past_readings[-1])
        ) as difference
    from changed
),

histories as (
    select
        *,
        groupArray(difference) over {{ changes_before }} as past_differences
    from runs
),

compared as (
    select
        *,
        if(empty(past_readings), null, past_readings[-1]) as before,
        {{ z_score('reading', 'past_readings') }} as z,
        if(
            length(past_readings) >= 10,
            arrayCount(v -> v < assumeNotNull(reading), past_readings) / length(past_readings),
            null
        ) as share_below,
        if(is_change, {{ z_score('difference', 'past_differences') }}, null) as difference_z
    from histories
),

-- A row that repeats a value takes over what was said of the value when it came.
taken_over as (
    select
        *,
        {%- for column, of in [
            ('reading_before', 'before'),
            ('reading_z', 'z'),
            ('reading_rank', 'share_below'),
            ('reading_step', 'difference'),
            ('reading_step_z', 'difference_z'),
        ] %}
        if(reading is null, null, first_value({{ of }}) over {{ in_run }}) as {{ column }},
        {%- endfor %}
        if(reading is null, null, first_value(timestamp) over {{ in_run }}) as unchanged_since
    from compared
)

select
    kind,
    exchange,
    market_type,
    symbol,
    timestamp,
    known_at,
    reading,
    funding_time,
    next_funding_time,
    is_change,
    unchanged_since,
    reading_before,
    reading_z,
    reading_rank,
    reading_step,
    reading_step_z
from taken_over
where is_new
