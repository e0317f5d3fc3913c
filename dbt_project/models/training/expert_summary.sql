{{ config(materialized='table', order_by='(expert, horizon, with_hindsight)') }}
{%- set of = 'expert, horizon, with_hindsight' %}

-- How good an expert is at a horizon. Sums are exact, or of sorted arrays: their bits do not depend on the order of the rows.
with counted as (
    select
        *,
        arrayJoin([0, 1]) as with_hindsight
    from {{ ref('expert_scores') }}
),

scored as (
    select
        {{ of }},
        decision_id,
        decided_at,
        score,
        label_return,
        label_class,
        signed_return,
        net_return,
        hit
    from counted
    where unscored = '' and (not is_hindsight or with_hindsight)
),

-- average ranks: those of equals, from the first to the last, in the middle
ranked as (
    select
        {{ of }},
        rank() over (partition by {{ of }} order by score)
        + (count() over (partition by {{ of }}, score order by score) - 1) / 2 as score_rank,
        rank() over (partition by {{ of }} order by label_return)
        + (count() over (partition by {{ of }}, label_return order by label_return) - 1) / 2 as return_rank
    from scored
),

-- halves and quarters: these sums are exact
correlations as (
    select
        {{ of }},
        count() * (count() + 1) * (count() + 1) / 4 as if_unrelated,
        sum(score_rank * return_rank) - if_unrelated as together,
        sum(score_rank * score_rank) - if_unrelated as of_scores,
        sum(return_rank * return_rank) - if_unrelated as of_returns
    from ranked
    group by {{ of }}
),

measured as (
    select
        {{ of }},
        toUInt32(count()) as scored,
        countIf(label_class is not null) as classed,
        if(classed = 0, null, countIf(hit = 1) / classed) as hit_rate,
        -- the same intents dealt out at random over the same classes
        if(
            classed = 0,
            null,
            (
                {%- for c in [-1, 0, 1] %}
                countIf(label_class = {{ c }}) * countIf(score = {{ c }} and label_class is not null){{ ' +' if not loop.last }}
                {%- endfor %}
            ) / (classed * classed)
        ) as base_rate,
        arraySort(groupArrayIf(
            (decided_at, decision_id, assumeNotNull(signed_return), assumeNotNull(net_return)),
            score != 0
        )) as trades,
        length(trades) as trade_count,
        arraySum(trades.3) / nullIf(trade_count, 0) as mean_signed_return,
        arraySum(trades.4) / nullIf(trade_count, 0) as mean_net_return,
        sqrt(
            arraySum(arrayMap(net -> pow(net - assumeNotNull(mean_net_return), 2), trades.4))
            / if(trade_count > 1, (trade_count - 1) * trade_count, null)
        ) as net_return_stderr
    from scored
    group by {{ of }}
),

entered as (
    select
        {{ of }},
        toUInt32(count()) as decisions,
        toUInt32(sum(is_hindsight)) as hindsight_decisions,
        toUInt32(countIf(entered_at_source = 'file')) as file_dated_decisions
    from counted
    group by {{ of }}
)

select
    e.expert as expert,
    e.horizon as horizon,
    e.with_hindsight as with_hindsight,
    e.decisions as decisions,
    e.hindsight_decisions as hindsight_decisions,
    e.file_dated_decisions as file_dated_decisions,
    ifNull(m.scored, 0) as scored,
    toUInt32(ifNull(m.trade_count, 0)) as trades,
    m.hit_rate as hit_rate,
    m.base_rate as base_rate,
    if(c.of_scores > 0 and c.of_returns > 0, c.together / sqrt(c.of_scores * c.of_returns), null) as ic,
    m.mean_signed_return as mean_signed_return,
    m.mean_net_return as mean_net_return,
    m.net_return_stderr as net_return_stderr
from entered as e
left join measured as m
    on e.expert = m.expert
    and e.horizon = m.horizon
    and e.with_hindsight = m.with_hindsight
left join correlations as c
    on e.expert = c.expert
    and e.horizon = c.horizon
    and e.with_hindsight = c.with_hindsight
