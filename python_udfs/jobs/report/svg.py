"""A small vocabulary for hand-made charts: scales, ticks, number formats, SVG elements.

Colours are CSS classes of the page, never values, so that one drawing serves the light and the dark page.
Coordinates are in px of the chart's own view box; every value that comes from data is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Literal

from markupsafe import Markup

MISSING = "–"


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps a value in [low, high] to px in [start, end] (end < start: upwards); `log`: by its logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + min(max(share, 0), 1) * (self.end - self.start)


def padded(values: Iterable[float], share: float = 0.06) -> tuple[float, float]:
    """The range of the values with some air around it; never of zero width."""
    kept = list(values)
    low, high = min(kept), max(kept)
    air = (high - low) * share or abs(high) * 1e-4 or 1
    return low - air, high + air


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten) inside [low, high], about that many."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """The powers of ten in [low, high]."""
    return [10.0**k for k in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]


_TIME_STEPS_S = (
    0.1,
    0.5,
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    14400,
    21600,
    43200,
    86400,
)


def time_ticks(start_us: int, end_us: int, about: int = 10) -> list[int]:
    """Round UTC times in [start, end], µs."""
    raw = (end_us - start_us) / about
    step = int(next((s * 1e6 for s in _TIME_STEPS_S if s * 1e6 >= raw), math.ceil(raw / 86400e6) * 86400e6))
    return list(range(-(-start_us // step) * step, end_us + 1, step))


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: `digits` significant digits, but every digit of an integer below a million."""
    if value is None or math.isnan(value):
        return MISSING
    if value == 0 or math.isinf(value):
        return f"{value:g}".replace("-", "−")
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    size = int(exponent)
    if not -3 <= size < 12:
        return f"{_plain(mantissa)}e{size}".replace("-", "−")
    unit, name = (1e9, "G") if size >= 9 else (1e6, "M") if size >= 6 else (1, "")
    decimals = max(0, digits - 1 - (size % 3 if name else size))
    return _plain(f"{value / unit:,.{decimals}f}").replace("-", "−") + name


def _plain(text: str) -> str:
    """Without the zeros at the end of its decimals."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def tick_label(value: float, step: float) -> str:
    """An axis number with as many decimals as the distance between two ticks needs."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(step) < 1e-5:
        return number(value)
    return f"{value:,.{max(0, -math.floor(math.log10(abs(step)) + 1e-9))}f}".replace("-", "−")


def count(value: float) -> str:
    """A whole number, thousands separated."""
    return f"{value:,.0f}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share as percent; tiny but not zero shows as such."""
    if share is None or math.isnan(share):
        return MISSING
    if 0 < share < 0.5 * 10 ** -(digits + 2):
        return f"<{10**-digits:g} %"
    return f"{share * 100:.{digits}f} %".replace("-", "−")


def seconds(value: float | None) -> str:
    """A duration in s, in the unit that reads best."""
    if value is None or math.isnan(value):
        return MISSING
    if value == 0:
        return "0 s"
    sign, size = ("−" if value < 0 else ""), abs(value)
    if size < 1e-3:
        return f"{sign}{size * 1e6:.0f} µs"
    if size < 1:
        return f"{sign}{size * 1e3:.3g} ms"
    if size < 120:
        return f"{sign}{size:.3g} s"
    for limit, unit, name in ((7200, 60, "min"), (172_800, 3600, "h"), (63_072_000, 86_400, "days")):
        if size < limit:
            return f"{sign}{size / unit:.3g} {name}"
    return f"{sign}{size / 31_557_600:.3g} years"


def clock(us: int, pattern: str = "%H:%M:%S") -> str:
    """A UTC time from µs since the epoch; `%f` in the pattern is milliseconds."""
    at = datetime.fromtimestamp(us // 1_000_000, UTC)
    return at.strftime(pattern.replace("%f", f"{us // 1000 % 1000:03d}"))


MINUTE, MILLISECOND = "%Y-%m-%d %H:%M", "%H:%M:%S.%f"


Anchor = Literal["start", "middle", "end"]


def text(
    x: float, y: float, content: str, css: str = "t", anchor: Anchor = "start", *, turn: bool = False
) -> str:
    """A line of text; `turn` writes it upwards, for the name of a y axis."""
    rotate = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turn else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}"{rotate}>{escape(content)}</text>'
    )


def rect(
    x: float, y: float, width: float, height: float, css: str, *, title: str = "", radius: float = 0
) -> str:
    """A rectangle, with what the pointer shows over it."""
    round_ = f' rx="{radius:g}"' if radius else ""
    size = f'width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"{round_}'
    body = f'<rect x="{x:.1f}" y="{y:.1f}" {size} class="{css}"'
    return f"{body}><title>{escape(title)}</title></rect>" if title else f"{body}/>"


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """A straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def polyline(points: Sequence[tuple[float, float] | None], css: str) -> str:
    """A line through the points, broken where one is None."""
    path, pen_up = [], True
    for point in points:
        if point is None:
            pen_up = True
            continue
        path.append(f"{'M' if pen_up else 'L'}{point[0]:.1f} {point[1]:.1f}")
        pen_up = False
    return f'<path d="{"".join(path)}" class="{css}"/>'


def drawing(width: float, height: float, alt: str, parts: Iterable[str], css: str = "chart") -> Markup:
    """The finished chart. `alt` says in words what it shows, for those who cannot see it."""
    return Markup(
        f'<svg viewBox="0 0 {width:g} {height:g}" class="{css}" role="img" aria-label="{escape(alt)}">'
        + "".join(parts)
        + "</svg>"
    )
