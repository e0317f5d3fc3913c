{{ config(**bucket_grain()) }}
{%- set n = var('rolling_buckets') %}

-- How far the instrument's price stands from its reference's and, spot against perpetual, from what funding pays for.
with buckets as (
    select
        {%- for column in ['exchange', 'market_type', 'symbol', 'bucket_id', 'bucket_ts_start', 'bucket_ts_end', 'is_new', 'run_at',
            'reference_exchange', 'reference_market_type', 'reference_symbol', 'reference_mid', 'reference_verdict', 'basis_verdict'] %}
        p.{{ column }} as {{ column }},
        {%- endfor %}
        t.mid_close as mid_close,
        cityHash64(p.reference_exchange, p.reference_market_type, p.reference_symbol) as reference_key,
        log(t.mid_close / p.reference_mid) * 10000 as spread,
        if(p.market_type = 'spot', p.basis_mid / t.mid_close, t.mid_close / p.basis_mid) * 10000 - 10000 as basis
    from {{ new_buckets(ref('bucket_partners'), context=n) }} as p
    inner join {{ ref('top_of_book') }} as t
        on p.exchange = t.exchange
        and p.market_type = t.market_type
        and p.symbol = t.symbol
        and p.bucket_id = t.bucket_id
),

-- Only spreads to the same reference compare.
spreads as (
    select
        *,
        groupArray((reference_key, spread)) over {{ past(n) }} as all_spreads,
        arrayMap(x -> assumeNotNull(x.2), arrayFilter(x -> x.1 = reference_key and x.2 is not null, all_spreads)) as past_spreads,
        arrayAvg(past_spreads) as spread_mean,
        sqrt(arrayAvg(arrayMap(x -> (x - spread_mean) * (x - spread_mean), past_spreads))) as spread_sd
    from buckets
),

-- Funding is the perpetual's.
perpetuals as (
    select
        if(p.market_type = 'spot', p.basis_exchange, p.exchange) as exchange,
        if(p.market_type = 'spot', p.basis_market_type, p.market_type) as market_type,
        if(p.market_type = 'spot', p.basis_symbol, p.symbol) as symbol,
        p.exchange as this_exchange,
        p.market_type as this_market_type,
        p.symbol as this_symbol,
        p.bucket_id as bucket_id,
        p.bucket_ts_end as bucket_ts_end
    from {{ new_buckets(ref('bucket_partners')) }} as p
    where p.basis_symbol != ''
),

funding as (
    select
        exchange,
        market_type,
        symbol,
        timestamp,
        known_at,
        funding_rate,
        next_funding_time
    from {{ ref('stg_funding_rates') }}
    order by timestamp desc, data_source asc
    limit 1 by exchange, market_type, symbol, known_at
),

funded as (
    {{ as_of(
        'perpetuals',
        'funding',
        {'funding_rate': 'rate', 'next_funding_time': 'settles_at'},
        var('funding_max_lag_s') * 1000,
        prefix='funding',
    ) }}
),

implied as (
    select
        {%- for column in ['exchange', 'market_type', 'symbol', 'bucket_id', 'bucket_ts_start', 'bucket_ts_end', 'reference_verdict',
            'basis_verdict', 'past_spreads', 'spread_mean', 'spread_sd', 'spread', 'basis'] %}
        s.{{ column }} as {{ column }},
        {%- endfor %}
        r.slope as slope,
        r.intercept as intercept,
        r.residual_sd_bps as residual_sd_bps,
        r.half_life_s as half_life_s,
        r.hurst as hurst,
        (log(s.mid_close) - r.intercept - r.slope * log(s.reference_mid)) * 10000 as residual,
        dateDiff('microsecond', s.bucket_ts_end, f.settles_at) / 1e6 as remaining_s,
        if(remaining_s >= 0, f.rate * remaining_s / {{ var('funding_period_s') }} * 10000, null) as funding_implied
    from spreads as s
    left join {{ ref('pair_spreads') }} as r
        on s.exchange = r.exchange
        and s.market_type = r.market_type
        and s.symbol = r.symbol
        and s.reference_exchange = r.other_exchange
        and s.reference_market_type = r.other_market_type
        and s.reference_symbol = r.other_symbol
        and s.run_at = r.known_at
    left join funded as f
        on s.exchange = f.this_exchange
        and s.market_type = f.this_market_type
        and s.symbol = f.this_symbol
        and s.bucket_id = f.bucket_id
    where s.is_new = 1
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    {%- for value, name in {
        'spread': 'cross_spread_bps',
        'if(length(past_spreads) >= 10 and arrayMin(past_spreads) < arrayMax(past_spreads), (spread - spread_mean) / spread_sd, null)':
            'cross_spread_z',
        'slope': 'hedge_ratio',
        'residual': 'cointegration_residual_bps',
        'if(residual_sd_bps > 1e-6, residual / residual_sd_bps, null)': 'cointegration_residual_z',
        'half_life_s': 'cointegration_half_life_s',
        'hurst': 'cross_spread_hurst',
    }.items() %}
    if(reference_verdict = 'on', {{ value }}, null) as {{ name }},
    {%- endfor %}
    if(basis_verdict = 'on', basis, null) as basis_bps,
    if(basis_verdict = 'on', funding_implied, null) as funding_implied_basis_bps,
    if(basis_verdict = 'on', basis - funding_implied, null) as basis_deviation_bps
from implied
