{{ config(materialized='table', partition_by='toYYYYMMDD(bucket_ts_start)', order_by='(exchange, market_type, symbol, bucket_id)') }}
{%- set n = var('rolling_buckets') %}
{%- set steps = [1, 3, 5, 10] %}
{%- set horizons = [5, 10, 30, 60, 300] %}
{%- set sigma = var('label_threshold_sigma') %}
{%- set winsor = var('label_winsor_buckets') %}

-- What came after: the only folder that looks forward. A label is NULL until it is known, and label_known_at_* says when that was.
with moves as (
    select
        m.exchange as exchange,
        m.market_type as market_type,
        m.symbol as symbol,
        m.bucket_id as bucket_id,
        m.bucket_ts_start as bucket_ts_start,
        m.bucket_ts_end as bucket_ts_end,
        m.mid_close as mid_close,
        v.rv as rv,
        -- there and back as a taker: half the spread and a fee each way
        (greatest(ifNull(b.spread_bps_close, 0), 0) + 2 * {{ var('label_taker_fee_bps') }}) / 1e4 as cost
    from {{ ref('bucket_moves') }} as m
    inner join {{ ref('realized_variance') }} as v
        on m.exchange = v.exchange
        and m.market_type = v.market_type
        and m.symbol = v.symbol
        and m.bucket_id = v.bucket_id
    inner join {{ ref('top_of_book') }} as b
        on m.exchange = b.exchange
        and m.market_type = b.market_type
        and m.symbol = b.symbol
        and m.bucket_id = b.bucket_id
),

-- Per-second returns over k buckets, ahead (the label) and behind (its past scale), by order: ids need not be dense.
stepped as (
    select
        *,
        {%- for k in steps %}
        leadInFrame(toNullable(bucket_ts_end), {{ k }}, null) over ahead as end_{{ k }},
        leadInFrame(toNullable(mid_close), {{ k }}, null) over ahead as mid_{{ k }},
        mid_{{ k }} / mid_close - 1 as ret_raw_{{ k }},
        ret_raw_{{ k }}
        / greatest(dateDiff('microsecond', bucket_ts_end, end_{{ k }}) / 1e6, {{ var('label_floor_s') }}) as ret_ps_{{ k }},
        dateDiff('microsecond', {{ before('bucket_ts_end', k) }}, bucket_ts_end) as past_us_{{ k }},
        (mid_close / {{ before('mid_close', k) }} - 1)
        / greatest(past_us_{{ k }} / 1e6, {{ var('label_floor_s') }}) as past_ret_ps_{{ k }},
        {%- endfor %}
        -- seconds behind each return that rv sums
        if(
            mid_close / {{ before('mid_close', 1) }} is not null,
            dateDiff('microsecond', {{ before('bucket_ts_end', 1) }}, bucket_ts_end) / 1e6,
            null
        ) as return_seconds
    from moves
    window ahead as (
        partition by exchange, market_type, symbol
        order by bucket_id
        rows between current row and {{ steps | max }} following
    )
),

scaled as (
    select
        * except (
            {%- for k in steps %}
            mid_{{ k }},
            past_ret_ps_{{ k }},
            past_us_{{ k }},
            {%- endfor %}
            return_seconds
        ),
        {%- for k in steps %}
        if(
            count(past_ret_ps_{{ k }}) over {{ past(n) }} >= 10,
            {{ sigma }} * stddevPopStableIf(assumeNotNull(past_ret_ps_{{ k }}), past_ret_ps_{{ k }} is not null) over {{ past(n) }},
            null
        ) as threshold_{{ k }},
        -- a past return to this bucket's end is the label of the bucket k before: known now
        count(past_ret_ps_{{ k }}) over {{ past(winsor) }} >= {{ var('label_winsor_min_buckets') }} as is_winsorised_{{ k }},
        {%- for bound, level in [('low', var('label_winsor_quantile')), ('high', 1 - var('label_winsor_quantile'))] %}
        quantileExactInclusiveIf({{ level }})(assumeNotNull(past_ret_ps_{{ k }}), past_ret_ps_{{ k }} is not null) over {{ past(winsor) }}
            as {{ bound }}_{{ k }},
        {%- endfor %}
        if(count(past_us_{{ k }}) over {{ past(n) }} >= 10, avg(past_us_{{ k }}) over {{ past(n) }} / 1e6, null) as expected_duration_{{ k }}_s,
        {%- endfor %}
        rv / nullIf(arraySum(groupArray(return_seconds) over {{ past(n) }}), 0) as variance_per_second
    from stepped
),

