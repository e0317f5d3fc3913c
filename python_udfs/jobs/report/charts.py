"""The charts of the report: rows of `queries` in, one SVG each out; no arithmetic that SQL could do."""

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
LEFT, RIGHT = 68, 1052


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
        out += [
            line(LEFT, y, right, y, "grid"),
            text(LEFT - 8, y + 4, svg.tick_label(mark, step), "t", "end"),
        ]
    return out


def timeline(
    buckets: Rows, prices: Rows, volumes: Rows, *, widths: tuple[int, int], units: tuple[str, str], alt: str
) -> Markup:
    """Price, volume per time bin, flow imbalance and OFI on one time axis; each bucket is a band across them.

    Args:
        widths: of the time bins of `prices` and of `volumes`, µs; bin 0 starts where the first bucket does.
        units: of quantity and of price.
    """
    start, end = buckets[0]["start_us"], max(b["end_us"] for b in buckets)
    x = Scale(start, end, LEFT, RIGHT)
    top, price_bottom, height, gap = 14, 290, 92, 30
    panels = [price_bottom + gap + i * (height + gap) for i in range(3)]
    bottom = panels[-1] + height
    parts: list[str] = []

    # bands first: everything else lies over them and lets the pointer through
    for b in buckets:
        left, width = x(b["start_us"]), x(b["end_us"]) - x(b["start_us"])
        width = max(width - (1 if width > 4 else 0), 0.8)
        css = trigger_class(b["cut_trigger"])
        title = (
            f"bucket {b['bucket_id']}\n"
            f"{svg.clock(b['start_us'], svg.MILLISECOND)} to {svg.clock(b['end_us'], svg.MILLISECOND)}, "
            f"{svg.seconds((b['end_us'] - b['start_us']) / 1e6)}, {b['cut_trigger']} cut\n"
            f"{svg.count(b['trade_count'])} trades, {svg.number(b['volume'])} {units[0]} "
            f"(q_bucket {svg.number(b['q_bucket'])})\nvwap {svg.number(b['vwap'], 7)}\n"
            f"flow imbalance {svg.number(b['flow_imbalance'])}, OFI {svg.number(b['ofi'])}"
        )
        parts += [
            rect(left, top, width, bottom - top, f"band {css}", title=title),
            rect(left, top - 8, width, 6, f"strip {css}"),
        ]

    marks = svg.time_ticks(start, end)
    patterns = ((60_000_000, "%H:%M"), (1_000_000, "%H:%M:%S"), (1, svg.MILLISECOND))
    pattern = next(p for unit, p in patterns if all(m % unit == 0 for m in marks))
    for mark in marks:
        parts += [
            line(x(mark), top, x(mark), bottom, "grid"),
            text(x(mark), bottom + 18, svg.clock(mark, pattern), "t", "middle"),
        ]
    parts.append(
        text(
            (LEFT + RIGHT) / 2,
            bottom + 38,
            f"time of day, UTC ({svg.clock(start, '%Y-%m-%d')})",
            "l",
            "middle",
        )
    )

    if prices:
        low, high = svg.padded([p["low"] for p in prices] + [p["high"] for p in prices])
        y = Scale(low, high, price_bottom, top)
        parts += _y_axis(y, 6)
        widest = max(10e6 / widths[0], 3)  # a silence of 10 s or more is a gap, not a line
        points: list[tuple[float, float] | None] = []
        before, envelope = None, ""
        for p in prices:
            if before is not None and p["bin"] - before > widest:
                points.append(None)
            middle = x(start + (p["bin"] + 0.5) * widths[0])
            points.append((middle, y(p["at_end"])))
            if p["high"] > p["low"]:
                envelope += f"M{middle:.1f} {y(p['low']):.1f}V{y(p['high']):.1f}"
            before = p["bin"]
        parts += [f'<path d="{envelope}" class="envelope"/>', svg.polyline(points, "price")]
    parts.append(text(10, (top + price_bottom) / 2, f"price, {units[1]}", "l", "middle", turn=True))

    most = max((max(v["bought"], v["sold"]) for v in volumes), default=0) or 1
    y = Scale(-most, most, panels[0] + height, panels[0])
    parts += _y_axis(y, 4)
    for v in volumes:
        left, right = (x(start + (v["bin"] + k) * widths[1]) for k in (0, 1))
        parts += [
            rect(left + 0.5, y(v["bought"]), right - left - 1, y(0) - y(v["bought"]), "up"),
            rect(left + 0.5, y(0), right - left - 1, y(-v["sold"]) - y(0), "down"),
        ]
    parts += _panel(
        f"Volume per {svg.seconds(widths[1] / 1e6)}, {units[0]}: takers bought above, sold below",
        panels[0],
        y,
    )

    signed = (
        (
            "flow_imbalance",
            1.0,
            "flow_imbalance: (buy − sell) / (buy + sell) taker volume, −1 to 1, per bucket",
        ),
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
                    rect(
                        left, min(y(0), y(value)), width, abs(y(value) - y(0)), "up" if value > 0 else "down"
                    )
                )
        parts += _panel(title, panel, y)
    return svg.drawing(WIDTH, bottom + 48, alt, parts, "chart timeline")


