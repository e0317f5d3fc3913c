-- How the trend states behave: whether they flicker, how long they last, and what came after them.
with states as (
    select
        s.exchange as exchange,
        s.market_type as market_type,
        s.symbol as symbol,
        s.bucket_id as bucket_id,
        toDate(s.bucket_ts_end) as utc_day,
        [
            ('rules', r.trend_rule_state),
            ('jump', j.trend_jump_state),
            ('chosen', s.trend_state)
        ] as by_model,
        l.label_ret_ps_3 as return_3,
        l.label_ret_ps_5 as return_5
    from {{ ref('trend_states') }} as s
    inner join {{ ref('trend_moves') }} as r
        on s.exchange = r.exchange
        and s.market_type = r.market_type
        and s.symbol = r.symbol
        and s.bucket_id = r.bucket_id
    inner join {{ ref('trend_jump') }} as j
        on s.exchange = j.exchange
        and s.market_type = j.market_type
        and s.symbol = j.symbol
        and s.bucket_id = j.bucket_id
    inner join {{ ref('bucket_labels') }} as l
        on s.exchange = l.exchange
        and s.market_type = l.market_type
        and s.symbol = l.symbol
        and s.bucket_id = l.bucket_id
),

by_model as (
    select
        exchange,
        market_type,
        symbol,
        utc_day,
        of_model.1 as trend_model,
        arraySort(groupArray((bucket_id, assumeNotNull(of_model.2), return_3, return_5))) as told,
        told.2 as sequence,
        -- a run ends where the next state differs, or the day does
        arrayPopFront(arrayPushBack(sequence, toInt8(9))) as following_state,
        arrayFilter((place, s, f) -> s != f, arrayEnumerate(sequence), sequence, following_state) as last_of_runs,
        arraySort(arrayDifference(arrayPushFront(last_of_runs, toUInt32(0)))) as differences,
        arrayPopFront(differences) as dwells,
        arrayFilter(t -> t.3 is not null, told) as with_3,
        arrayFilter(t -> t.4 is not null, told) as with_5
    from states
    array join by_model as of_model
    where of_model.2 is not null
    group by exchange, market_type, symbol, utc_day, trend_model
)

select
    exchange,
    market_type,
    symbol,
    utc_day,
    trend_model,
    toUInt32(length(sequence)) as buckets,
    100 * (length(dwells) - 1) / length(sequence) as flips_per_100,
    arrayAvg(dwells) as mean_dwell_buckets,
    toUInt32(dwells[toUInt32(ceil(0.9 * length(dwells)))]) as p90_dwell_buckets,
    countEqual(sequence, 1) / length(sequence) as up_share,
    countEqual(sequence, 0) / length(sequence) as flat_share,
    countEqual(sequence, -1) / length(sequence) as down_share,
    if(
        length(with_3) < 30,
        null,
        arrayReduce('corrStable', arrayMap(t -> toFloat64(t.2), with_3), arrayMap(t -> assumeNotNull(t.3), with_3))
    ) as ic_3,
    if(
        length(with_5) < 30,
        null,
        arrayReduce('corrStable', arrayMap(t -> toFloat64(t.2), with_5), arrayMap(t -> assumeNotNull(t.4), with_5))
    ) as ic_5
from by_model
