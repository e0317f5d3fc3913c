{{ config(**bucket_grain()) }}
{%- set period_s = var('information_share_period_s') %}

-- Who leads, this instrument or its reference: as of the bucket's last run, and of the last closed period of information shares.
with buckets as (
    select
        *,
        toDateTime64(intDiv(toUnixTimestamp(bucket_ts_end), {{ period_s }}) * {{ period_s }}, 6, 'UTC') as period_end
    from {{ new_buckets(ref('bucket_partners')) }}
)

select
    b.exchange as exchange,
    b.market_type as market_type,
    b.symbol as symbol,
    b.bucket_id as bucket_id,
    b.bucket_ts_start as bucket_ts_start,
    b.bucket_ts_end as bucket_ts_end,
    {%- for column, name in {
        'l.lag_ms': 'lead_lag_ms',
        'l.correlation': 'lead_lag_correlation',
        'l.correlation_at_zero': 'cross_correlation',
        'l.hy_lag_ms': 'hy_lead_lag_ms',
        'l.hy_correlation': 'hy_correlation',
        'l.hy_ratio': 'hy_lead_lag_ratio',
        's.share_low': 'information_share_low',
        's.share_high': 'information_share_high',
        's.component': 'component_share',
    }.items() %}
    if(b.reference_verdict = 'on', {{ column }}, null) as {{ name }},
    {%- endfor %}
    s.udf_error as udf_error
from buckets as b
left join {{ ref('pair_lead_lag') }} as l
    on b.exchange = l.exchange
    and b.market_type = l.market_type
    and b.symbol = l.symbol
    and b.reference_exchange = l.other_exchange
    and b.reference_market_type = l.other_market_type
    and b.reference_symbol = l.other_symbol
    and b.run_at = l.known_at
left join {{ ref('pair_information_shares') }} as s
    on b.exchange = s.exchange
    and b.market_type = s.market_type
    and b.symbol = s.symbol
    and b.reference_exchange = s.other_exchange
    and b.reference_market_type = s.other_market_type
    and b.reference_symbol = s.other_symbol
    and b.period_end = s.known_at
