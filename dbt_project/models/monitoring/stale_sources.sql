{{ config(materialized='table', order_by='(exchange, market_type, symbol, kind, hour)') }}

-- One row per instrument, kind, hour and reason: a source that stopped, and the buckets that it left without its features.
{%- set features = [
    ('orderbooks', 'top_of_book', 'mid_close', var('book_max_lag_ms') / 1000),
    ('funding_rates', 'funding', 'funding_rate', var('funding_max_lag_s')),
    ('open_interests', 'open_interest', 'open_interest', var('open_interest_max_lag_s')),
    ('lsr_all_accounts', 'long_short_bias', 'long_short_bias_accounts', var('lsr_max_lag_s')),
    ('lsr_top_positions', 'long_short_bias', 'long_short_bias_positions', var('lsr_max_lag_s')),
    ('volatility_indices', 'implied_volatility', 'implied_volatility', var('volatility_index_max_lag_s')),
] %}
{%- set key = 'exchange, market_type, symbol' %}
{%- set month_ms = 30 * 86400 * 1000 %}
with first_buckets as (
    select
        exchange,
        market_type,
        symbol,
        min(bucket_ts_start) as first_start
    from {{ ref('unified_buckets') }}
    group by exchange, market_type, symbol
),

books as (
    select
        *,
        mid as reading,
        timestamp as unchanged_since
    from {{ ref('book_asof') }}
),
{% for kind, model, feature, max_lag_s in features %}
without_{{ kind }} as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_end
    from {{ ref(model) }}
    where {{ feature }} is null
),
{% if kind != 'orderbooks' %}
series_{{ kind }} as (
    select *
    from {{ ref('slow_series_asof') }}
    where kind = '{{ kind }}'
),
{% endif %}
last_{{ kind }} as (
    {{ as_of(
        'without_' ~ kind,
        'books' if kind == 'orderbooks' else 'series_' ~ kind,
        {'timestamp': 'last_at', 'reading': 'reading', 'unchanged_since': 'unchanged_since'},
        month_ms,
        prefix='last',
    ) }}
),
{% endfor %}
left_without as (
    {%- for kind, model, feature, max_lag_s in features %}
    {{ 'union all' if not loop.first }}
    select
        *,
        '{{ kind }}' as kind,
        {{ max_lag_s }} as max_lag_s
    from last_{{ kind }}
    {%- endfor %}
),

-- What an instrument cannot have is not missing: spot without a contract, options.
expected as (
    select
        w.*,
        f.first_start as first_start
    from left_without as w
    inner join first_buckets as f
        on w.exchange = f.exchange
        and w.market_type = f.market_type
        and w.symbol = f.symbol
    where w.kind = 'orderbooks' or (w.exchange, w.market_type, w.symbol) in (select ({{ key }}) from {{ ref('derivative_markets') }})
),

told as (
    select
        kind,
        exchange,
        market_type,
        symbol,
        multiIf(
            last_at is null, 'missing',
            last_at < bucket_ts_end - toIntervalMillisecond(toUInt64(1000 * max_lag_s)), 'stale',
            reading is null, 'zero',
            'stuck'
        ) as reason,
        multiIf(reason = 'missing', first_start, reason = 'stuck', assumeNotNull(unchanged_since), assumeNotNull(last_at)) as since,
        bucket_ts_end as seen_from,
        bucket_ts_end as seen_to,
        toFloat64(dateDiff('microsecond', since, bucket_ts_end)) / 1e6 as age_s,
        true as is_bucket
    from expected
    -- a source has its time to say its first word
    where reason != 'missing' or age_s > max_lag_s
),

newest as (
    select greatest(max(watermark), (select max(bucket_ts_end) from {{ ref('unified_buckets') }})) as newest_at
    from {{ ref('stg_watermarks') }}
    where kind = 'trades'
),

-- Without trades there is no bucket: their silence is seen between buckets, and from the last one to what other feeds have reached.
silences as (
    select
        exchange,
        market_type,
        symbol,
        {{ before('last_trade_at', 1) }} as silent_from,
        bucket_ts_start as silent_to
    from {{ ref('unified_buckets') }}
    union all
    select
        exchange,
        market_type,
        symbol,
        max(last_trade_at) as silent_from,
        (select newest_at from newest) as silent_to
    from {{ ref('unified_buckets') }}
    group by exchange, market_type, symbol
),

stopped as (
    select *
    from told
    union all
    select
        'trades' as kind,
        exchange,
        market_type,
        symbol,
        'stale' as reason,
        assumeNotNull(silent_from) as since,
        assumeNotNull(silent_from) as seen_from,
        silent_to as seen_to,
        toFloat64(dateDiff('microsecond', silent_from, silent_to)) / 1e6 as age_s,
        false as is_bucket
    from silences
    where age_s > {{ var('trades_max_gap_s') }}
)

select
    exchange,
    market_type,
    symbol,
    kind,
    toStartOfHour(seen_from) as hour,
    reason,
    toUInt64(countIf(is_bucket)) as buckets,
    min(seen_from) as first_at,
    max(seen_to) as last_at,
    max(age_s) as worst_age_s
from stopped
group by exchange, market_type, symbol, kind, hour, reason
