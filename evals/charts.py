"""Three kinds of chart as inline SVG: lines over steps or cost, dots with their intervals, and heat maps.

Written by hand instead of by a plotting library, because the report is one file that follows the reader's light or
dark setting: strokes and letters take their colours from CSS classes (`s0`, `s1`, ... for series, `axis`, `grid`), so
one drawing serves both, and a chart is a few kilobytes. Charts are about as wide as a phone's column, so that they
are drawn nearly one to one everywhere and their letters stay readable.

Every chart carries a title and a description for those who do not see it, and each point a `<title>` that a pointer
shows. Text is escaped here; nothing given by a user reaches the markup raw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 400, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 40


@dataclass(frozen=True)
class Line:
    """One series of a line chart."""

    name: str
    """Shown in the legend and in the points' titles."""
    x: Sequence[float]
    """Horizontal values."""
    y: Sequence[float | None]
    """Vertical values; points that are None or not finite are left out."""
    style: int = 0
    """Number of the CSS colour class, `s0` to `s5`."""
    dashed: bool = False
    """Draw it dashed."""
    dots: bool = True
    """Mark each point."""


@dataclass(frozen=True)
class Dot:
    """One row of a dot-and-whisker chart."""

    name: str
    """Row label."""
    value: float
    """The dot."""
    low: float
    """Left end of the whisker."""
    high: float
    """Right end of the whisker."""
    style: int = 0
    """Number of the CSS colour class."""
    target: float | None = None
    """A mark to compare with."""
    strong: bool = False
    """Draw it larger, the label bold."""
    note: str = field(default="")
    """More words for the pointer's title."""


def short(value: float) -> str:
    """A number for people: three digits or so, thousands as k, M, G, T, P."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "-"
    size = abs(value)
    for limit, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            unit = 1e3 if letter == "k" else limit
            return f"{value / unit:.3g}{letter}"
    if size >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}"


def ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """About `count` round numbers from low to high."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) between two positive ones, at most about six."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**p for p in powers for f in factors if low * 0.999 <= f * 10.0**p <= high * 1.001]
        if len(found) <= 6:
            return found
    return found[:: math.ceil(len(found) / 6)]