def _panel(title: str, top: float, y: Scale) -> list[str]:
    """The zero line and the name of a panel under the price."""
    return [line(LEFT, y(0), RIGHT, y(0), "axis"), text(LEFT, top - 9, title, "l")]


def clocks(triggers: Rows, durations: Rows, alt: str) -> Markup:
    """One line per instrument: bucket durations on a shared log axis, and what cut the buckets."""
    row_height, top = 58, 34
    histogram_left, histogram_right, numbers, share_left, share_right = 210, 560, 660, 740, 1052
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
        parts += [
            line(x(mark), top - 8, x(mark), bottom, "grid"),
            text(x(mark), bottom + 18, name, "t", "middle"),
        ]
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
                    x(low) + 0.5,
                    base - high_px,
                    x(high) - x(low) - 1,
                    high_px,
                    "bar",
                    title=f"{svg.seconds(low)} to {svg.seconds(high)}: {svg.count(b['buckets'])} buckets",
                )
            )
        _, p50, p99 = t["duration_quantiles"]
        parts.append(text(numbers, base - 8, f"{svg.seconds(p50)} · {svg.seconds(p99)}", "n", "middle"))
        done = 0.0
        for css, name in (("own", t["modes"] or "own"), ("time", "time"), ("anchor", "anchor")):
            part = t[f"{css}_cuts"] / t["buckets"]
            if part:
                title = (
                    f"{name} cut: {svg.count(t[f'{css}_cuts'])} of {svg.count(t['buckets'])} buckets, "
                    f"{svg.percent(part)}"
                )
                width = share(done + part) - share(done)
                parts.append(
                    rect(
                        share(done),
                        base - 26,
                        width - (1.5 if width > 3 else 0),
                        22,
                        f"solid {css}",
                        title=title,
                        radius=2,
                    )
                )
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
        return svg.drawing(
            width,
            height + 4,
            f"{name} is always NULL",
            [*parts, text(width / 2, 32, "always NULL", "t", "middle")],
            "spark",
        )
    if low == high:
        alt = f"{name} is nearly always {svg.number(low)}"
        return svg.drawing(
            width, height + 4, alt, [*parts, rect(width / 2 - 4, 6, 8, height - 6, "bar")], "spark"
        )
    most = max(row["bins"])
    x = Scale(low, high, 0, width)
    step = (high - low) / FEATURE_BINS
    for i, n in enumerate(row["bins"]):
        if n:
            tall = max(n / most * (height - 6), 0.8)
            title = (
                f"{svg.number(low + i * step)} to {svg.number(low + (i + 1) * step)}: {svg.count(n)} buckets"
            )
            parts.append(
                rect(
                    i * width / FEATURE_BINS + 0.4,
                    height - tall,
                    width / FEATURE_BINS - 0.8,
                    tall,
                    "bar",
                    title=title,
                )
            )
    parts.append(line(x(middle), 0, x(middle), height, "median"))
    if low < 0 < high:
        parts.append(line(x(0), height, x(0), height + 4, "zero"))
    alt = (
        f"Histogram of {name} from {svg.number(low)} (1st percentile) to {svg.number(high)} (99th), "
        f"median {svg.number(middle)}"
    )
    return svg.drawing(width, height + 4, alt, parts, "spark")


