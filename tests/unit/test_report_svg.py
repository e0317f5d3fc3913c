"""The numbers, ticks and shapes of the report page, without a database."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from python_udfs.errors import UserError
from python_udfs.jobs.report import charts, parse_instrument, svg
from python_udfs.jobs.report.html import empty, table

HOSTILE = """<b>'"&</b>"""


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "inf"),
        (0, "0"),
        (0.1, "0.1"),
        (0.09999, "0.1"),
        (-0.00307, "−0.00307"),
        (-1.01e-5, "−1.01e−5"),
        (123.456, "123"),
        (61_055.4, "61,055"),
        (999_999.6, "1M"),
        (1_540_000, "1.54M"),
        (2.5e9, "2.5G"),
        (3e13, "3e13"),
    ],
)
def test_numbers_read_well(value: float | None, written: str) -> None:
    assert svg.number(value) == written


@given(st.floats(-1e300, 1e300))
def test_a_number_is_right_to_its_digits(value: float) -> None:
    text = svg.number(value).replace("−", "-").replace(",", "")
    scale = {"M": 1e6, "G": 1e9}.get(text[-1], 1.0)
    assert float(text.rstrip("MG")) * scale == pytest.approx(value, rel=0.0051)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "–"),
        (0, "0 s"),
        (2.5e-4, "250 µs"),
        (0.0123, "12.3 ms"),
        (57.84, "57.8 s"),
        (-3, "−3 s"),
        (600, "10 min"),
        (7200, "2 h"),
        (86_400 * 5, "5 days"),
        (31_557_600 * 3, "3 years"),
    ],
)
def test_durations_take_the_unit_that_reads_best(value: float | None, written: str) -> None:
    assert svg.seconds(value) == written


def test_a_tiny_share_is_not_shown_as_nothing() -> None:
    assert svg.percent(1e-6) == "<0.1 %"
    assert svg.percent(0) == "0.0 %"
    assert svg.percent(None) == "–"


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_inside_and_few(low: float, width: float) -> None:
    marks = svg.ticks(low, low + width)
    slack = 1e-6 * max(abs(low), width)
    assert len(marks) <= 7
    assert all(low - slack <= mark <= low + width + slack for mark in marks)
    assert marks == sorted(marks)


def test_ticks_of_a_range_of_no_width() -> None:
    assert svg.ticks(5, 5) == [5]
    assert svg.Scale(5, 5, 0, 10)(5) == 5
    low, high = svg.padded([100.0, 100.0])
    assert low < 100 < high


def test_time_ticks_are_round_and_inside() -> None:
    start = 1_767_614_407_000_000  # 12:00:07
    marks = svg.time_ticks(start, start + 45 * 60_000_000)
    assert [svg.clock(m) for m in marks[:2]] == ["12:05:00", "12:10:00"]
    assert all(start <= m <= start + 45 * 60_000_000 for m in marks)
    assert svg.time_ticks(start, start) in ([], [start])


def test_times_keep_their_milliseconds_before_the_epoch_of_floats() -> None:
    assert svg.clock(1_767_614_407_999_999, svg.MILLISECOND) == "12:00:07.999"


def test_a_log_scale_puts_zero_at_its_start() -> None:
    x = svg.Scale(0.01, 100, 0, 400, log=True)
    assert (x(0), x(1), x(100), x(1e9)) == (0, 200, 400, 400)
    assert svg.log_ticks(0.01, 100) == [0.01, 0.1, 1, 10, 100]


def test_what_comes_from_data_is_escaped_everywhere() -> None:
    parts = [svg.text(0, 0, HOSTILE), svg.rect(0, 0, 1, 1, "bar", title=HOSTILE)]
    drawn = svg.drawing(10, 10, HOSTILE, parts)
    root = ElementTree.fromstring(drawn)
    assert root.attrib["aria-label"] == HOSTILE
    assert [t.text for t in root.iter() if t.text] == [HOSTILE, HOSTILE]
    assert "<b>" not in drawn
    assert "<b>" not in table(HOSTILE, "l", [[HOSTILE]])
    assert "<b>" not in empty(f"run `{HOSTILE}` or {HOSTILE}")


def test_a_line_breaks_at_a_gap() -> None:
    assert 'd="M0.0 0.0L1.0 1.0M3.0 3.0"' in svg.polyline([(0, 0), (1, 1), None, (3, 3)], "price")


def test_a_table_aligns_numbers_and_keeps_marked_cells() -> None:
    assert table("a | b", "lr", [["x", "1"], ["y", Markup("<td>!</td>")]]) == (
        '<table><thead><tr><th>a</th><th class="r">b</th></tr></thead>'
        '<tbody><tr><td>x</td><td class="r">1</td></tr><tr><td>y</td><td>!</td></tr></tbody></table>'
    )


def test_a_bad_instrument_says_how_to_write_one() -> None:
    assert parse_instrument("deribit/option/BTC/27JUN26") == ("deribit", "option", "BTC/27JUN26")
    for wrong in ("BTCUSDT", "binance/BTCUSDT", "binance//BTCUSDT"):
        with pytest.raises(UserError, match="exchange/market_type/symbol"):
            parse_instrument(wrong)


def test_a_feature_without_values_or_variety_has_a_drawing() -> None:
    row = {"feature": HOSTILE, "percentiles": [math.nan] * 3, "values_seen": 0, "bins": [0] * 36}
    assert "always NULL" in charts.sparkline_histogram(row)
    row |= {"percentiles": [2.0] * 3, "values_seen": 1}
    ElementTree.fromstring(charts.sparkline_histogram(row))
