-- One row per instrument, run, window and candidate: the arrays of footprint_windows unrolled, for people.
select
    exchange,
    market_type,
    symbol,
    run_ts,
    known_at,
    window_h,
    price_bin,
    price,
    candidate_volume,
    candidate_delta,
    range_bps,
    reversal_bps,
    last_seen,
    is_absorption,
    is_exhaustion
from {{ ref('footprint_windows') }}
array join
    candidate_bins as price_bin,
    candidate_prices as price,
    candidate_volumes as candidate_volume,
    candidate_deltas as candidate_delta,
    candidate_ranges_bps as range_bps,
    candidate_reversals_bps as reversal_bps,
    candidate_last_seen as last_seen,
    candidate_is_absorption as is_absorption,
    candidate_is_exhaustion as is_exhaustion
