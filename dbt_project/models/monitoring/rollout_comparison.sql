{#- Class labels and their returns, as the yml of bucket_labels lists them. -#}
{%- set listed = [] -%}
{%- for node in (graph.nodes.values() if graph.nodes is defined else []) if node.name == 'bucket_labels' -%}
    {%- do listed.extend(node.columns.keys()) -%}
{%- endfor -%}
{%- set outcomes = [] -%}
{%- for label in listed if label.startswith('label_cls_') -%}
    {%- for kind in ['label_ret_ps_', 'label_ret_'] if label.replace('label_cls_', kind) in listed -%}
        {%- do outcomes.append((label, label.replace('label_cls_', kind))) -%}
    {%- endfor -%}
{%- endfor -%}
{#- sqlfluff knows no yml -#}
{%- set outcomes = outcomes or [('label_cls_1', 'label_ret_ps_1')] -%}
{%- set limits = [
    'block_s', 'min_rows', 'min_blocks', 'min_hours', 'max_t', 'max_log_loss_increase', 'max_ic_decrease', 'max_p99_ms',
    'max_missing_share', 'max_stale_share', 'max_unpaired_share',
] -%}
-- One row per step of a roll-out: the challenger beside the champion on the buckets that both scored, and whether it may go on.
with cards as (
    select
        model_name,
        model_version,
        JSONExtractString(card, 'label') as label,
        JSONExtract(card, 'classes', 'Array(Int8)') as classes,
        JSONLength(card, 'features') as inputs_of_row,
        greatest(JSONExtractUInt(card, 'window'), 1) as rows_of_input
    from {{ source('serving', 'models') }}
    order by at desc
    limit 1 by model_name, model_version
),

steps as (
    select
        d.sequence as sequence,
        d.at as at,
        d.champion_name as champion_name,
        d.champion_version as champion_version,
        d.challenger_name as challenger_name,
        d.challenger_version as challenger_version,
        d.share as share,
        ifNull(a.label, '') as label,
        a.classes as champion_classes,
        ifNull(b.label, '') as challenger_label,
        b.classes as challenger_classes,
        b.inputs_of_row * b.rows_of_input as inputs
    from {{ source('serving', 'deployments') }} as d
    left join cards as a
        on d.champion_name = a.model_name
        and d.champion_version = a.model_version
    left join cards as b
        on d.challenger_name = b.model_name
        and d.challenger_version = b.model_version
    where d.challenger_name != ''
),

limits as (
    select
        {%- for name in limits %}
        anyIf(toNullable(limit_value), check_name = '{{ name }}') as {{ name }},
        {%- endfor %}
        count() as limit_rows
    from {{ ref('rollout_thresholds') }}
),

predicted as (
    select
        p.deployment as sequence,
        p.role = 'challenger' as is_challenger,
        p.exchange as exchange,
        p.market_type as market_type,
        p.symbol as symbol,
        p.bucket_id as bucket_id,
        p.bucket_ts_end as bucket_ts_end,
        p.request_id as request_id,
        p.predicted_at as predicted_at,
        p.probabilities as probabilities,
        p.score as score,
        p.missing_features as missing_features,
        p.stale as stale,
        p.total_us as total_us
    from {{ source('serving', 'predictions') }} as p
    inner join {{ source('serving', 'deployments') }} as d on p.deployment = d.sequence
    where
        d.challenger_name != ''
        and (
            (p.role = 'champion' and p.model_name = d.champion_name and p.model_version = d.champion_version)
            or (p.role = 'challenger' and p.model_name = d.challenger_name and p.model_version = d.challenger_version)
        )
),

-- What the champion scored. A bucket that was scored again and again counts once, by its first predictions.
buckets as (
    select
        sequence,
        exchange,
        market_type,
        symbol,
        bucket_id,
        any(bucket_ts_end) as bucket_ts_end,
        argMinIf((probabilities, score), (predicted_at, request_id), not is_challenger) as champion_said,
        argMinIf((probabilities, score), (predicted_at, request_id), is_challenger) as challenger_said,
        notEmpty(challenger_said.1) as is_paired
    from predicted
    group by sequence, exchange, market_type, symbol, bucket_id
    having notEmpty(champion_said.1)
),

known as (
    select
        p.sequence as sequence,
        p.bucket_ts_end as bucket_ts_end,
        p.champion_said as champion_said,
        p.challenger_said as challenger_said,
        s.champion_classes as champion_classes,
        s.challenger_classes as challenger_classes,
        arrayFirst(outcome -> outcome.1 = s.label, [
            {%- for label, return in outcomes %}
            ('{{ label }}', o.{{ label }}, o.{{ return }}){%- if not loop.last %},{% endif %}
            {%- endfor %}
        ]) as outcome
    from {{ ref('bucket_labels') }} as o
    inner join buckets as p
        on o.exchange = p.exchange
        and o.market_type = p.market_type
        and o.symbol = p.symbol
        and o.bucket_id = p.bucket_id
    inner join steps as s on p.sequence = s.sequence
    where p.is_paired and outcome.2 is not null and outcome.3 is not null
),

pairs as (
    select
        k.sequence as sequence,
        intDiv(toUnixTimestamp(k.bucket_ts_end), toUInt32(assumeNotNull(l.block_s))) as block,
        k.bucket_ts_end as bucket_ts_end,
        -- as in training/metrics.py: a class that a model does not know has probability 0, and no probability is below the floor
        -log(greatest(toFloat64((k.champion_said.1)[indexOf(k.champion_classes, k.outcome.2)]), 1e-7)) as champion_loss,
        -log(greatest(toFloat64((k.challenger_said.1)[indexOf(k.challenger_classes, k.outcome.2)]), 1e-7)) as challenger_loss,
        toFloat64(k.champion_said.2) as champion_score,
        toFloat64(k.challenger_said.2) as challenger_score,
        assumeNotNull(k.outcome.3) as return,
        arrayExists(x -> not isFinite(x), k.challenger_said.1) as is_nonsense
    from known as k
    cross join limits as l
),

-- Ranks from 1; ties share their mean.
ranked as (
    select
        *,
        {%- for value in ['champion_score', 'challenger_score', 'return'] %}
        rank() over (partition by sequence order by {{ value }})
        + (count() over (partition by sequence, {{ value }}) - 1) / 2 as {{ value }}_rank,
        {%- endfor %}
        challenger_loss - champion_loss as difference
    from pairs
),

-- Sums in the order of their values: the same bits whatever the order of the rows.
blocks as (
    select
        sequence,
        block,
        count() as n,
        min(bucket_ts_end) as first_at,
        max(bucket_ts_end) as last_at,
        countIf(is_nonsense) as nonsense,
        arraySum(arraySort(groupArray(champion_loss))) as champion_loss,
        arraySum(arraySort(groupArray(challenger_loss))) as challenger_loss,
        arraySum(arraySort(groupArray(difference))) as difference,
        groupArray((champion_score_rank, challenger_score_rank, return_rank)) as ranks
    from ranked
    group by sequence, block
),

compared as (
    select
        sequence,
        sum(b.n) as n,
        count() as blocks,
        min(b.first_at) as first_at,
        max(b.last_at) as last_at,
        sum(b.nonsense) as nonsense,
        arraySum(arraySort(groupArray(b.champion_loss))) / n as champion_log_loss,
        arraySum(arraySort(groupArray(b.challenger_loss))) / n as challenger_log_loss,
        arraySum(arraySort(groupArray(b.difference))) / n as log_loss_difference,
        -- clustered by block (Cameron and Miller 2015, eq. 11, of a mean): neighbours in time share their outcomes
        if(
            blocks > 1,
            sqrt(blocks / (blocks - 1) * arraySum(arraySort(arrayMap(
                cell -> pow(cell.1 - cell.2 * log_loss_difference, 2),
                groupArray((b.difference, b.n))
            )))) / n,
            null
        ) as log_loss_difference_se,
        arraySort(groupArrayArray(b.ranks)) as ranks,
        arrayReduce('corr', ranks.1, ranks.3) as champion_corr,
        arrayReduce('corr', ranks.2, ranks.3) as challenger_corr
    from blocks as b
    group by sequence
),

-- Every prediction counts here, labelled or not. The rows of one request share its time.
requests as (
    select
        sequence,
        is_challenger,
        count() as predictions,
        countIf(stale) as stale_predictions,
        sum(missing_features) as missing_features,
        max(total_us) / 1000 as total_ms
    from predicted
    group by sequence, is_challenger, request_id
),

health as (
    select
        sequence,
        sumIf(predictions, is_challenger) as predictions,
        sumIf(stale_predictions, is_challenger) as stale_predictions,
        sumIf(missing_features, is_challenger) as missing_features,
        quantileExactOrNullIf(0.99)(total_ms, not is_challenger) as champion_p99_ms,
        quantileExactOrNullIf(0.99)(total_ms, is_challenger) as challenger_p99_ms
    from requests
    group by sequence
),

coverage as (
    select
        sequence,
        count() as champion_buckets,
        countIf(not is_paired) as unpaired_buckets
    from buckets
    group by sequence
),

measured as (
    select
        s.sequence as sequence,
        s.at as at,
        s.champion_name as champion_name,
        s.champion_version as champion_version,
        s.challenger_name as challenger_name,
        s.challenger_version as challenger_version,
        s.share as share,
        s.label as label,
        s.label != s.challenger_label or s.champion_classes != s.challenger_classes as is_other_label,
        ifNull(c.n, 0) as n,
        ifNull(c.blocks, 0) as blocks,
        if(c.n > 0, c.first_at, null) as first_at,
        if(c.n > 0, c.last_at, null) as last_at,
        if(c.n > 0, dateDiff('millisecond', c.first_at, c.last_at) / 3.6e6, 0) as hours,
        if(isFinite(c.champion_corr) and c.n > 1, c.champion_corr, null) as champion_ic,
        if(isFinite(c.challenger_corr) and c.n > 1, c.challenger_corr, null) as challenger_ic,
        if(c.n > 0, c.champion_log_loss, null) as champion_log_loss,
        if(c.n > 0, c.challenger_log_loss, null) as challenger_log_loss,
        if(c.n > 0, c.log_loss_difference, null) as log_loss_difference,
        if(c.n > 0, c.log_loss_difference_se, null) as log_loss_difference_se,
        -- equal in every block: no doubt about it either way
        multiIf(
            c.log_loss_difference_se > 0, log_loss_difference / log_loss_difference_se,
            c.log_loss_difference_se = 0 and c.log_loss_difference = 0, 0,
            c.log_loss_difference_se = 0, sign(c.log_loss_difference) * inf,
            null
        ) as t_statistic,
        ifNull(c.nonsense, 0) as nonsense,
        h.champion_p99_ms as champion_p99_ms,
        h.challenger_p99_ms as challenger_p99_ms,
        if(h.predictions > 0, h.missing_features / (h.predictions * s.inputs), null) as missing_share,
        if(h.predictions > 0, h.stale_predictions / h.predictions, null) as stale_share,
        if(v.champion_buckets > 0, v.unpaired_buckets / v.champion_buckets, null) as unpaired_share
    from steps as s
    left join compared as c on s.sequence = c.sequence
    left join health as h on s.sequence = h.sequence
    left join coverage as v on s.sequence = v.sequence
),

-- What is wrong with the question, what is too little to answer it, and what the answer fails. NULL passes no limit.
judged as (
    select
        m.*,
        arrayFilter(reason -> reason != '', [
            {%- for name in limits %}
            if(l.{{ name }} is null, 'rollout_thresholds has no {{ name }}', ''),
            {%- endfor %}
            if(m.is_other_label, 'the models predict other labels or classes: their losses do not compare', ''),
            if(
                m.label not in ({% for label, _ in outcomes %}'{{ label }}'{% if not loop.last %}, {% endif %}{% endfor %}),
                format('bucket_labels has no {}', m.label),
                ''
            )
        ]) as wrong,
        arrayFilter(reason -> reason != '', [
            if(m.n < l.min_rows, format('{} labelled buckets of {}', toString(m.n), toString(l.min_rows)), ''),
            if(m.blocks < l.min_blocks, format('{} blocks of time of {}', toString(m.blocks), toString(l.min_blocks)), ''),
            if(m.hours < l.min_hours, format('{} hours of {}', toString(round(m.hours, 2)), toString(l.min_hours)), '')
        ]) as little,
        arrayFilter(reason -> reason != '', [
            if(m.nonsense > 0, format('{} predictions are no numbers', toString(m.nonsense)), ''),
            if(m.challenger_ic is null and m.champion_ic is not null, 'the challenger has no IC: it always says the same', ''),
            {%- for value, limit, words in [
                ('t_statistic', 'max_t', 't of the difference in log loss'),
                ('log_loss_difference', 'max_log_loss_increase', 'log loss grew by'),
                ('challenger_p99_ms', 'max_p99_ms', 'p99 latency in ms'),
                ('missing_share', 'max_missing_share', 'share of missing inputs'),
                ('stale_share', 'max_stale_share', 'share of stale predictions'),
                ('unpaired_share', 'max_unpaired_share', 'share of buckets not scored'),
            ] %}
            if(
                ifNull(m.{{ value }} <= l.{{ limit }}, false),
                '',
                format('{{ words }}: {}, at most {}', ifNull(toString(round(m.{{ value }}, 4)), 'none'), ifNull(toString(l.{{ limit }}), 'none'))
            ),
            {%- endfor %}
            if(
                m.champion_ic - m.challenger_ic > l.max_ic_decrease,
                format(
                    'IC fell from {} to {}, at most by {}',
                    toString(round(m.champion_ic, 4)), toString(round(m.challenger_ic, 4)), toString(l.max_ic_decrease)
                ),
                ''
            )
        ]) as failed
    from measured as m
    cross join limits as l
)

select
    sequence,
    at,
    champion_name,
    champion_version,
    challenger_name,
    challenger_version,
    share,
    label,
    n,
    blocks,
    first_at,
    last_at,
    hours,
    champion_ic,
    challenger_ic,
    champion_log_loss,
    challenger_log_loss,
    log_loss_difference,
    log_loss_difference_se,
    t_statistic,
    champion_p99_ms,
    challenger_p99_ms,
    missing_share,
    stale_share,
    unpaired_share,
    multiIf(notEmpty(wrong), 'fail', notEmpty(little), 'too_little', notEmpty(failed), 'fail', 'pass') as verdict,
    arrayMap(reason -> assumeNotNull(reason), multiIf(notEmpty(wrong), wrong, notEmpty(little), little, failed)) as reasons
from judged
