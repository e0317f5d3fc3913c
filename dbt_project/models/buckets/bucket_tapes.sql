{{ config(**bucket_grain()) }}
{%- set appends = is_incremental() and not is_ranged() %}
{%- set chunk = 512 %}

-- The logical clock: one row per closed bucket, with its trades in order as arrays (the tape).
--
-- A bucket's end depends on its start, and its start on the end before it: no window function can say that. So, in arrays, per
-- instrument and anchor: (1) for EVERY trade, where would a bucket end that started here? All at once, by ranks in sorted
-- arrays. (2) Follow those pointers from the anchor's first trade: the only sequential step, one hop a bucket.
with
{% if appends %}
published as (
    select
        exchange,
        market_type,
        symbol,
        max(bucket_id) as last_bucket_id,
        argMax((last_trade_at, last_trade_seq, last_trade_id), bucket_id) as last_trade
    from {{ this }}
    group by exchange, market_type, symbol
),
{% endif %}

-- One row per instrument: its anchor length and how far it is published.
clocks as (
    select
        c.exchange as exchange,
        c.market_type as market_type,
        c.symbol as symbol,
        argMax(c.anchor_seconds, c.valid_from) as anchor_seconds,
        {% if appends %}
        any(p.last_bucket_id) as last_bucket_id,
        any(p.last_trade) as last_trade,
        -- nothing published yet: from its first anchor
        coalesce(any(p.last_trade.1), toDateTime64(min(c.valid_from), 6, 'UTC')) as resume_from
        {% else %}
        cast(null, 'Nullable(UInt64)') as last_bucket_id
        {% endif %}
    from {{ ref('bucket_config') }} as c
    {% if appends %}
    left join published as p
        on c.exchange = p.exchange
        and c.market_type = p.market_type
        and c.symbol = p.symbol
    {% endif %}
    group by exchange, market_type, symbol
),

on_time_trades as (
    select *
    from {{ ref('stg_trades') }}
    where
        is_on_time
        {%- if is_ranged() %}
        and timestamp >= {{ range_start() }}
        {%- elif appends %}
        and timestamp >= (select min(resume_from) from clocks)
        {%- endif %}
),

-- How far each feed has come: what closes its last bucket.
feeds as (
    select
        exchange,
        market_type,
        symbol,
        max(last_at) as last_trade_at,
        max(complete_to) as watermark
    from (
        select
            exchange,
            market_type,
            symbol,
            max(timestamp) as last_at,
            toDateTime64(0, 6, 'UTC') as complete_to
        from on_time_trades
        group by exchange, market_type, symbol
        union all
        select
            exchange,
            market_type,
            symbol,
            toDateTime64(0, 6, 'UTC') as last_at,
            watermark as complete_to
        from {{ ref('stg_watermarks') }}
        where kind = 'trades'
    )
    group by exchange, market_type, symbol
),

-- Only an instrument in event mode needs its book updates.
update_times as (
    select
        b.exchange as exchange,
        b.market_type as market_type,
        b.symbol as symbol,
        c.valid_from as anchor_ts,
        arraySort(groupUniqArray(toUnixTimestamp64Micro(b.known_at))) as updates
    from {{ ref('stg_orderbooks') }} as b
    inner join {{ ref('bucket_config') }} as c
        on b.exchange = c.exchange
        and b.market_type = c.market_type
        and b.symbol = c.symbol
        and toDateTime(intDiv(toUnixTimestamp(b.known_at), c.anchor_seconds) * c.anchor_seconds, 'UTC') = c.valid_from
    where
        c.mode = 'event'
        {%- if is_ranged() %}
        and b.known_at >= {{ range_start() }}
        and b.known_at < {{ range_end() }}
        {%- elif appends %}
        and b.known_at >= (select min(resume_from) from clocks)
        {%- endif %}
    group by exchange, market_type, symbol, anchor_ts
),

tapes as (
    select
        t.exchange as exchange,
        t.market_type as market_type,
        t.symbol as symbol,
        intDiv(toUnixTimestamp(t.timestamp), k.anchor_seconds) * k.anchor_seconds as anchor_s,
        -- buckets of this anchor that are out already
        any(ifNull(if(intDiv(k.last_bucket_id, 100000) = anchor_s, k.last_bucket_id % 100000 + 1, 0), 0)) as first_sequence,
        arraySort(groupArray((
            toUnixTimestamp64Micro(t.timestamp),
            t.trade_seq,
            -- numeric ids order by themselves; only venues without them carry the text along
            if(t.trade_seq = 0, t.trade_id, ''),
            t.price,
            t.quantity,
            t.side = 'buy'
        ))) as tape
    from on_time_trades as t
    inner join clocks as k
        on t.exchange = k.exchange
        and t.market_type = k.market_type
        and t.symbol = k.symbol
    {% if appends %}
    -- resume behind the last published trade; what comes late for a published bucket waits for a ranged rebuild
    where
        k.last_bucket_id is null
        or (t.timestamp, t.trade_seq, if(t.trade_seq = 0, t.trade_id, '')) > k.last_trade
    {% elif is_ranged() %}
    where t.timestamp < {{ range_end() }}
    {% endif %}
    group by exchange, market_type, symbol, anchor_s
),

