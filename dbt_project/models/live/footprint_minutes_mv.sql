{{ config(materialized='materialized_view', catchup=false) }}
{{ materialization_target_table(ref('footprint_minutes_stored')) }}
-- Adds each inserted block of trades to its minutes; the table catches up by itself, before and after this view was there.
{{ footprint_minute_sums(source('hot', 'trades'), feeds_the_clock('trades')) }}
