{{ config(materialized='view') }}

-- The tokens as people read them.
select
    e.exchange as exchange,
    e.market_type as market_type,
    e.symbol as symbol,
    e.known_at as known_at,
    e.is_book as is_book,
    e.timestamp as timestamp,
    e.event_seq as event_seq,
    e.event_text_id as event_text_id,
    e.is_ask as is_ask,
    e.token as token,
    v.event_type as event_type,
    v.event_side as event_side,
    v.type_class as type_class,
    v.size_class as size_class,
    v.size_label as size_label,
    v.distance_class as distance_class,
    v.distance_label as distance_label,
    v.interval_class as interval_class,
    v.interval_label as interval_label
from {{ ref('event_tokens') }} as e
inner join {{ ref('event_token_vocabulary') }} as v on e.token = v.token