def label_balance(
    labels: Rows, instruments: Sequence[Instrument], horizons: Sequence[str], alt: str
) -> Markup:
    """Instruments down, horizons across; in each cell the shares of the classes and the seconds ahead."""
    row_height, top, left = 78, 46, 150
    cell = (WIDTH - left) / len(horizons)
    cells = {(*instrument_of(r), r["horizon"]): r for r in labels}
    parts = [text(0, 14, "instrument", "h")]
    for i, horizon in enumerate(horizons):
        parts.append(text(left + i * cell, 14, horizon_name(horizon), "h"))
    parts.append(
        text(
            left,
            32,
            "down · flat · up in % of the labels that are known; how far ahead the median label looks; "
            "buckets without a label",
            "t",
        )
    )
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
        parts.append(
            rect(x + done * width, y + 8, max(share * width - 1.5, 0), 14, f"solid {css}", title=title)
        )
        done += share
    return [
        *parts,
        text(x, y + 36, " · ".join(f"{share * 100:.0f}" for _, share in shares), "n"),
        text(x, y + 51, f"{svg.seconds(row['seconds_ahead'])} ahead", "t"),
        text(
            x,
            y + 65,
            f"{svg.percent(row['unknown'] / row['buckets'])} NULL" if row["unknown"] else "none NULL",
            "t",
        ),
    ]


def horizon_name(horizon: str) -> str:
    """`3` is in buckets, `30s` on the clock."""
    return (
        f"{horizon[:-1]} s" if horizon.endswith("s") else f"{horizon} bucket{'s' if horizon != '1' else ''}"
    )


def latency(bins: Rows, p50_us: float, p99_us: float, alt: str) -> Markup:
    """Requests by total latency on a log axis, the median and the 99th percentile marked."""
    top, bottom = 26, 190
    low, high = min(b["bin"] for b in bins) - 2, max(b["bin"] for b in bins) + 3
    x = Scale(
        10 ** (low / LATENCY_BINS_PER_DECADE), 10 ** (high / LATENCY_BINS_PER_DECADE), LEFT, RIGHT, log=True
    )
    y = Scale(0, max(b["requests"] for b in bins) * 1.05, bottom, top)
    parts = _y_axis(y, 4)
    steps = (1, 2, 5) if high - low < 4 * LATENCY_BINS_PER_DECADE else (1,)
    for mark in (k * 10.0**decade for decade in range(-1, 12) for k in steps):
        if x.low <= mark <= x.high:
            parts.append(text(x(mark), bottom + 18, svg.seconds(mark / 1e6), "t", "middle"))
    for b in bins:
        from_, to = (10 ** ((b["bin"] + k) / LATENCY_BINS_PER_DECADE) for k in (0, 1))
        title = f"{svg.seconds(from_ / 1e6)} to {svg.seconds(to / 1e6)}: {svg.count(b['requests'])} requests"
        parts.append(
            rect(
                x(from_) + 0.75,
                y(b["requests"]),
                x(to) - x(from_) - 1.5,
                bottom - y(b["requests"]),
                "bar",
                title=title,
            )
        )
    parts.append(line(LEFT, bottom, RIGHT, bottom, "axis"))
    for value, name in ((p50_us, "p50"), (p99_us, "p99")):
        parts += [
            line(x(value), top - 8, x(value), bottom, "median"),
            text(x(value) + 5, top - 2, f"{name} {svg.seconds(value / 1e6)}", "n"),
        ]
    parts += [
        text((LEFT + RIGHT) / 2, bottom + 38, "read + prepare + run, one request (log scale)", "l", "middle"),
        text(10, (top + bottom) / 2, "requests", "l", "middle", turn=True),
    ]
    return svg.drawing(WIDTH, bottom + 46, alt, parts)


