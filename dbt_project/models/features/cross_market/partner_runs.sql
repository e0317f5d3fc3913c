{%- set appends = is_incremental() and not is_ranged() %}
{%- set run_s = var('cross_run_s') %}
{%- set lookback_s = var('partner_lookback_s') %}
{{ config(**bucket_grain(order_by='(exchange, market_type, symbol, known_at)', day='known_at')) }}

-- With whom an instrument is compared: of the same base asset, what traded most in the lookback, as known at each run.
with
{% if appends %}
published as (
    select
        exchange,
        market_type,
        symbol,
        max(known_at) as resume_at
    from {{ this }}
    group by exchange, market_type, symbol
),

traders as (
    select distinct
        exchange,
        market_type,
        symbol
    from {{ ref('trade_flow') }}
),

-- an instrument that is new here may bring a past: then its partners' past counts again
unpublished as (
    select count() as instruments
    from {{ ref('closed_feeds') }} as f
    inner join traders as b
        on f.exchange = b.exchange
        and f.market_type = b.market_type
        and f.symbol = b.symbol
    inner join {{ ref('instruments') }} as i
        on f.exchange = i.exchange
        and f.market_type = i.market_type
        and f.symbol = i.symbol
    where (f.exchange, f.market_type, f.symbol) not in (select (exchange, market_type, symbol) from published)
),
{% endif %}

traded as (
    select
        i.base_asset as base_asset,
        b.exchange as exchange,
        b.market_type as market_type,
        b.symbol as symbol,
        -- the first run at or after the bucket's end
        toInt64(intDiv(toUnixTimestamp64Micro(b.bucket_ts_end) + {{ run_s }}000000 - 1, {{ run_s }}000000)) * {{ run_s }} as run,
        -- exact, so that the order of addition does not matter
        sum(toDecimal128(b.notional, 2)) as notional
    from {{ ref('trade_flow') }} as b
    inner join {{ ref('instruments') }} as i
        on b.exchange = i.exchange
        and b.market_type = i.market_type
        and b.symbol = i.symbol
    {%- if is_ranged() %}
    where
        b.bucket_ts_end > {{ range_start() }} - toIntervalSecond({{ lookback_s + run_s }})
        and b.bucket_ts_end < {{ range_end() }}
    {%- elif appends %}
    where
        b.bucket_ts_end > (select min(resume_at) from published) - toIntervalSecond({{ lookback_s }})
        or (select instruments from unpublished) > 0
    {%- endif %}
    group by base_asset, exchange, market_type, symbol, run
),

-- Every run in the hour after a trade of the base asset, for each of its instruments.
runs as (
    select distinct
        base_asset,
        run + {{ run_s }} * arrayJoin(range({{ 3600 // run_s + 1 }})) as run
    from traded
),

markets as (
    select distinct
        base_asset,
        exchange,
        market_type,
        symbol
    from traded
),

every_run as (
    select
        r.base_asset as base_asset,
        m.exchange as exchange,
        m.market_type as market_type,
        m.symbol as symbol,
        r.run as run,
        t.notional as traded_notional
    from runs as r
    inner join markets as m
        on r.base_asset = m.base_asset
    left join traded as t
        on r.base_asset = t.base_asset
        and m.exchange = t.exchange
        and m.market_type = t.market_type
        and m.symbol = t.symbol
        and r.run = t.run
),

liquidity as (
    select
        base_asset,
        exchange,
        market_type,
        symbol,
        run,
        sum(ifNull(traded_notional, toDecimal128(0, 2))) over (
            partition by base_asset, exchange, market_type, symbol
            order by run
            range between {{ lookback_s - 1 }} preceding and current row
        ) as notional
    from every_run
),

-- Most traded first; names decide between equals.
ranked as (
    select
        base_asset,
        run,
        arraySort(
            c -> (-c.4, c.1, c.2, c.3),
            groupArray((toString(exchange), toString(market_type), toString(symbol), notional))
        ) as candidates
    from liquidity
    where notional > 0
    group by base_asset, run
),

chosen as (
    select
        tupleElement(c, 1) as exchange,
        tupleElement(c, 2) as market_type,
        tupleElement(c, 3) as symbol,
        toDateTime64(run, 6, 'UTC') as known_at,
        tupleElement(c, 4) as notional,
        arrayFilter(x -> (x.1, x.2, x.3) != (c.1, c.2, c.3), candidates) as other_candidates,
        arrayFirst(x -> true, other_candidates) as reference,
        -- spot against a perpetual of the same exchange
        arrayFirst(
            x -> x.1 = c.1 and if(c.2 = 'spot', x.2 in ('linear', 'inverse'), c.2 in ('linear', 'inverse') and x.2 = 'spot'),
            other_candidates
        ) as basis_leg
    from ranked
    array join candidates as c
)

select
    c.exchange as exchange,
    c.market_type as market_type,
    c.symbol as symbol,
    c.known_at as timestamp,
    c.known_at as known_at,
    c.known_at as run_at,
    toFloat64(c.notional) as lookback_notional,
    c.reference.1 as reference_exchange,
    c.reference.2 as reference_market_type,
    c.reference.3 as reference_symbol,
    c.basis_leg.1 as basis_exchange,
    c.basis_leg.2 as basis_market_type,
    c.basis_leg.3 as basis_symbol
from chosen as c
inner join {{ ref('closed_feeds') }} as f
    on c.exchange = f.exchange
    and c.market_type = f.market_type
    and c.symbol = f.symbol
{% if appends %}
left join published as p
    on c.exchange = p.exchange
    and c.market_type = p.market_type
    and c.symbol = p.symbol
{% endif %}
where
    c.known_at < f.closed_to
    {%- if is_ranged() %}
    and c.known_at >= {{ range_start() }}
    and c.known_at < {{ range_end() }}
    {%- elif appends %}
    and (p.resume_at is null or c.known_at > p.resume_at)
    {%- endif %}
