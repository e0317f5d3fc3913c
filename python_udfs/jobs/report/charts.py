"""The charts of the report: rows of `queries` in, one SVG each out. Drawn with `svg`; no arithmetic that SQL could do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from python_udfs.jobs.report import svg
from python_udfs.jobs.report.queries import (
    DURATION_BINS_PER_DECADE,
    FEATURE_BINS,
    LATENCY_BINS_PER_DECADE,
    SHORTEST_S,
    Instrument,
)
from python_udfs.jobs.report.svg import Scale, line, rect, text

Row = dict[str, Any]
Rows = Sequence[Row]

WIDTH = 1080
LEFT, RIGHT = 68, 1066
TRIGGERS = {"own": "volume, count, event or hybrid cut", "time": "time cut", "anchor": "anchor cut"}


def instrument_of(row: Row) -> Instrument:
    """The instrument of a row that has its three columns."""
    return row["exchange"], row["market_type"], row["symbol"]


def name_of(instrument: Instrument) -> str:
    """The instrument as people and `--instrument` write it."""
    return "/".join(instrument)


def trigger_class(cut_trigger: str) -> str:
    """The colour of a cut: the mode's own cut, or one of the two that stop a bucket early."""
    return cut_trigger if cut_trigger in ("time", "anchor") else "own"


def _y_axis(scale: Scale, about: int, *, right: float = RIGHT) -> list[str]:
    """Grid lines with numbers left of the plot."""
    marks = svg.ticks(scale.low, scale.high, about)
    step = marks[1] - marks[0] if len(marks) > 1 else 1
    out = []
    for mark in marks:
        y = scale(mark)
        out += [line(LEFT, y, right, y, "grid"), text(LEFT - 8, y + 4, svg.tick_label(mark, step), "t", "end")]
    return out


