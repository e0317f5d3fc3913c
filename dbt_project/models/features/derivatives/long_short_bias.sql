{{ config(**bucket_grain()) }}

-- How the accounts and the top traders' positions lean, as it was known at the bucket's end. A feed that stands still is a stopped one.
with buckets as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end
    from {{ new_buckets(ref('unified_buckets')) }}
),
{% for of, kind in [('accounts', 'lsr_all_accounts'), ('positions', 'lsr_top_positions')] %}
{{ of }} as (
    select *
    from {{ ref('slow_series_asof') }}
    where kind = '{{ kind }}'
),

known_{{ of }} as (
    {{ as_of(
        'buckets',
        of,
        {'reading': 'bias', 'reading_step': 'step', 'unchanged_since': 'unchanged_since'},
        var('lsr_max_lag_s') * 1000,
        prefix='bias',
    ) }}
),

usable_{{ of }} as (
    select
        *,
        ifNull(unchanged_since >= bucket_ts_end - toIntervalSecond({{ var('lsr_max_unchanged_s') }}), false) as is_alive
    from known_{{ of }}
){{ ',' if not loop.last }}
{% endfor %}
select
    a.exchange as exchange,
    a.market_type as market_type,
    a.symbol as symbol,
    a.bucket_id as bucket_id,
    a.bucket_ts_start as bucket_ts_start,
    a.bucket_ts_end as bucket_ts_end,
    if(a.is_alive, a.bias, null) as long_short_bias_accounts,
    if(a.is_alive, a.step, null) as long_short_bias_accounts_change,
    if(p.is_alive, p.bias, null) as long_short_bias_positions,
    if(p.is_alive, p.step, null) as long_short_bias_positions_change,
    long_short_bias_positions - long_short_bias_accounts as long_short_divergence
from usable_accounts as a
inner join usable_positions as p
    on a.exchange = p.exchange
    and a.market_type = p.market_type
    and a.symbol = p.symbol
    and a.bucket_id = p.bucket_id
