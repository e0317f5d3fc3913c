{{ config(
    materialized='incremental',
    incremental_strategy='append',
    partition_by='toYYYYMM(changed_at)',
    order_by='(exchange, market_type, symbol, changed_at)',
    on_schema_change='fail',
    full_refresh=false,
    tags=['health'],
) }}
{%- set key = 'exchange, market_type, symbol' %}
{%- set is_recovering = execute and is_incremental() and is_any_recovering(this) %}
-- depends_on: {{ ref('feature_parity_rows') }}
-- One row per instrument and change of its state, of what it should be, or of the reasons. Each run adds what has changed.
with last_changes as (
    {% if is_incremental() -%}
    select
        exchange,
        market_type,
        symbol,
        argMax(state_rank, changed_at) as last_state,
        argMax(signal_rank, changed_at) as last_signal,
        argMax(reasons, changed_at) as last_reasons,
        argMax(since, changed_at) as last_since,
        argMax(tuple(better_since), changed_at).1 as last_better_since,
        max(changed_at) as last_at
    from {{ this }}
    group by exchange, market_type, symbol
    {%- else -%}
    select
        exchange,
        market_type,
        symbol,
        signal_rank as last_state,
        signal_rank as last_signal,
        reasons as last_reasons,
        as_of as last_since,
        toNullable(as_of) as last_better_since,
        as_of as last_at
    from {{ ref('instrument_signals') }}
    where false
    {%- endif %}
),

recovering as (
    select
        {{ key }},
        last_better_since as better_since
    from last_changes
    where last_better_since is not null
),

-- A bucket is complete once it has its row of features.
complete as (
    select
        r.exchange as exchange,
        r.market_type as market_type,
        r.symbol as symbol,
        count() as buckets
    from {{ ref('feature_vector', v=2) }} as f
    inner join recovering as r
        on f.exchange = r.exchange
        and f.market_type = r.market_type
        and f.symbol = r.symbol
    where
        f.bucket_ts_start > (select min(better_since) from recovering)
        and f.bucket_ts_start > r.better_since
        and f.bucket_ts_end <= {{ health_now() }}
    group by r.exchange, r.market_type, r.symbol
),

-- What was scored since then must be what is there now, to the bit. Of nobody recovering nothing is compared: that costs seconds.
scored as (
    {% if is_recovering -%}
    select
        p.exchange as exchange,
        p.market_type as market_type,
        p.symbol as symbol,
        countIf(p.bucket_ts_end > r.better_since) as inputs,
        countIf(
            p.bucket_ts_end > r.better_since
            and arrayExists(
                (a, b) -> not (isNaN(a) and isNaN(b)) and reinterpretAsUInt32(a) != reinterpretAsUInt32(b), -- noqa: RF02
                p.read_values,
                p.values_now
            )
        ) as differing
    from {{ ref('feature_parity_rows') }} as p
    inner join recovering as r
        on p.exchange = r.exchange
        and p.market_type = r.market_type
        and p.symbol = r.symbol
    group by p.exchange, p.market_type, p.symbol
    {%- else -%}
    select
        exchange,
        market_type,
        symbol,
        toUInt64(0) as inputs,
        toUInt64(0) as differing
    from recovering
    {%- endif %}
),

judged as (
    select
        s.exchange as exchange,
        s.market_type as market_type,
        s.symbol as symbol,
        s.as_of as as_of,
        s.signal_rank as signal_rank,
        s.reasons as signal_reasons,
        l.last_at as last_at,
        l.last_state as last_state,
        l.last_signal as last_signal,
        l.last_reasons as last_reasons,
        l.last_since as last_since,
        l.last_better_since as last_better_since,
        l.last_at is null as is_first,
        ifNull(c.buckets, 0) as complete_buckets,
        -- of an instrument that nobody scores there is nothing to compare
        ifNull(p.differing, 0) = 0 and (p.inputs is null or p.inputs > 0) as is_at_parity
    from {{ ref('instrument_signals') }} as s
    left join last_changes as l
        on s.exchange = l.exchange
        and s.market_type = l.market_type
        and s.symbol = l.symbol
    left join complete as c
        on s.exchange = c.exchange
        and s.market_type = c.market_type
        and s.symbol = c.symbol
    left join scored as p
        on s.exchange = p.exchange
        and s.market_type = p.market_type
        and s.symbol = p.symbol
),

-- Worse at once; better only after so many complete buckets in a row that were better, and with parity.
decided as (
    select
        *,
        is_first or ifNull(signal_rank >= last_state, true) as is_as_bad,
        not is_as_bad
        and last_better_since is not null
        and complete_buckets >= {{ var('recovery_buckets') }}
        and is_at_parity as is_recovered,
        toUInt8(if(is_as_bad or is_recovered, signal_rank, assumeNotNull(last_state))) as state_rank,
        if(is_as_bad or is_recovered, signal_reasons, last_reasons) as reasons,
        if(is_as_bad or is_recovered, null, ifNull(last_better_since, as_of)) as better_since
    from judged
    -- nothing is changed with hindsight
    where is_first or ifNull(as_of > last_at, false)
)

select
    exchange,
    market_type,
    symbol,
    as_of as changed_at,
    ['ok', 'degraded', 'stale', 'halted'][state_rank + 1] as state,
    state_rank,
    signal_rank,
    arrayMap(r -> assumeNotNull(r), reasons) as reasons,
    if(is_first or ifNull(state_rank != last_state, true), as_of, assumeNotNull(last_since)) as since,
    better_since,
    toUInt32(complete_buckets) as complete_buckets
from decided
where
    is_first
    or state_rank != last_state
    or signal_rank != last_signal
    or toString(reasons) != toString(last_reasons)
    or (better_since is null) != (last_better_since is null)
