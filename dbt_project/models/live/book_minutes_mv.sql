{{ config(materialized='materialized_view', catchup=false) }}
{{ materialization_target_table(ref('book_minutes_stored')) }}
-- Adds each inserted block of book states to its minutes; the table catches up by itself, before and after this view was there.
{{ book_minute_sums(source('hot', 'orderbooks'), feeds_the_clock('orderbooks')) }}