-- How far each instrument's book is known: a later mid is not yet a label.
books as (
    {{ book_complete_to() }}
),

-- One row per bucket and clock horizon: the mid that will be known then.
targets as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_end,
        mid_close,
        arrayJoin({{ horizons }}) as horizon,
        bucket_ts_end + toIntervalSecond(horizon) as target_at
    from {{ ref('bucket_moves') }}
),

reached as (
    {{ as_of('targets', ref('book_asof'), {'mid': 'mid_then'}, var('book_max_lag_ms'), prefix='then', at='target_at') }}
),

clock_returns as (
    select
        r.exchange as exchange,
        r.market_type as market_type,
        r.symbol as symbol,
        r.bucket_id as bucket_id,
        {%- for h in horizons %}
        anyIf(r.mid_then / r.mid_close - 1, r.horizon = {{ h }}) as ret_{{ h }}s{%- if not loop.last %},{% endif %}
        {%- endfor %}
    from reached as r
    inner join books as b
        on r.exchange = b.exchange
        and r.market_type = b.market_type
        and r.symbol = b.symbol
    where r.target_at <= b.complete_to
    group by exchange, market_type, symbol, bucket_id
),

returns as (
    select
        s.*,
        {%- for h in horizons %}
        c.ret_{{ h }}s as ret_{{ h }}s,
        s.bucket_ts_end + toIntervalSecond({{ h }}) as end_{{ h }}s,
        {{ sigma }} * sqrt(s.variance_per_second * {{ h }}) as threshold_{{ h }}s{%- if not loop.last %},{% endif %}
        {%- endfor %}
    from scaled as s
    left join clock_returns as c
        on s.exchange = c.exchange
        and s.market_type = c.market_type
        and s.symbol = c.symbol
        and s.bucket_id = c.bucket_id
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    variance_per_second,
    {%- for k in steps %}
    expected_duration_{{ k }}_s,
    {%- endfor %}
    {%- for k in steps %}
    ret_ps_{{ k }} as label_ret_ps_{{ k }},
    toNullable(toInt8(if(
        ret_ps_{{ k }} is null or threshold_{{ k }} is null,
        null,
        (ret_ps_{{ k }} > threshold_{{ k }} and ret_raw_{{ k }} > cost) - (ret_ps_{{ k }} < -threshold_{{ k }} and ret_raw_{{ k }} < -cost)
    ))) as label_cls_{{ k }},
    if(
        ret_ps_{{ k }} is null or not is_winsorised_{{ k }},
        null,
        least(greatest(assumeNotNull(ret_ps_{{ k }}), low_{{ k }}), high_{{ k }})
    ) as label_ret_wins_{{ k }},
    ret_raw_{{ k }} as label_ret_raw_{{ k }},
    end_{{ k }} as label_known_at_{{ k }},
    {%- endfor %}
    {%- for h in horizons %}
    ret_{{ h }}s as label_ret_{{ h }}s,
    toNullable(toInt8(if(
        ret_{{ h }}s is null or threshold_{{ h }}s is null,
        null,
        (ret_{{ h }}s > greatest(assumeNotNull(threshold_{{ h }}s), cost)) - (ret_{{ h }}s < -greatest(assumeNotNull(threshold_{{ h }}s), cost))
    ))) as label_cls_{{ h }}s,
    end_{{ h }}s as label_known_at_{{ h }}s{%- if not loop.last %},{% endif %}
    {%- endfor %}
from returns