def _points(line: Line, *, log_x: bool, log_y: bool) -> list[tuple[float, float]]:
    pairs = [
        (float(x), float(y))
        for x, y in zip(line.x, line.y, strict=True)
        if y is not None and x is not None and math.isfinite(x) and math.isfinite(y)
    ]
    return [(x, y) for x, y in pairs if (x > 0 or not log_x) and (y > 0 or not log_y)]


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    y_limits: tuple[float, float] | None = None,
) -> str:
    """An SVG of the lines with axes and grid, or "" when no line has a point. The legend is the caller's part."""
    series = [(line, _points(line, log_x=log_x, log_y=log_y)) for line in lines]
    series = [(line, points) for line, points in series if points]
    if not series:
        return ""
    xs = [x for _, points in series for x, _ in points]
    ys = [y for _, points in series for _, y in points]
    x_low, x_high = (min(xs), max(xs)) if log_x else (min(0.0, *xs), max(xs))
    y_low, y_high = y_limits or (min(ys), max(ys))
    if log_y:
        y_low, y_high = y_low / 1.05, y_high * 1.05
    else:
        margin = 0.06 * (y_high - y_low or abs(y_high) or 1)
        # a loss near zero is read best from zero
        y_low = 0.0 if 0 <= y_low < 0.1 * y_high else y_low - margin
        y_high += margin
    if x_low == x_high:
        x_low, x_high = (x_low / 2, x_high * 2) if log_x else (x_low - 1, x_high + 1)

    def scale(value: float, low: float, high: float, start: float, stop: float, log: bool) -> float:
        if log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return start + (value - low) / (high - low) * (stop - start)

    def at_x(value: float) -> float:
        return scale(value, x_low, x_high, _LEFT, WIDTH - _RIGHT, log_x)

    def at_y(value: float) -> float:
        clipped = min(max(value, y_low), y_high)
        return scale(clipped, y_low, y_high, HEIGHT - _BOTTOM, _TOP, log_y)

    parts = []
    for value in log_ticks(y_low, y_high) if log_y else ticks(y_low, y_high):
        y = at_y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{short(value)}</text>')
    for value in log_ticks(x_low, x_high) if log_x else ticks(x_low, x_high, count=4):
        x = at_x(value)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{HEIGHT - _BOTTOM}" y2="{HEIGHT - 36}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 23}" text-anchor="middle">{short(value)}</text>')
    parts.append(
        f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{HEIGHT - _BOTTOM}" y2="{HEIGHT - _BOTTOM}"/>'
    )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>')
    for line, points in series:
        path = "M" + "L".join(f"{at_x(x):.1f} {at_y(y):.1f}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(f'<path class="line s{line.style}" d="{path}"{dash}/>')
        marked = points if line.dots and len(points) <= 60 else points[-1:]
        for x, y in marked:
            name = escape(f"{line.name}: {short(y)} at {short(x)}")
            parts.append(
                f'<circle class="dot s{line.style}" cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="2.6">'
                f"<title>{name}</title></circle>"
            )
    ends = "; ".join(f"{line.name} ends at {short(points[-1][1])}" for line, points in series)
    return _svg(title, f"{y_label} against {x_label}. {ends}.", HEIGHT, parts)


def dot_chart(title: str, dots: Sequence[Dot], *, x_label: str, limits: tuple[float, float] | None = None) -> str:
    """An SVG of dots with whiskers, one row each, zero marked; "" without rows."""
    if not dots:
        return ""
    row, left = 26, 118
    height = _TOP + row * len(dots) + _BOTTOM
    low, high = limits or (
        min(0.0, *(dot.low for dot in dots)),
        max(0.0, *(max(dot.high, dot.target or dot.high) for dot in dots)),
    )
    spread = (high - low) or 1.0
    low, high = (low - 0.04 * spread if low < 0 else low), high + 0.04 * spread

    def at(value: float) -> float:
        return left + (min(max(value, low), high) - low) / (high - low) * (WIDTH - _RIGHT - left)

    bottom, parts = height - _BOTTOM, []
    for value in ticks(low, high, count=4):
        kind = "zero" if value == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{at(value):.1f}" x2="{at(value):.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{at(value):.1f}" y="{bottom + 16}" text-anchor="middle">{short(value)}</text>')
    middle = (left + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="label" x="{middle:.0f}" y="{height - 5}" text-anchor="middle">{escape(x_label)}</text>')
    for number, dot in enumerate(dots):
        y = _TOP + row * (number + 0.5)
        strong = " strong" if dot.strong else ""
        words = escape(f"{dot.name}: {dot.value:.3f} ({dot.low:.3f} to {dot.high:.3f}){dot.note}")
        if dot.target is not None:
            x = at(dot.target)
            parts.append(
                f'<line class="target" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 10:.1f}" y2="{y + 10:.1f}">'
                f"<title>{escape(f'target {dot.target:g}')}</title></line>"
            )
        parts.append(
            f'<text class="label{strong}" x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(dot.name)}</text>'
            f'<g class="s{dot.style}{strong}"><title>{words}</title>'
            f'<line class="whisker" x1="{at(dot.low):.1f}" x2="{at(dot.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<circle class="dot" cx="{at(dot.value):.1f}" cy="{y:.1f}" r="{5 if dot.strong else 3.6}"/></g>'
        )
    described = "; ".join(f"{dot.name} {dot.value:.2f}, {dot.low:.2f} to {dot.high:.2f}" for dot in dots)
    return _svg(title, described, height, parts)


def heat_map(
    title: str,
    columns: Sequence[str],
    rows: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    x_label: str,
    y_label: str,
    after: int | None = None,
) -> str:
    """An SVG of shares from 0 to 1 as cells, the larger the darker, each with its hundredths; "" without cells.

    values: one list a row, from the top; None leaves a cell empty. after: draw a line behind so many columns.
    """  # fmt: skip
    if not columns or not rows:
        return ""
    left, row, bottom = 66, 20, 40
    height = _TOP + row * len(rows) + bottom
    wide = (WIDTH - _RIGHT - left) / len(columns)
    parts = []
    for number, (name, line) in enumerate(zip(rows, values, strict=True)):
        y = _TOP + row * number
        parts.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
        for column, value in enumerate(line):
            if value is None:
                continue
            x = left + wide * column
            words = escape(f"{columns[column]}, {name}: {value:.2f}")
            tone = "over" if value > 0.6 else "on"
            parts.append(
                f'<g class="s0"><title>{words}</title><rect class="heat" x="{x + 1:.1f}" y="{y + 1}" rx="2" '
                f'width="{wide - 2:.1f}" height="{row - 2}" fill-opacity="{0.06 + 0.94 * value:.2f}"/></g>'
                f'<text class="{tone}" x="{x + wide / 2:.1f}" y="{y + 14}" text-anchor="middle">'
                f"{100 * value:.0f}</text>"
            )
    for column, name in enumerate(columns):
        x = left + wide * (column + 0.5)
        parts.append(f'<text x="{x:.1f}" y="{height - 23}" text-anchor="middle">{escape(name)}</text>')
    if after is not None and 0 < after < len(columns):
        x = left + wide * after
        parts.append(f'<line class="target" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{height - bottom + 4}"/>')
    middle = _TOP + row * len(rows) / 2
    parts.append(f'<text class="label" x="{(left + WIDTH - _RIGHT) / 2:.0f}" y="{height - 5}" text-anchor="middle">'
                 f"{escape(x_label)}</text>")  # fmt: skip
    parts.append(f'<text class="label" x="14" y="{middle:.0f}" text-anchor="middle" '
                 f'transform="rotate(-90 14 {middle:.0f})">{escape(y_label)}</text>')  # fmt: skip
    return _svg(title, f"{y_label} by {x_label}, {len(rows)} by {len(columns)} cells in hundredths.", height, parts)


def _svg(title: str, description: str, height: float, parts: list[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<desc>{escape(description)}</desc>{''.join(parts)}</svg>"
    )
