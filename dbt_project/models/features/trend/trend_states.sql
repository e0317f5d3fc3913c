{{ config(**bucket_grain()) }}
{%- set ahead = var('trend_score_steps') %}
{%- set n = var('trend_score_buckets') %}

-- The trend state to use: the jump model's, unless it is missing, stale or has lately been worse than the rules.
with states as (
    select
        m.exchange as exchange,
        m.market_type as market_type,
        m.symbol as symbol,
        m.bucket_id as bucket_id,
        m.bucket_ts_start as bucket_ts_start,
        m.bucket_ts_end as bucket_ts_end,
        m.is_new as is_new,
        m.mid_close as mid_close,
        rules.trend_rule_state as trend_rule_state,
        j.trend_jump_state as trend_jump_state
    from {{ new_buckets(ref('bucket_moves'), context=n + ahead) }} as m
    inner join {{ ref('trend_moves') }} as rules
        on m.exchange = rules.exchange
        and m.market_type = rules.market_type
        and m.symbol = rules.symbol
        and m.bucket_id = rules.bucket_id
    inner join {{ ref('trend_jump') }} as j
        on m.exchange = j.exchange
        and m.market_type = j.market_type
        and m.symbol = j.symbol
        and m.bucket_id = j.bucket_id
),

-- What a state of {{ ahead }} buckets ago has earned by now.
earned as (
    select
        *,
        {%- for model in ('rule', 'jump') %}
        {{ before('trend_' ~ model ~ '_state', ahead) }} * log(mid_close / {{ before('mid_close', ahead) }}) * 10000 as earned_{{ model }},
        {%- endfor %}
        earned_rule is not null and earned_jump is not null as both_earned
    from states
),

scores as (
    select
        *,
        {%- for model in ('rule', 'jump') %}
        groupArrayIf(assumeNotNull(earned_{{ model }}), both_earned) over {{ past(n) }} as of_{{ model }},
        {%- endfor %}
        length(of_rule) as scored
    from earned
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    if(scored >= {{ var('trend_score_min_buckets') }}, arraySum(of_rule) / scored, null) as trend_rule_score_bps,
    if(scored >= {{ var('trend_score_min_buckets') }}, arraySum(of_jump) / scored, null) as trend_jump_score_bps,
    trend_jump_state is not null and ifNull(trend_jump_score_bps >= trend_rule_score_bps, false) as trend_is_jump,
    if(trend_is_jump, trend_jump_state, trend_rule_state) as trend_state
from scores
where is_new = 1
