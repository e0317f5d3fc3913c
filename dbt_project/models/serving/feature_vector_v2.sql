{{ config(**bucket_grain()) }}
{{ config(settings={'index_granularity': 256, 'min_compress_block_size': 1024, 'max_compress_block_size': 4096}) }}

{#- Every family's model with its columns. Names are unique over all families: see seeds/feature_catalog.csv. -#}
{%- set families = {
    'trade_flow': [
        'trade_count', 'buy_count', 'sell_count', 'volume', 'buy_volume', 'sell_volume', 'flow_imbalance', 'vwap', 'notional',
        'open_price', 'high_price', 'low_price', 'close_price', 'mean_trade_size', 'max_trade_size', 'duration_s', 'trades_per_second',
    ],
    'top_of_book': [
        'mid_close', 'spread_bps_close', 'tob_imbalance_close', 'microprice_close', 'microprice_gap_bps', 'book_age_ms',
        'book_update_count', 'mid_mean', 'spread_bps_mean', 'tob_imbalance_mean', 'ofi',
    ],
    'price_impact': [
        'mid_return', 'kyle_lambda', 'amihud',
    ],
    'vpin': [
        'vpin',
    ],
    'realized_variance': [
        'rv', 'bv', 'jump',
    ],
    'cross_consistency': [
        'cross_is_on', 'cross_verdict', 'basis_is_on', 'basis_verdict', 'price_difference_mean_bps', 'price_difference_p99_bps',
        'reference_book_age_ms', 'reference_minute_trades', 'reference_minute_book_updates',
    ],
    'cross_spread': [
        'cross_spread_bps', 'cross_spread_z', 'hedge_ratio', 'cointegration_residual_bps', 'cointegration_residual_z',
        'cointegration_half_life_s', 'cross_spread_hurst', 'basis_bps', 'funding_implied_basis_bps', 'basis_deviation_bps',
    ],
    'price_discovery': [
        'lead_lag_ms', 'lead_lag_correlation', 'cross_correlation', 'hy_lead_lag_ms', 'hy_correlation', 'hy_lead_lag_ratio',
        'information_share_low', 'information_share_high', 'component_share',
    ],
    'venue_activity': [
        'minute_trades', 'minute_book_updates', 'minute_trade_gap_max_ms', 'minute_book_gap_max_ms', 'minute_trade_gap_median_ms',
        'minute_book_gap_median_ms',
    ],
    'funding': [
        'funding_rate', 'funding_age_s', 'funding_rate_change', 'funding_rate_z', 'funding_shock_magnitude', 'funding_shock_sign',
        'funding_shock_imbalance', 'minutes_to_funding',
    ],
    'implied_volatility': [
        'implied_volatility', 'realized_volatility', 'implied_minus_realized', 'implied_over_realized', 'implied_minus_realized_z',
    ],
    'liquidation_panic': [
        'seconds_since_liquidation', 'liquidation_count', 'liquidation_count_elsewhere', 'liquidation_notional',
        'liquidation_to_traded', 'liquidation_sell_share', 'liquidation_cluster_share', 'liquidation_venue_delay_s',
        'liquidation_impact_bps', 'liquidation_recovery',
    ],
    'long_short_bias': [
        'long_short_bias_accounts', 'long_short_bias_accounts_change', 'long_short_bias_positions', 'long_short_bias_positions_change',
        'long_short_divergence',
    ],
    'open_interest': [
        'open_interest', 'open_interest_age_s', 'open_interest_log_change', 'open_interest_change_z', 'open_interest_rank',
    ],
    'squeeze': [
        'tob_imbalance_z', 'inverse_spread_z', 'squeeze_score',
    ],
    'footprint': [
        'footprint_bin_count', 'poc_distance_bps', 'poc_volume_share', 'poc_delta', 'poc_imbalance', 'value_area_width_bps',
        'max_bin_delta_share', 'max_bin_delta_distance_bps', 'bin_delta_dispersion', 'high_bin_imbalance', 'low_bin_imbalance',
        'footprint_entropy', 'stacked_buy_imbalance', 'stacked_sell_imbalance',
    ],
    'footprint_levels': [
        'resistance_above', 'support_below', 'nearest_resistance_distance_bps', 'nearest_support_distance_bps',
        'resistance_support_log_ratio', 'level_delta_balance', 'level_count', 'level_run_age_s',
    ],
    'trade_clusters': [
        'trade_cluster_count', 'trade_cluster_share', 'trade_cluster_density', 'trade_cluster_largest_trades',
        'trade_cluster_largest_volume_share', 'trade_cluster_largest_buy_share', 'trade_cluster_largest_sell_share',
    ],
    'trade_heatmap': [
        'heatmap_buy_centre_bps', 'heatmap_sell_centre_bps', 'heatmap_centre_distance_bps', 'heatmap_buy_spread_bps',
        'heatmap_sell_spread_bps', 'heatmap_entropy', 'heatmap_delta_time_gradient', 'heatmap_delta_price_gradient',
        'heatmap_drift_bps_per_s',
    ],
    'book_depth': [
        'weighted_imbalance_5', 'weighted_imbalance_10', 'weighted_imbalance_20', 'bid_depth_5', 'bid_depth_10', 'bid_depth_20',
        'ask_depth_5', 'ask_depth_10', 'ask_depth_20', 'bid_depth_5bps', 'bid_depth_10bps', 'bid_depth_25bps', 'ask_depth_5bps',
        'ask_depth_10bps', 'ask_depth_25bps', 'bid_reach_bps', 'ask_reach_bps', 'bid_fault_line_bps', 'bid_fault_line_distance_bps',
        'ask_fault_line_bps', 'ask_fault_line_distance_bps', 'microprice_5_gap_bps', 'microprice_10_gap_bps', 'book_pressure',
    ],
    'book_dynamics': [
        'book_refresh_rate', 'bid_add_rate', 'bid_cancel_rate', 'bid_net_rate', 'bid_depth_velocity', 'best_bid_time_share',
        'best_bid_lifetime_ms', 'ask_add_rate', 'ask_cancel_rate', 'ask_net_rate', 'ask_depth_velocity', 'best_ask_time_share',
        'best_ask_lifetime_ms', 'book_stability',
    ],
    'book_shape': [
        'bid_depth_slope', 'bid_depth_curvature', 'bid_depth_convexity', 'bid_tail_width_bps', 'bid_size_entropy', 'bid_gravity_bps',
        'ask_depth_slope', 'ask_depth_curvature', 'ask_depth_convexity', 'ask_tail_width_bps', 'ask_size_entropy', 'ask_gravity_bps',
        'book_gravity_bps',
    ],
    'impact_cost': [
        'buy_cost_10k_bps', 'buy_cost_100k_bps', 'buy_cost_1m_bps', 'sell_cost_10k_bps', 'sell_cost_100k_bps', 'sell_cost_1m_bps',
        'buy_impact_linear', 'buy_impact_linear_r2', 'buy_impact_sqrt', 'buy_impact_sqrt_r2', 'sell_impact_linear',
        'sell_impact_linear_r2', 'sell_impact_sqrt', 'sell_impact_sqrt_r2',
    ],
    'impact_regressions': [
        'kyle_lambda_sqrt', 'hasbrouck_lambda',
    ],
    'derivative_regime': [
        'funding_interest_regime',
    ],
    'session': [
        'trading_session', 'is_weekend',
    ],
    'volatility_regime': [
        'realized_volatility_rank', 'trade_intensity_rank', 'volatility_regime',
    ],
    'absorption': [
        'absorbed_volume', 'absorbed_share', 'usual_volume_per_s', 'absorption_score', 'absorption_side', 'absorption_price',
        'absorption_distance_bps',
    ],
    'aggressor_classes': [
        'order_count', 'order_size_median', 'order_gap_cv', 'round_lot_share', 'retail_share', 'algo_share', 'block_share',
    ],
    'liquidity_vacuum': [
        'depth_vanish_count_bid', 'depth_pull_count_bid', 'depth_fall_max_bid', 'iceberg_count_bid', 'iceberg_volume_bid',
        'depth_vanish_count_ask', 'depth_pull_count_ask', 'depth_fall_max_ask', 'iceberg_count_ask', 'iceberg_volume_ask',
    ],
    'spoofing': [
        'wall_pull_count_bid', 'spoof_score_bid', 'wall_pull_count_ask', 'spoof_score_ask',
    ],
    'tape_runs': [
        'print_run_mean', 'print_run_max', 'print_run_last', 'step_run_max', 'step_run_last', 'active_step_share',
        'micro_momentum_10_bps', 'micro_momentum_50_bps', 'sweep_count_buy', 'sweep_count_sell', 'sweep_share_buy', 'sweep_share_sell',
        'sweep_levels_buy', 'sweep_levels_sell',
    ],
    'flow_toxicity': [
        'vpin_exact', 'pin',
    ],
    'arrivals': [
        'trade_intensity', 'fano_100ms', 'fano_1s', 'hawkes_branching_ratio',
    ],
    'traded_spreads': [
        'effective_spread_bps', 'quoted_spread_traded_bps', 'effective_to_quoted_ratio', 'price_improvement_share',
        'realized_spread_1s_bps', 'price_impact_1s_bps', 'realized_spread_5s_bps', 'price_impact_5s_bps', 'realized_spread_30s_bps',
        'price_impact_30s_bps', 'roll_spread_bps',
    ],
    'jump_variation': [
        'jump_ratio', 'lee_mykland', 'lee_mykland_flag', 'realized_semivariance_up', 'realized_semivariance_down',
        'signed_jump_variation',
    ],
    'multi_resolution_volatility': [
        'realized_volatility_1s', 'bipower_volatility_1s', 'realized_volatility_10s', 'bipower_volatility_10s',
        'realized_volatility_60s', 'bipower_volatility_60s', 'realized_volatility_300s', 'bipower_volatility_300s', 'jump_ratio_60s',
        'jump_ratio_300s', 'volatility_ratio', 'volatility_of_volatility', 'volatility_shift', 'volatility_shift_flag',
    ],
    'range_volatility': [
        'parkinson', 'garman_klass', 'parkinson_mean', 'garman_klass_mean',
    ],
    'wavelet_energy': [
        'wavelet_energy_approximation', 'wavelet_energy_detail_3', 'wavelet_energy_detail_2', 'wavelet_energy_detail_1', 'wavelet_snr',
    ],
} %}

-- Version 2 of the public feature row: every feature of the catalogue. Small granules and blocks: the scorer reads single rows.
with buckets as (
    select
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_start,
        bucket_ts_end
    from {{ new_buckets(ref('unified_buckets')) }}
),

-- days before the first new bucket are not read
{% for model in families -%}
{{ model }} as (
    select *
    from {{ ref(model) }}
    where bucket_ts_start >= (select minOrNull(bucket_ts_start) from buckets)
){% if not loop.last %},

{% endif %}
{%- endfor %}

select
    b.exchange as exchange,
    b.market_type as market_type,
    b.symbol as symbol,
    b.bucket_id as bucket_id,
    b.bucket_ts_start as bucket_ts_start,
    b.bucket_ts_end as bucket_ts_end,
    {%- for model, columns in families.items() %}
    {%- for column in columns %}
    {{ model }}.{{ column }} as {{ column }},
    {%- endfor %}
    {%- endfor %}
    toLowCardinality('bucket') as clock
from buckets as b
{% for model in families -%}
inner join {{ model }}
    on b.exchange = {{ model }}.exchange
    and b.market_type = {{ model }}.market_type
    and b.symbol = {{ model }}.symbol
    and b.bucket_id = {{ model }}.bucket_id
{% endfor %}
