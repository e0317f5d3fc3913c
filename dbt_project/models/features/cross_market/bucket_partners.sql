{{ config(**bucket_grain()) }}
{%- set minute = {
    'minute_trades': 'other_trades',
    'minute_book_updates': 'other_book_updates',
    'minute_trade_gap_max_ms': 'other_trade_gap_ms',
    'minute_book_gap_max_ms': 'other_book_gap_ms',
} %}

-- With whom each bucket is compared (the reference, and the other leg of the basis), what is known of them at its end, and whether that
-- may be believed.
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

with_partners as (
    {{ as_of(
        'buckets',
        ref('partner_runs'),
        {
            'run_at': 'run_at',
            'reference_exchange': 'reference_exchange',
            'reference_market_type': 'reference_market_type',
            'reference_symbol': 'reference_symbol',
            'basis_exchange': 'basis_exchange',
            'basis_market_type': 'basis_market_type',
            'basis_symbol': 'basis_symbol',
        },
        2000 * var('cross_run_s'),
        prefix='partner',
    ) }}
),

-- One row per bucket and partner, under the partner's name, so that what is known of it joins as of the bucket's end.
listed as (
    select
        exchange as this_exchange,
        market_type as this_market_type,
        symbol as this_symbol,
        bucket_id,
        bucket_ts_end,
        run_at,
        arrayZip(
            ['reference', 'basis'],
            [ifNull(reference_exchange, ''), ifNull(basis_exchange, '')],
            [ifNull(reference_market_type, ''), ifNull(basis_market_type, '')],
            [ifNull(reference_symbol, ''), ifNull(basis_symbol, '')]
        ) as partners
    from with_partners
),

paired as (
    select
        this_exchange,
        this_market_type,
        this_symbol,
        bucket_id,
        bucket_ts_end,
        run_at,
        tupleElement(partner, 1) as purpose,
        tupleElement(partner, 2) as exchange,
        tupleElement(partner, 3) as market_type,
        tupleElement(partner, 4) as symbol
    from listed
    array join partners as partner
    where symbol != ''
),

books as (
    {{ as_of('paired', ref('book_asof'), {'mid': 'other_mid'}, var('book_max_lag_ms'), prefix='other_book') }}
),

minutes as (
    {{ as_of('paired', ref('venue_minutes'), minute, 120000, prefix='other_minute') }}
),

limits as (
    select
        maxOrNullIf(limit_value, check_name = 'min_trades_per_minute') as min_trades_per_minute,
        maxOrNullIf(limit_value, check_name = 'min_book_updates_per_minute') as min_book_updates_per_minute,
        maxOrNullIf(limit_value, check_name = 'max_trade_gap_ms') as max_trade_gap_ms,
        maxOrNullIf(limit_value, check_name = 'max_book_gap_ms') as max_book_gap_ms,
        maxOrNullIf(limit_value, check_name = 'max_difference_mean_bps') as max_difference_mean_bps,
        maxOrNullIf(limit_value, check_name = 'max_difference_p99_bps') as max_difference_p99_bps
    from {{ ref('pair_consistency_thresholds') }}
),

judged as (
    select
        b.this_exchange as exchange,
        b.this_market_type as market_type,
        b.this_symbol as symbol,
        b.bucket_id as bucket_id,
        b.purpose as purpose,
        b.exchange as other_exchange,
        b.market_type as other_market_type,
        b.symbol as other_symbol,
        b.other_mid as other_mid,
        b.other_book_age_ms as other_book_age_ms,
        m.other_trades as other_trades,
        m.other_book_updates as other_book_updates,
        s.difference_mean_bps as difference_mean_bps,
        s.difference_p99_bps as difference_p99_bps,
        multiIf(
            t.mid_close is null or b.other_mid is null, 'no_book',
            v.minute_trades is null or m.other_trades is null, 'no_minute',
            least(v.minute_trades, m.other_trades) < l.min_trades_per_minute, 'few_trades',
            least(v.minute_book_updates, m.other_book_updates) < l.min_book_updates_per_minute, 'few_book_updates',
            greatest(v.minute_trade_gap_max_ms, m.other_trade_gap_ms) > l.max_trade_gap_ms, 'trade_gap',
            greatest(v.minute_book_gap_max_ms, m.other_book_gap_ms) > l.max_book_gap_ms, 'book_gap',
            s.difference_mean_bps is null, 'no_prices',
            s.difference_mean_bps > l.max_difference_mean_bps or s.difference_p99_bps > l.max_difference_p99_bps, 'price_difference',
            'on'
        ) as verdict
    from books as b
    inner join minutes as m
        on b.this_exchange = m.this_exchange
        and b.this_market_type = m.this_market_type
        and b.this_symbol = m.this_symbol
        and b.bucket_id = m.bucket_id
        and b.purpose = m.purpose
    inner join {{ ref('top_of_book') }} as t
        on b.this_exchange = t.exchange
        and b.this_market_type = t.market_type
        and b.this_symbol = t.symbol
        and b.bucket_id = t.bucket_id
    inner join {{ ref('venue_activity') }} as v
        on b.this_exchange = v.exchange
        and b.this_market_type = v.market_type
        and b.this_symbol = v.symbol
        and b.bucket_id = v.bucket_id
    -- known at the run, which is before the bucket's end
    left join {{ ref('pair_spreads') }} as s
        on b.this_exchange = s.exchange
        and b.this_market_type = s.market_type
        and b.this_symbol = s.symbol
        and b.exchange = s.other_exchange
        and b.market_type = s.other_market_type
        and b.symbol = s.other_symbol
        and b.run_at = s.known_at
    cross join limits as l
),

described as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        purpose,
        (
            other_exchange, other_market_type, other_symbol, other_mid, other_book_age_ms, other_trades, other_book_updates,
            difference_mean_bps, difference_p99_bps, verdict
        ) as description
    from judged
),

partners as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        anyIf(description, purpose = 'reference') as reference,
        anyIf(description, purpose = 'basis') as basis
    from described
    group by exchange, market_type, symbol, bucket_id
)

select
    w.exchange as exchange,
    w.market_type as market_type,
    w.symbol as symbol,
    w.bucket_id as bucket_id,
    w.bucket_ts_start as bucket_ts_start,
    w.bucket_ts_end as bucket_ts_end,
    w.run_at as run_at,
    {%- for role in ['reference', 'basis'] %}
    toLowCardinality(assumeNotNull(ifNull(p.{{ role }}.1, ''))) as {{ role }}_exchange,
    toLowCardinality(assumeNotNull(ifNull(p.{{ role }}.2, ''))) as {{ role }}_market_type,
    toLowCardinality(assumeNotNull(ifNull(p.{{ role }}.3, ''))) as {{ role }}_symbol,
    p.{{ role }}.4 as {{ role }}_mid,
    toLowCardinality(if(ifNull(p.{{ role }}.10, '') = '', 'no_partner', assumeNotNull(p.{{ role }}.10))) as {{ role }}_verdict,
    {%- endfor %}
    if(p.reference.4 is null, null, p.reference.5) as reference_book_age_ms,
    p.reference.6 as reference_minute_trades,
    p.reference.7 as reference_minute_book_updates,
    p.reference.8 as price_difference_mean_bps,
    p.reference.9 as price_difference_p99_bps
from with_partners as w
left join partners as p
    on w.exchange = p.exchange
    and w.market_type = p.market_type
    and w.symbol = p.symbol
    and w.bucket_id = p.bucket_id
