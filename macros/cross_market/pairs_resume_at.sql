{#
  Purpose: from when on minutes of venues have to be read so that every pair of markets that has something new gets it, in an append: the
    oldest of the moments up to which such pairs are published. A pair that is not published at all starts where both have minutes.
  Arguments: published: a CTE with the keys of a pair (exchange … other_symbol) and resume_at. coverage: `venue_coverage`.
  Returns: a scalar subquery, DateTime64(6); the year 2200 where nothing is new.
  Example: where m.known_at > {{ pairs_resume_at('published', ref('venue_coverage')) }} - toIntervalSecond(600)
#}
{% macro pairs_resume_at(published, coverage) -%}
(
            select coalesce(minOrNull(waits_from), toDateTime64('2200-01-01 00:00:00', 6, 'UTC'))
            from (
                select
                    greatest(a.first_minute, b.first_minute) as first_both,
                    least(a.last_minute, b.last_minute) as last_both,
                    coalesce(p.resume_at, first_both - toIntervalMinute(1)) as waits_from
                from {{ coverage }} as a
                inner join {{ coverage }} as b
                    on a.base_asset = b.base_asset
                left join {{ published }} as p
                    on a.exchange = p.exchange
                    and a.market_type = p.market_type
                    and a.symbol = p.symbol
                    and b.exchange = p.other_exchange
                    and b.market_type = p.other_market_type
                    and b.symbol = p.other_symbol
                where
                    (a.exchange, a.market_type, a.symbol) < (b.exchange, b.market_type, b.symbol)
                    and last_both > waits_from
            )
        )
{%- endmacro %}
