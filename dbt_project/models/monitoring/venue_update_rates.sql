-- One row per instrument and closed minute: how often its venue was heard from, and with what silences.
select
    exchange,
    market_type,
    symbol,
    known_at - toIntervalMinute(1) as minute,
    minute_trades as trades,
    minute_trades / 60 as trades_per_second,
    minute_trade_gap_max_ms as trade_gap_max_ms,
    minute_trade_gap_median_ms as trade_gap_median_ms,
    minute_book_updates as book_updates,
    minute_book_updates / 60 as book_updates_per_second,
    minute_book_gap_max_ms as book_gap_max_ms,
    minute_book_gap_median_ms as book_gap_median_ms
from {{ ref('venue_minutes') }}
