{%- set bins = 10 %}
-- One row per model and UTC day: how well scores ranked what came, how honest probabilities were, and how often signals changed.
with scored as (
    select
        model_name,
        model_version,
        exchange,
        market_type,
        symbol,
        bucket_id,
        bucket_ts_end,
        toDate(bucket_ts_end) as day, -- noqa: RF04
        score,
        signal,
        confidence,
        class is not null as is_labelled,
        came_return is not null and isFinite(score) as is_paired,
        ifNull(came_return, 0) as paired_return,
        ifNull(said_class = class, false) as is_right,
        -- (low, high], so that 1 falls into the last bin, as in training/metrics.py
        toUInt8(least(greatest(ceil(confidence * {{ bins }}), 1), {{ bins }})) as confidence_bin,
        -- out of the market before the day's first bucket
        abs(signal - lagInFrame(toInt16(signal), 1, 0) over (
            partition by model_name, model_version, exchange, market_type, symbol, toDate(bucket_ts_end)
            order by bucket_id
            rows between 1 preceding and current row
        )) as traded
    from {{ ref('scored_buckets') }}
),

-- Ranks from 1; ties share their mean.
ranked as (
    select
        model_name,
        model_version,
        day,
        rank() over (partition by model_name, model_version, day order by score)
        + (count() over (partition by model_name, model_version, day, score order by score) - 1) / 2 as score_rank,
        rank() over (partition by model_name, model_version, day order by paired_return)
        + (count() over (partition by model_name, model_version, day, paired_return order by paired_return) - 1) / 2 as paired_return_rank
    from scored
    where is_paired
),

correlated as (
    select
        model_name,
        model_version,
        day,
        count() as paired,
        arraySort(groupArray((score_rank, paired_return_rank))) as ranks,
        arrayReduce('corr', ranks.1, ranks.2) as correlation
    from ranked
    group by model_name, model_version, day
),

bins as (
    select
        model_name,
        model_version,
        day,
        confidence_bin,
        count() as n,
        arraySum(arraySort(groupArray(confidence))) as confidences,
        countIf(is_right) as hits
    from scored
    where is_labelled
    group by model_name, model_version, day, confidence_bin
),

calibrated as (
    select
        model_name,
        model_version,
        day,
        arraySort(groupArray((confidence_bin, n, confidences / n, hits / n))) as of_bins,
        arraySum(b -> abs(b.3 - b.4) * b.2, of_bins) / sum(n) as calibration_error
    from bins
    group by model_name, model_version, day
),

days as (
    select
        model_name,
        model_version,
        day,
        count() as buckets,
        uniqExact(exchange, market_type, symbol) as instruments,
        countIf(is_labelled) as labelled,
        max(bucket_ts_end) as last_at,
        sum(traded) as all_traded,
        countIf(signal != 0) / buckets as signal_share
    from scored
    group by model_name, model_version, day
)

select
    d.model_name as model_name,
    d.model_version as model_version,
    d.day as day, -- noqa: RF04
    d.buckets as buckets,
    d.instruments as instruments,
    d.labelled as labelled,
    d.last_at as last_at,
    if(c.paired > 1 and isFinite(c.correlation), c.correlation, null) as ic,
    if(d.labelled > 0, b.calibration_error, null) as ece,
    b.of_bins.1 as calibration_bins,
    b.of_bins.2 as calibration_buckets,
    b.of_bins.3 as calibration_predicted,
    b.of_bins.4 as calibration_observed,
    d.all_traded / d.instruments as turnover,
    d.all_traded / d.buckets as turnover_per_bucket,
    d.signal_share as signal_share
from days as d
left join correlated as c
    on d.model_name = c.model_name
    and d.model_version = c.model_version
    and d.day = c.day
left join calibrated as b
    on d.model_name = b.model_name
    and d.model_version = b.model_version
    and d.day = b.day
