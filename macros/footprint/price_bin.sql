{#
  Purpose: the price bin that a price falls into: the bin's lower edge. A bin is as many ticks wide as fit into `footprint_bin_bps` of the
    price, rounded down to 1, 2, 5, 10, 20, 50, …, but at least one: 0.4 to 1 times footprint_bin_bps wherever the tick allows it. That is a
    pure function of price and tick, so bins never move in time. Where the width changes, the price is a multiple of both widths, as
    10,000 / footprint_bin_bps is whole: bins do not overlap. Without a tick (unknown, or 0) the bins are those of a tick of
    1e-8, the store's own: each price that a wider tick allows is then a bin of its own.
  Arguments: price: a Decimal(18, 8). tick: a Decimal(18, 8) or NULL.
  Returns: SQL, Decimal(18, 8).
  Example: {{ price_bin('price', 'i.tick_size') }}
#}
{% macro price_bin(price, tick) -%}
    {%- if 10000 % (var("footprint_bin_bps") | int) -%}
        {{ exceptions.raise_compiler_error('footprint_bin_bps must divide 10,000') }}
    {%- endif -%}
    {%- set widths = [] -%}
    {%- for exponent in range(15) -%}
        {%- for step in (1, 2, 5) -%}{%- do widths.append(step * 10 ** exponent) -%}{%- endfor -%}
    {%- endfor -%}
    {%- set p = "reinterpret(" ~ price ~ ", 'UInt64')" -%}
    {%- set t = "greatest(reinterpret(ifNull(" ~ tick ~ ", toDecimal64(0, 8)), 'UInt64'), 1)" -%}
    {%- set ticks = "roundDown(intDiv(" ~ p ~ ", " ~ t ~ " * " ~ (10000 // var('footprint_bin_bps')) ~ "), [" ~ widths | join(', ') ~ "])" -%}
    reinterpret(toInt64({{ p }} - {{ p }} % toUInt64({{ t }} * {{ ticks }})), 'Decimal(18, 8)')
{%- endmacro %}
