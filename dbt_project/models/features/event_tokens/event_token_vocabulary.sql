{{ config(materialized='table', order_by='token') }}

-- Every token and what it says: the seed's classes, multiplied out.
with
types as (
    select
        class,
        label,
        weight
    from {{ ref('event_vocabulary') }}
    where field = 'type'
),

sizes as (
    select
        class,
        label,
        weight
    from {{ ref('event_vocabulary') }}
    where field = 'size'
),

distances as (
    select
        class,
        label,
        weight
    from {{ ref('event_vocabulary') }}
    where field = 'distance'
),

intervals as (
    select
        class,
        label,
        weight
    from {{ ref('event_vocabulary') }}
    where field = 'interval'
)

select
    toUInt16(t.class * t.weight + s.class * s.weight + d.class * d.weight + i.class * i.weight) as token,
    t.label as event_type,
    -- of a trade the taker's, else the side of the book
    multiIf(
        t.label = 'trade_buy', 'buy',
        t.label = 'trade_sell', 'sell',
        startsWith(t.label, 'bid'), 'bid',
        startsWith(t.label, 'ask'), 'ask',
        'both'
    ) as event_side,
    t.class as type_class,
    s.class as size_class,
    s.label as size_label,
    d.class as distance_class,
    d.label as distance_label,
    i.class as interval_class,
    i.label as interval_label
from types as t
cross join sizes as s
cross join distances as d
cross join intervals as i