configured as (
    select
        t.exchange as exchange,
        t.market_type as market_type,
        t.symbol as symbol,
        t.anchor_s as anchor_s,
        t.first_sequence as first_sequence,
        t.tape as tape,
        u.updates as updates,
        c.mode as mode,
        c.q_bucket as q_bucket,
        -- a hybrid bucket ends at 0.8 of all three of its targets; integers, rounded up
        toInt128(reinterpret(c.q_bucket, 'Int64')) as q_full,
        if(c.mode = 'hybrid', intDiv(q_full * 8 + 9, 10), q_full) as q_cut,
        intDiv(toInt64(c.t_target_us) * 8 + 9, 10) as t_cut,
        toInt64(if(c.mode = 'hybrid', intDiv(c.n_min * 8 + 9, 10), c.n_trades)) as n_cut,
        c.n_updates as n_updates,
        toInt64(c.t_max_us) as t_max,
        toInt64(toUnixTimestamp(c.valid_to)) * 1000000 as anchor_end
    from tapes as t
    inner join {{ ref('bucket_config') }} as c
        on t.exchange = c.exchange
        and t.market_type = c.market_type
        and t.symbol = c.symbol
        and toDateTime(t.anchor_s, 'UTC') = c.valid_from
    left join update_times as u
        on t.exchange = u.exchange
        and t.market_type = u.market_type
        and t.symbol = u.symbol
        and toDateTime(t.anchor_s, 'UTC') = u.anchor_ts
),

-- (1a) For every trade i, counted over the anchor's trades at once (see the macro count_below).
ranked as (
    select
        * except (updates),
        tape.1 as t,
        toInt64(length(tape)) as n,
        toInt64(1152921504606846976) as never,
        arrayMap(i -> toInt64(i), arrayEnumerate(tape)) as position,
        arrayMap(q -> toInt128(reinterpret(q, 'Int64')), tape.5) as quantities,
        arrayCumSum(quantities) as cumulative,
        {{ count_below('cumulative', 'arrayMap((v, q) -> v - q + q_cut, cumulative, quantities)') }} as before_volume,
        {{ count_below('t', 'arrayMap(x -> x + t_max, t)') }} as before_deadline,
        {{ count_below('t', "arrayMap(x -> x + t_cut, t)") }} as before_target_time,
        -- the time of the n_updates-th book update after trade i, or `never`: each update is paired with the one n_updates - 1 later,
        -- and every trade takes the pair of the first update after it
        arrayConcat(arrayMap(u -> (u, false), updates), arrayMap(x -> (x, true), if(mode = 'event', t, []))) as moments,
        arrayConcat(
            arrayResize(arraySlice(updates, n_updates), length(updates), never),
            arrayResize(emptyArrayInt64(), if(mode = 'event', n, 0), never)
        ) as ends,
        arraySort(moments).2 as is_trade,
        arrayFilter(
            (e, is_trade_) -> is_trade_,
            arrayReverseFill((e, is_trade_) -> not is_trade_, arraySort((e, m) -> m, ends, moments), is_trade),
            is_trade
        ) as last_fill,
        arrayResize(last_fill, n, never) as update_end,
        {{ count_below('t', 'arrayMap(e -> e + 1, update_end)') }} as up_to_update
    from configured
),

-- (1b) Where the bucket that starts at trade i ends: the next bucket's first trade, when (0: with its last trade) and why.
pointed as (
    select
        * except (moments, ends, is_trade),
        -- the next first trade if the mode's own cut comes; n + 2: it does not come in this anchor
        multiIf(
            mode = 'volume',
            arrayMap(v -> toInt64(v) + 2, before_volume),
            mode = 'count',
            arrayMap(i -> if(i + n_cut <= n + 1, i + n_cut, n + 2), position),
            mode = 'hybrid',
            arrayMap(
                (i, v, d) -> least(greatest(toInt64(v) + 2, toInt64(d) + 2, i + n_cut), n + 2),
                position, before_volume, before_target_time
            ),
            arrayMap((e, u, x) -> if(e < x + t_max, toInt64(u) + 1, n + 2), update_end, up_to_update, t)
        ) as after_cut,
        arrayMap((c, d) -> toUInt32(least(c, d + 1)), after_cut, before_deadline) as next_first,
        arrayMap(
            (c, d, x) -> multiIf(c <= d + 1, 'cut', x + t_max <= anchor_end, 'time', 'anchor'), after_cut, before_deadline, t
        ) as reasons,
        arrayMap(
            (r, e, x) -> multiIf(r = 'time', x + t_max, r = 'anchor', anchor_end, mode = 'event', e, toInt64(0)), reasons, update_end, t
        ) as fixed_ends,
        -- every bucket uses up at least 1 of this, so that it bounds the number of hops in a chunk
        arrayMap(
            (q, wait, e) -> least(1, wait / t_max + multiIf(mode = 'count', 1 / n_cut, mode = 'event', e != 0, q / toFloat64(q_cut))),
            quantities,
            arrayPushBack(arrayPopFront(arrayDifference(t)), toInt64(0)),
            arrayPushBack(arrayPopFront(arrayDifference(update_end)), toInt64(1))
        ) as spent
    from ranked
),

