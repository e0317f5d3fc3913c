{{ config(**bucket_grain()) }}
{{ config(settings={'index_granularity': 256, 'min_compress_block_size': 1024, 'max_compress_block_size': 4096}) }}

-- Version 1 of the public feature row. Small granules and blocks: the scorer reads single rows from the end.
with flow as (
    select *
    from {{ new_buckets(ref('trade_flow')) }}
)

select
    f.exchange as exchange,
    f.market_type as market_type,
    f.symbol as symbol,
    f.bucket_id as bucket_id,
    f.bucket_ts_start as bucket_ts_start,
    f.bucket_ts_end as bucket_ts_end,
    f.trade_count as trade_count,
    f.buy_count as buy_count,
    f.sell_count as sell_count,
    f.volume as volume,
    f.buy_volume as buy_volume,
    f.sell_volume as sell_volume,
    f.flow_imbalance as flow_imbalance,
    f.vwap as vwap,
    f.notional as notional,
    f.open_price as open_price,
    f.high_price as high_price,
    f.low_price as low_price,
    f.close_price as close_price,
    f.mean_trade_size as mean_trade_size,
    f.max_trade_size as max_trade_size,
    f.duration_s as duration_s,
    f.trades_per_second as trades_per_second,
    b.mid_close as mid_close,
    b.mid_mean as mid_mean,
    b.spread_bps_close as spread_bps_close,
    b.spread_bps_mean as spread_bps_mean,
    b.tob_imbalance_close as tob_imbalance_close,
    b.tob_imbalance_mean as tob_imbalance_mean,
    b.microprice_close as microprice_close,
    b.microprice_gap_bps as microprice_gap_bps,
    b.book_age_ms as book_age_ms,
    b.book_update_count as book_update_count,
    b.ofi as ofi,
    p.mid_return as mid_return,
    p.kyle_lambda as kyle_lambda,
    p.amihud as amihud,
    v.vpin as vpin,
    r.rv as rv,
    r.bv as bv,
    r.jump as jump
from flow as f
{% for model, alias in [('top_of_book', 'b'), ('price_impact', 'p'), ('vpin', 'v'), ('realized_variance', 'r')] -%}
inner join {{ ref(model) }} as {{ alias }}
    on f.exchange = {{ alias }}.exchange
    and f.market_type = {{ alias }}.market_type
    and f.symbol = {{ alias }}.symbol
    and f.bucket_id = {{ alias }}.bucket_id
{% endfor %}
