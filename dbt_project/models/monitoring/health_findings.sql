{{ config(tags=['health']) }}
-- One row per metric, instrument, detail and threshold that is breached now.
select
    m.metric as metric,
    m.exchange as exchange,
    m.market_type as market_type,
    m.symbol as symbol,
    m.detail as detail,
    m.value as value,
    m.as_of as as_of,
    t.severity as severity,
    t.threshold as threshold,
    t.runbook as runbook
from {{ ref('health_metrics') }} as m
inner join {{ ref('health_thresholds') }} as t on m.metric = t.metric
where ifNull(if(t.comparison = '>', m.value > t.threshold, m.value < t.threshold), false)
