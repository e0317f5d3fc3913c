-- One row per long/short ratio of the top traders' positions.
select
    exchange,
    market_type,
    symbol,
    timestamp,
    period,
    toFloat64(long_position_ratio) as long_position_ratio,
    toFloat64(short_position_ratio) as short_position_ratio,
    known_at,
    data_source
from {{ raw_rows('lsr_top_positions') }}
