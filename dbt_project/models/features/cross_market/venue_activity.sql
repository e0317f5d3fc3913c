{{ config(**bucket_grain()) }}

-- How often the instrument's venue was heard from in the last closed minute, and with what silences.
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

at_close as (
    {{ as_of(
        'buckets',
        ref('venue_minutes'),
        {
            'minute_trades': 'minute_trades',
            'minute_book_updates': 'minute_book_updates',
            'minute_trade_gap_max_ms': 'minute_trade_gap_max_ms',
            'minute_book_gap_max_ms': 'minute_book_gap_max_ms',
            'minute_trade_gap_median_ms': 'minute_trade_gap_median_ms',
            'minute_book_gap_median_ms': 'minute_book_gap_median_ms',
        },
        120000,
        prefix='minute',
    ) }}
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    minute_trades,
    minute_book_updates,
    minute_trade_gap_max_ms,
    minute_book_gap_max_ms,
    minute_trade_gap_median_ms,
    minute_book_gap_median_ms
from at_close
