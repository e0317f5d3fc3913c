-- One row per version of an expert's decision, in the order in which they were entered.
with versions as (
    -- two machines may have stored one line
    select distinct
        decision_id,
        expert,
        exchange,
        market_type,
        symbol,
        decided_at,
        entered_at,
        entered_at_source,
        greatest(decided_at, entered_at) as known_at,
        intent,
        toInt8(intent) as score,
        size,
        confidence,
        horizon,
        rationale,
        outcome
    from {{ source('serving', 'expert_decisions') }}
)

select
    *,
    toUInt32(row_number() over (
        partition by decision_id
        order by entered_at, entered_at_source, intent, rationale, outcome, size, confidence
    )) as version
from versions