def timeline(buckets: Rows, prices: Rows, volumes: Rows, *, bins: tuple[int, int], units: tuple[str, str], alt: str) -> Markup:
    """Price, volume per time bin, flow imbalance and OFI on one time axis, every bucket a band across all four.

    Args:
        bins: how many time bins `prices` and `volumes` divide the span of the buckets into.
        units: of quantity and of price.
    """
    start, end = buckets[0]["start_us"], max(b["end_us"] for b in buckets)
    x = Scale(start, end, LEFT, RIGHT)
    top, price_bottom, height, gap = 14, 290, 92, 30
    panels = [price_bottom + gap + i * (height + gap) for i in range(3)]
    bottom = panels[-1] + height
    parts: list[str] = []

    def at(bin_: float, of: int) -> float:
        return x(start + bin_ * (end - start) / of)

    # bands first: everything else lies over them and lets the pointer through
    for b in buckets:
        left, width = x(b["start_us"]), x(b["end_us"]) - x(b["start_us"])
        width = max(width - (1 if width > 4 else 0), 0.8)
        css = trigger_class(b["cut_trigger"])
        title = (
            f"bucket {b['bucket_id']}\n{svg.clock(b['start_us'], fraction=True)} to {svg.clock(b['end_us'], fraction=True)}, "
            f"{svg.seconds((b['end_us'] - b['start_us']) / 1e6)}, {b['cut_trigger']} cut\n{svg.count(b['trade_count'])} trades, "
            f"{svg.number(b['volume'])} {units[0]} (q_bucket {svg.number(b['q_bucket'])})\nvwap {svg.number(b['vwap'], 7)}\n"
            f"flow imbalance {svg.number(b['flow_imbalance'])}, OFI {svg.number(b['ofi'])}"
        )
        parts += [
            rect(left, top, width, bottom - top, f"band {css}", title),
            rect(left, top - 8, width, 6, f"strip {css}"),
        ]

    for mark in svg.time_ticks(start, end):
        parts += [
            line(x(mark), top, x(mark), bottom, "grid"),
            text(x(mark), bottom + 18, svg.clock(mark), "t", "middle"),
        ]
    parts.append(text((LEFT + RIGHT) / 2, bottom + 38, f"time of day, UTC ({svg.clock(start, day=True)[:10]})", "l", "middle"))

    if prices:
        low, high = svg.padded([p["low"] for p in prices] + [p["high"] for p in prices])
        y = Scale(low, high, price_bottom, top)
        parts += _y_axis(y, 6)
        widest = max(10e6 / ((end - start) / bins[0]), 3)  # a silence of 10 s or more is a gap, not a line
        points: list[tuple[float, float] | None] = []
        before = None
        for p in prices:
            if before is not None and p["bin"] - before > widest:
                points.append(None)
            points.append((at(p["bin"] + 0.5, bins[0]), y(p["at_end"])))
            before = p["bin"]
        envelope = "".join(
            f"M{at(p['bin'] + 0.5, bins[0]):.1f} {y(p['low']):.1f}V{y(p['high']):.1f}" for p in prices if p["high"] > p["low"]
        )
        parts += [f'<path d="{envelope}" class="envelope"/>', svg.polyline(points, "price")]
    parts.append(text(16, (top + price_bottom) / 2, f"price, {units[1]}", "l", "middle", turn=True))

    most = max((max(v["bought"], v["sold"]) for v in volumes), default=0) or 1
    y = Scale(-most, most, panels[0] + height, panels[0])
    parts += _y_axis(y, 4)
    each = (end - start) / bins[1] / 1e6
    for v in volumes:
        left, right = at(v["bin"], bins[1]), at(v["bin"] + 1, bins[1])
        parts += [
            rect(left + 0.5, y(v["bought"]), right - left - 1, y(0) - y(v["bought"]), "up"),
            rect(left + 0.5, y(0), right - left - 1, y(-v["sold"]) - y(0), "down"),
        ]
    parts += _panel(f"Volume per {svg.seconds(each)}, {units[0]}: takers bought above, sold below", panels[0], y)

    signed = (
        ("flow_imbalance", 1.0, "flow_imbalance: (buy − sell) / (buy + sell) taker volume, −1 to 1, per bucket"),
        (
            "ofi",
            max((abs(b["ofi"]) for b in buckets if b["ofi"] is not None), default=0) or 1,
            f"ofi: order-flow imbalance of the best level, {units[0]}, per bucket",
        ),
    )
    for (name, limit, title), panel in zip(signed, panels[1:], strict=True):
        y = Scale(-limit, limit, panel + height, panel)
        parts += _y_axis(y, 4)
        for b in buckets:
            value = b[name]
            if value is not None and not math.isnan(value):
                left, right = x(b["start_us"]), x(b["end_us"])
                width = max(right - left - (1 if right - left > 4 else 0), 0.8)
                parts.append(
                    rect(left, min(y(0), y(value)), width, abs(y(value) - y(0)), "up" if value > 0 else "down")
                )
        parts += _panel(title, panel, y)
    return svg.drawing(WIDTH, bottom + 48, alt, parts, "chart timeline")


def _panel(title: str, top: float, y: Scale) -> list[str]:
    """The zero line and the name of a panel under the price."""
    return [line(LEFT, y(0), RIGHT, y(0), "axis"), text(LEFT, top - 9, title, "l")]