def value_bars(
    bars: Sequence[tuple[str, float | None, str]],
    reference: float | None,
    limits: tuple[float, float],
    axes: tuple[str, str],
    alt: str,
) -> Markup:
    """One bar each (name, value, what the pointer shows) above or below zero; a dashed line at `reference`.

    Args:
        limits: of the y axis.
        axes: what the y axis and the x axis say.
    """
    width, top, bottom, left = 520, 14, 176, 58
    y = Scale(*limits, bottom, top)
    marks = svg.ticks(*limits, 5)
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    parts = []
    for mark in marks:
        parts += [
            line(left, y(mark), width, y(mark), "grid"),
            text(left - 7, y(mark) + 4, svg.tick_label(mark, step), "t", "end"),
        ]
    slot = (width - left) / len(bars)
    for i, (name, value, title) in enumerate(bars):
        x = left + i * slot
        if value is None:
            parts.append(text(x + slot / 2, y(0) - 5, "none", "t", "middle"))
        else:
            wide = min(slot * 0.62, 56)
            high, low = y(max(value, 0)), y(min(value, 0))
            css = "up" if value > 0 else "down"
            parts.append(rect(x + (slot - wide) / 2, high, wide, low - high, f"solid {css}", title=title))
        parts.append(text(x + slot / 2, bottom + 17, name, "t", "middle"))
    parts.append(line(left, y(0), width, y(0), "axis"))
    if reference is not None:
        parts.append(line(left, y(reference), width, y(reference), "reference"))
    parts += [
        text((left + width) / 2, bottom + 36, axes[1], "l", "middle"),
        text(10, (top + bottom) / 2, axes[0], "l", "middle", turn=True),
    ]
    return svg.drawing(width, bottom + 44, alt, parts, "chart small")


def reliability(bins: Sequence[tuple[float, float, int]], name: str, alt: str) -> Markup:
    """Predicted against observed: (mean probability, observed share, rows) a bin of the class `name`."""
    width, top, bottom, left = 340, 12, 250, 56
    high = min(1, math.ceil(max(max(p, o) for p, o, _ in bins) * 10 + 0.5) / 10)
    x, y = Scale(0, high, left, width - 12), Scale(0, high, bottom, top)
    marks = svg.ticks(0, high, 5)
    parts = []
    for mark in marks:
        parts += [
            line(left, y(mark), width - 12, y(mark), "grid"),
            text(left - 7, y(mark) + 4, f"{mark:.0%}", "t", "end"),
            text(x(mark), bottom + 17, f"{mark:.0%}", "t", "middle"),
        ]
    parts.append(line(x(0), y(0), x(high), y(high), "reference"))
    points = [(x(p), y(o)) for p, o, _ in bins]
    # two standard errors of a share
    for (px, _), (_, observed, n) in zip(points, bins, strict=True):
        error = 2 * math.sqrt(observed * (1 - observed) / n)
        parts.append(line(px, y(observed - error), px, y(observed + error), "whisker"))
    parts.append(svg.polyline(points, f"curve line-{name}"))
    for (px, py), (predicted, observed, n) in zip(points, bins, strict=True):
        title = f"said {svg.percent(predicted)}, came {svg.percent(observed)}, {svg.count(n)} rows"
        parts.append(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" class="dot {name}"><title>{title}</title></circle>'
        )
    parts += [
        text((left + width) / 2, bottom + 36, f"predicted P({name})", "l", "middle"),
        text(10, (top + bottom) / 2, "observed share", "l", "middle", turn=True),
    ]
    return svg.drawing(width, bottom + 44, alt, parts, "chart small")
