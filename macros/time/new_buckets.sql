{#
  Purpose: the rows of a bucket-grain relation that this run has to compute, as a FROM item with a column `is_new`.
    Append: buckets behind the last one published in this model, per instrument. Ranged rebuild: the range's days. Else: all.
  Arguments: relation: a ref() at the grain instrument and bucket. context: how many buckets before each instrument's
    first new one come along with is_new = 0, for windows that look back; filter them out at the end.
  Example: from {{ new_buckets(ref('trade_flow'), context=50) }} as b
#}
{% macro new_buckets(relation, context=0) -%}
{%- set key = 'exchange, market_type, symbol' -%}
{%- if is_ranged() -%}
(
        select *, 1 as is_new
        from {{ relation }}
        where bucket_ts_start >= {{ range_start() }} and bucket_ts_start < {{ range_end() }}
        {%- if context %}
        union all
        select *, 0 as is_new
        from {{ relation }}
        where bucket_ts_start < {{ range_start() }}
        order by bucket_id desc
        limit {{ context }} by {{ key }}
        {%- endif %}
    )
{%- elif is_incremental() -%}
(
        select r.*, 1 as is_new
        from {{ relation }} as r
        left join (select {{ key }}, max(bucket_id) as last_bucket_id from {{ this }} group by {{ key }}) as p
            on r.exchange = p.exchange
            and r.market_type = p.market_type
            and r.symbol = p.symbol
        where p.last_bucket_id is null or r.bucket_id > p.last_bucket_id
        {%- if context %}
        union all
        select r.*, 0 as is_new
        from {{ relation }} as r
        inner join (select {{ key }}, max(bucket_id) as last_bucket_id from {{ this }} group by {{ key }}) as p
            on r.exchange = p.exchange
            and r.market_type = p.market_type
            and r.symbol = p.symbol
        where r.bucket_id <= p.last_bucket_id
        order by r.bucket_id desc
        limit {{ context }} by {{ key }}
        {%- endif %}
    )
{%- else -%}
(select *, 1 as is_new from {{ relation }})
{%- endif -%}
{%- endmacro %}