def clocks(triggers: Rows, durations: Rows, alt: str) -> Markup:
    """One line per instrument: the histogram of bucket durations on a shared log axis, its quantiles, and what cut the buckets."""
    row_height, top = 58, 34
    histogram_left, histogram_right, numbers, share_left, share_right = 210, 560, 660, 740, RIGHT
    by_instrument: dict[Instrument, list[Row]] = {}
    for d in durations:
        by_instrument.setdefault(instrument_of(d), []).append(d)
    shown = [d["bin"] for t in triggers for d in by_instrument[instrument_of(t)]]
    decades = (
        math.floor(min(shown) / DURATION_BINS_PER_DECADE),
        math.floor(max(shown) / DURATION_BINS_PER_DECADE) + 1,
    )
    x = Scale(10.0 ** decades[0], 10.0 ** decades[1], histogram_left, histogram_right, log=True)
    share = Scale(0, 1, share_left, share_right)
    bottom = top + row_height * len(triggers)
    parts = [
        text(0, 14, "instrument", "h"),
        text(histogram_left, 14, "bucket duration (log scale)", "h"),
        text(numbers, 14, "p50 · p99", "h", "middle"),
        text(share_left, 14, "share of buckets by what cut them", "h"),
    ]
    for mark in svg.log_ticks(x.low, x.high):
        name = svg.seconds(mark) if mark > SHORTEST_S else f"≤{svg.seconds(mark)}"
        parts += [line(x(mark), top - 8, x(mark), bottom, "grid"), text(x(mark), bottom + 18, name, "t", "middle")]
    for percent in (0, 0.25, 0.5, 0.75, 1):
        parts.append(text(share(percent), bottom + 18, f"{percent:.0%}", "t", "middle"))
    for i, t in enumerate(triggers):
        y0 = top + i * row_height
        base = y0 + row_height - 12
        bins = by_instrument[instrument_of(t)]
        most = max(b["buckets"] for b in bins)
        parts += [
            text(0, base - 16, t["symbol"], "strong"),
            text(0, base, f"{t['exchange']} {t['market_type']} · {svg.count(t['buckets'])}", "t"),
            line(histogram_left, base, histogram_right, base, "axis"),
        ]
        for b in bins:
            low, high = (10 ** ((b["bin"] + k) / DURATION_BINS_PER_DECADE) for k in (0, 1))
            high_px = max(b["buckets"] / most * (row_height - 18), 1)
            parts.append(
                rect(
                    x(low) + 0.5, base - high_px, x(high) - x(low) - 1, high_px, "bar",
                    f"{svg.seconds(low)} to {svg.seconds(high)}: {svg.count(b['buckets'])} buckets",
                )
            )  # fmt: skip
        _, p50, p99 = t["duration_quantiles"]
        parts.append(text(numbers, base - 8, f"{svg.seconds(p50)} · {svg.seconds(p99)}", "n", "middle"))
        done = 0.0
        for css, name in (("own", t["modes"] or "own"), ("time", "time"), ("anchor", "anchor")):
            part = t[f"{css}_cuts"] / t["buckets"]
            if part:
                title = f"{name} cut: {svg.count(t[f'{css}_cuts'])} of {svg.count(t['buckets'])} buckets, {svg.percent(part)}"
                width = share(done + part) - share(done)
                parts.append(rect(share(done), base - 26, width - (1.5 if width > 3 else 0), 22, f"solid {css}", title, radius=2))
                if width > 90:
                    parts.append(text(share(done) + 8, base - 11, f"{name} {svg.percent(part)}", "inside"))
                done += part
    return svg.drawing(WIDTH, bottom + 28, alt, parts)


def sparkline_histogram(row: Row) -> Markup:
    """A feature's histogram between its 1st and 99th percentile, the median marked. 220 x 56 px."""
    width, height = 220, 52
    low, middle, high = row["percentiles"]
    name, known = row["feature"], row["values_seen"]
    parts = [line(0, height, width, height, "axis")]
    if not known:
        return svg.drawing(width, height + 4, f"{name} is always NULL", [*parts, text(width / 2, 32, "always NULL", "t", "middle")], "spark")
    if low == high:
        alt = f"{name} is nearly always {svg.number(low)}"
        return svg.drawing(width, height + 4, alt, [*parts, rect(width / 2 - 4, 6, 8, height - 6, "bar")], "spark")
    most = max(row["bins"])
    x = Scale(low, high, 0, width)
    step = (high - low) / FEATURE_BINS
    for i, n in enumerate(row["bins"]):
        if n:
            tall = max(n / most * (height - 6), 0.8)
            title = f"{svg.number(low + i * step)} to {svg.number(low + (i + 1) * step)}: {svg.count(n)} buckets"
            parts.append(rect(i * width / FEATURE_BINS + 0.4, height - tall, width / FEATURE_BINS - 0.8, tall, "bar", title))
    parts.append(line(x(middle), 0, x(middle), height, "median"))
    if low < 0 < high:
        parts.append(line(x(0), height, x(0), height + 4, "zero"))
    alt = f"Histogram of {name} from {svg.number(low)} (1st percentile) to {svg.number(high)} (99th), median {svg.number(middle)}"
    return svg.drawing(width, height + 4, alt, parts, "spark")


