{{ config(**bucket_grain()) }}

-- Whether the instrument may be compared with its reference and with the other leg of its basis, and why not.
select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    toUInt8(if(reference_verdict = 'on', 1, 0)) as cross_is_on,
    reference_verdict as cross_verdict,
    toUInt8(if(basis_verdict = 'on', 1, 0)) as basis_is_on,
    basis_verdict,
    price_difference_mean_bps,
    price_difference_p99_bps,
    reference_book_age_ms,
    reference_minute_trades,
    reference_minute_book_updates
from {{ new_buckets(ref('bucket_partners')) }}