-- (2) Follow the pointers. A lambda copies the arrays it looks into, so it looks into chunks of {{ chunk }} trades.
followed as (
    select
        * except (next_first, spent),
        arraySplit((x, i) -> (i - 1) % {{ chunk }} = 0, next_first, position) as chunks,
        arrayMap(
            s -> least({{ chunk }}, 2 + toUInt32(ceil(arraySum(s)))), arraySplit((x, i) -> (i - 1) % {{ chunk }} = 0, spent, position)
        ) as hops,
        arrayFold(
            (state, next_of, hop, passed) -> arrayFold(
                (s, h) -> if(s.1 - passed <= length(next_of), (next_of[s.1 - passed], arrayPushBack(s.2, s.1)), s),
                range(hop),
                state
            ),
            chunks,
            hops,
            arrayMap(i -> toUInt32((i - 1) * {{ chunk }}), arrayEnumerate(chunks)),
            (toUInt32(1), emptyArrayUInt32())
        ).2 as firsts,
        {{ count_below('firsts', 'arrayMap(i -> toUInt32(i + 1), position)') }} as bucket_of_trade,
        arrayPopFront(arrayDifference(arrayPushFront(bucket_of_trade, 0))) as is_first
    from pointed
),

cut as (
    select
        exchange,
        market_type,
        symbol,
        anchor_s,
        mode,
        q_bucket,
        anchor_end,
        first_sequence + number - 1 as sequence,
        number = length(firsts) as is_last,
        fixed_end,
        reason,
        trades
    from followed
    array join
        arrayEnumerate(firsts) as number,
        arrayFilter((e, f) -> f = 1, fixed_ends, is_first) as fixed_end,
        arrayFilter((r, f) -> f = 1, reasons, is_first) as reason,
        arraySplit((x, f) -> f = 1, tape, is_first) as trades
)

select
    c.exchange as exchange,
    c.market_type as market_type,
    c.symbol as symbol,
    -- a sequence of 100,000 in one anchor would run into the next anchor's ids
    toUInt64(
        toUInt64(c.anchor_s) * 100000 + c.sequence
        + throwIf(c.sequence >= 100000, 'more than 100,000 buckets in one anchor: raise q_bucket')
    ) as bucket_id,
    toDateTime(c.anchor_s, 'UTC') as anchor_ts,
    toUInt32(c.sequence) as sequence,
    fromUnixTimestamp64Micro(c.trades[1].1, 'UTC') as bucket_ts_start,
    fromUnixTimestamp64Micro(if(c.fixed_end = 0, c.trades[-1].1, c.fixed_end), 'UTC') as bucket_ts_end,
    toLowCardinality(if(c.reason = 'cut', toString(c.mode), c.reason)) as cut_trigger,
    toUInt32(length(c.trades)) as trade_count,
    arraySum(c.trades.5) as volume,
    c.q_bucket as q_bucket,
    c.trades[1].2 as first_trade_seq,
    c.trades[1].3 as first_trade_id,
    fromUnixTimestamp64Micro(c.trades[-1].1, 'UTC') as last_trade_at,
    c.trades[-1].2 as last_trade_seq,
    c.trades[-1].3 as last_trade_id,
    c.trades.1 as tape_us,
    c.trades.2 as tape_seq,
    c.trades.3 as tape_id,
    c.trades.4 as tape_price,
    c.trades.5 as tape_quantity,
    c.trades.6 as tape_is_buy
from cut as c
inner join feeds as f
    on c.exchange = f.exchange
    and c.market_type = f.market_type
    and c.symbol = f.symbol
-- closed: by a later trade, or by the feed having passed its end
where
    (
        not c.is_last
        or toUnixTimestamp64Micro(f.last_trade_at) >= c.anchor_end
        or f.watermark > bucket_ts_end
    )
    {%- if is_live() %}
    and bucket_ts_end < {{ live_complete_to() }}
    {%- endif %}
