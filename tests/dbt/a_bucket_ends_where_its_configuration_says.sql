-- Within its anchor and t_max; exactly at their end if they cut it, else with its last trade. A volume bucket is full with its last trade
-- and was not before it; one that time or the anchor cut never got full. One row per bucket that is otherwise.
with configured as (
    select
        t.exchange as exchange,
        t.market_type as market_type,
        t.symbol as symbol,
        t.bucket_id as bucket_id,
        t.cut_trigger as cut_trigger,
        t.bucket_ts_end as bucket_ts_end,
        t.last_trade_at as last_trade_at,
        t.trade_count as trade_count,
        t.volume as volume,
        t.volume - t.tape_quantity[-1] as volume_before_last,
        c.q_bucket as q_bucket,
        c.mode as mode,
        c.n_trades as n_trades,
        t.bucket_ts_start + toIntervalMicrosecond(c.t_max_us) as deadline,
        toDateTime64(c.valid_to, 6, 'UTC') as anchor_end,
        t.q_bucket = c.q_bucket as is_configured
    from {{ ref('bucket_tapes') }} as t
    left join {{ ref('bucket_config') }} as c
        on t.exchange = c.exchange
        and t.market_type = c.market_type
        and t.symbol = c.symbol
        and t.anchor_ts = c.valid_from
)

select *
from configured
where
    not ifNull(
        is_configured
        and multiIf(
            cut_trigger = 'time', bucket_ts_end = deadline and deadline <= anchor_end and last_trade_at < deadline,
            cut_trigger = 'anchor', bucket_ts_end = anchor_end and anchor_end < deadline and last_trade_at < anchor_end,
            cut_trigger = 'event', bucket_ts_end < deadline and last_trade_at <= bucket_ts_end,
            bucket_ts_end < deadline and last_trade_at = bucket_ts_end
        )
        and multiIf(
            cut_trigger = 'volume', volume >= q_bucket and volume_before_last < q_bucket,
            cut_trigger = 'count', trade_count = n_trades,
            mode = 'volume', volume < q_bucket,
            mode = 'count', trade_count < n_trades,
            true
        )
        and (cut_trigger in ('time', 'anchor') or cut_trigger = mode),
        false
    )