def label_balance(labels: Rows, instruments: Sequence[Instrument], horizons: Sequence[str], alt: str) -> Markup:
    """Instruments down, horizons across; in each cell the shares of down, flat and up, and the seconds looked ahead."""
    row_height, top, left = 62, 46, 168
    cell = (WIDTH - left) / len(horizons)
    cells = {(*instrument_of(r), r["horizon"]): r for r in labels}
    parts = [text(0, 14, "instrument", "h")]
    for i, horizon in enumerate(horizons):
        parts.append(text(left + i * cell, 14, horizon_name(horizon), "h"))
    parts.append(text(left, 32, "down · flat · up, % of buckets with a label; then the median (and 90th percentile) of seconds ahead", "t"))
    for j, instrument in enumerate(instruments):
        y = top + j * row_height
        parts += [
            line(0, y - 2, WIDTH, y - 2, "grid"),
            text(0, y + 22, instrument[2], "strong"),
            text(0, y + 38, f"{instrument[0]} {instrument[1]}", "t"),
        ]
        for i, horizon in enumerate(horizons):
            parts += _label_cell(cells[(*instrument, horizon)], left + i * cell, y, cell - 14)
    return svg.drawing(WIDTH, top + row_height * len(instruments) + 4, alt, parts)


def _label_cell(row: Row, x: float, y: float, width: float) -> list[str]:
    known = row["down"] + row["flat"] + row["up"]
    if not known:
        return [text(x, y + 22, "always NULL", "t")]
    shares = [(css, row[css] / known) for css in ("down", "flat", "up")]
    parts, done = [], 0.0
    for css, share in shares:
        title = f"{css}: {svg.count(row[css])} of {svg.count(known)} labels, {svg.percent(share)}"
        parts.append(rect(x + done * width, y + 8, max(share * width - 1.5, 0), 14, f"solid {css}", title))
        done += share
    half, most = row["seconds_quantiles"]
    ahead = svg.seconds(half) if half == most else f"{svg.seconds(half)} ({svg.seconds(most)})"
    return [
        *parts,
        text(x, y + 36, " · ".join(f"{share * 100:.0f}" for _, share in shares), "n"),
        text(x, y + 50, ahead + (f" · {svg.percent(row['unknown'] / row['buckets'], 0)} NULL" if row["unknown"] else ""), "t"),
    ]


def horizon_name(horizon: str) -> str:
    """`3` is in buckets, `30s` on the clock."""
    return f"{horizon[:-1]} s" if horizon.endswith("s") else f"{horizon} bucket{'s' if horizon != '1' else ''}"


def latency(bins: Rows, p50_us: float, p99_us: float, alt: str) -> Markup:
    """Requests by total latency on a log axis, the median and the 99th percentile marked."""
    top, bottom = 26, 190
    low = math.floor(min(b["bin"] for b in bins) / LATENCY_BINS_PER_DECADE)
    high = math.floor(max(b["bin"] for b in bins) / LATENCY_BINS_PER_DECADE) + 1
    x = Scale(10.0**low, 10.0**high, LEFT, RIGHT, log=True)
    y = Scale(0, max(b["requests"] for b in bins) * 1.05, bottom, top)
    parts = _y_axis(y, 4)
    for decade in range(low, high + 1):
        for k in (1, 2, 5):
            mark = k * 10.0**decade
            if mark <= x.high:
                parts.append(text(x(mark), bottom + 18, svg.seconds(mark / 1e6), "t", "middle"))
    for b in bins:
        from_, to = (10 ** ((b["bin"] + k) / LATENCY_BINS_PER_DECADE) for k in (0, 1))
        title = f"{svg.seconds(from_ / 1e6)} to {svg.seconds(to / 1e6)}: {svg.count(b['requests'])} requests"
        parts.append(rect(x(from_) + 0.75, y(b["requests"]), x(to) - x(from_) - 1.5, bottom - y(b["requests"]), "bar", title))
    parts.append(line(LEFT, bottom, RIGHT, bottom, "axis"))
    for value, name in ((p50_us, "p50"), (p99_us, "p99")):
        parts += [line(x(value), top - 8, x(value), bottom, "median"), text(x(value) + 5, top - 2, f"{name} {svg.seconds(value / 1e6)}", "n")]
    parts += [
        text((LEFT + RIGHT) / 2, bottom + 38, "read + prepare + run, one request (log scale)", "l", "middle"),
        text(16, (top + bottom) / 2, "requests", "l", "middle", turn=True),
    ]
    return svg.drawing(WIDTH, bottom + 46, alt, parts)
