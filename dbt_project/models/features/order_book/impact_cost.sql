{{ config(**bucket_grain()) }}
{%- set actions = {'buy': 'ask', 'sell': 'bid'} %}

-- What it costs to take from the book at the bucket's end, and how that grows with size.
with closing as (
    select
        b.exchange as exchange,
        b.market_type as market_type,
        b.symbol as symbol,
        b.bucket_id as bucket_id,
        b.bucket_ts_start as bucket_ts_start,
        b.bucket_ts_end as bucket_ts_end,
        b.mid as mid,
        b.bid_prices as bid_prices,
        b.bid_quantities as bid_quantities,
        b.ask_prices as ask_prices,
        b.ask_quantities as ask_quantities,
        toFloat64(ifNull(i.contract_value, 1)) as contract_value
    from {{ new_buckets(ref('closing_book')) }} as b
    left join {{ ref('instruments') }} as i
        on b.exchange = i.exchange
        and b.market_type = i.market_type
        and b.symbol = i.symbol
),

books as (
    select
        -- a contract of an inverse instrument is worth the same at any price
        {%- for action, side in actions.items() %}
        {{ side }}_prices as {{ action }}_prices,
        arrayMap(
            (price, quantity) -> contract_value * quantity * if(market_type = 'inverse', 1, price),
            {{ side }}_prices,
            {{ side }}_quantities
        ) as {{ action }}_notionals,
        arrayCumSum({{ action }}_notionals) as {{ action }}_sizes,
        {%- endfor %}
        *
    from closing
),

-- cost against size, at every level: taking all levels up to it
curves as (
    select
        {%- for action in actions %}
        arrayMap(
            (size, coins) -> abs(size / coins - assumeNotNull(mid)) / assumeNotNull(mid) * 10000,
            {{ action }}_sizes,
            arrayCumSum((notional, price) -> notional / price, {{ action }}_notionals, {{ action }}_prices)
        ) as {{ action }}_costs,
        arrayMap(size -> size / 1e6, {{ action }}_sizes) as {{ action }}_linear_sizes,
        arrayMap(size -> sqrt(size / 1e6), {{ action }}_sizes) as {{ action }}_sqrt_sizes,
        {%- endfor %}
        *
    from books
),

centred as (
    select
        {%- for action in actions %}
        arrayAvg({{ action }}_costs) as {{ action }}_mean_cost,
        arrayMap(cost -> cost - {{ action }}_mean_cost, {{ action }}_costs) as {{ action }}_y,
        arraySum(y -> y * y, {{ action }}_y) as {{ action }}_yy,
        {%- for form in ['linear', 'sqrt'] %}
        arrayAvg({{ action }}_{{ form }}_sizes) as {{ action }}_{{ form }}_mean,
        arrayMap(size -> size - {{ action }}_{{ form }}_mean, {{ action }}_{{ form }}_sizes) as {{ action }}_{{ form }}_x,
        arraySum(x -> x * x, {{ action }}_{{ form }}_x) as {{ action }}_{{ form }}_xx,
        arraySum((x, y) -> x * y, {{ action }}_{{ form }}_x, {{ action }}_y) as {{ action }}_{{ form }}_xy,
        {%- endfor %}
        {%- endfor %}
        *
    from curves
),

costs as (
    select
        {%- for action, sign in {'buy': 1, 'sell': -1}.items() %}
        {%- for name, size in {'10k': 1e4, '100k': 1e5, '1m': 1e6}.items() %}
        -- mean price paid: quote spent over coins got, from each level what is still wanted
        if(
            {{ action }}_sizes[-1] >= {{ size }} * (1 - 1e-12),
            {{ sign }} * ({{ size }} / arraySum(
                (notional, size, price) -> greatest(least(notional, {{ size }} - (size - notional)), 0) / price,
                {{ action }}_notionals,
                {{ action }}_sizes,
                {{ action }}_prices
            ) - mid) / mid * 10000,
            null
        ) as {{ action }}_cost_{{ name }}_bps,
        {%- endfor %}
        {%- for form in ['linear', 'sqrt'] %}
        if(
            length({{ action }}_costs) >= 5, {{ action }}_{{ form }}_xy / {{ action }}_{{ form }}_xx, null
        ) as {{ action }}_impact_{{ form }},
        if(
            length({{ action }}_costs) >= 5 and {{ action }}_yy > 0,
            pow({{ action }}_{{ form }}_xy, 2) / {{ action }}_{{ form }}_xx / {{ action }}_yy,
            null
        ) as {{ action }}_impact_{{ form }}_r2,
        {%- endfor %}
        {%- endfor %}
        *
    from centred
)

select
    exchange,
    market_type,
    symbol,
    bucket_id,
    bucket_ts_start,
    bucket_ts_end,
    buy_cost_10k_bps,
    buy_cost_100k_bps,
    buy_cost_1m_bps,
    sell_cost_10k_bps,
    sell_cost_100k_bps,
    sell_cost_1m_bps,
    buy_impact_linear,
    buy_impact_linear_r2,
    buy_impact_sqrt,
    buy_impact_sqrt_r2,
    sell_impact_linear,
    sell_impact_linear_r2,
    sell_impact_sqrt,
    sell_impact_sqrt_r2
from costs
