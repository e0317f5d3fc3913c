{#
  Purpose: can a book state be measured level by level? Both sides have levels, and its mid lies between the best two: not crossed,
    and the levels agree with the best prices. The closing book and the dynamics must mean the same.
  Arguments: levels: alias with bid_prices and ask_prices. mid: the state's mid (NULL: one-sided).
  Example: {{ has_usable_levels('l', 'u.mid') }} as is_usable
#}
{% macro has_usable_levels(levels, mid) -%}
{{ mid }} is not null and notEmpty({{ levels }}.bid_prices) and notEmpty({{ levels }}.ask_prices) and {{ levels }}.bid_prices[1] < {{ mid }} and {{ mid }} < {{ levels }}.ask_prices[1]
{%- endmacro %}
