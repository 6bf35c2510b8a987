"""Three kinds of chart as inline SVG: lines over steps or cost, dots with intervals, and heat maps.

No plotting library draws these, since the report follows the reader's light or dark setting: colours come from CSS
classes (`s0`, `s1`, ... for series, `axis`, `grid`), so one drawing serves both and takes a few kilobytes. Every chart
has a title and a description for screen readers, and each point a `<title>` for the pointer. ElementTree escapes text.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 40


@dataclass(frozen=True)
class Series:
    """One series of a line chart. `style` is the number of its CSS colour class, `s0` to `s5`; points whose y is None
    or not finite are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    style: int = 0
    dashed: bool = False
    dots: bool = True

    @property
    def points(self) -> list[tuple[float, float]]:
        """The points that are drawn."""
        pairs = [(float(x), float(y)) for x, y in zip(self.x, self.y, strict=True) if x is not None and y is not None]
        return [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]


@dataclass(frozen=True)
class IntervalPoint:
    """One value of a dot-and-whisker chart with its interval, and a target to compare with. low, high: None without an
    interval. `note` is added to the pointer's title; `emphasized` draws it larger; `parts` are drawn as small dots."""

    name: str
    value: float
    low: float | None
    high: float | None
    style: int = 0
    target: float | None = None
    emphasized: bool = False
    note: str = ""
    parts: Sequence[float] = ()

    @property
    def range(self) -> tuple[float, float]:
        """All that is drawn of it lies between these two."""
        drawn = [self.value, self.low, self.high, self.target, *self.parts]
        known = [value for value in drawn if value is not None]
        return min(known), max(known)

    def text(self, digits: int) -> str:
        """The value, with its interval where it has one."""
        if self.low is None or self.high is None:
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def short(value: float, digits: int = 3) -> str:
    """A number in about three digits, thousands as k, M, G, T, P."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "-"
    size = abs(value)
    for unit, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= max(unit, 1e4):
            return f"{value / unit:.{digits}g}{letter}"
    return f"{value:.0f}" if size >= 1000 and digits <= 4 else f"{value:.{digits}g}"


def tick_names(values: Sequence[float]) -> list[str]:
    """Ticks as text, in as many digits as tell them apart: 1.038G and 1.04G."""
    named: list[str] = []
    for digits in range(3, 16):
        named = [short(value, digits) for value in values]
        if len(set(named)) == len(set(values)):
            break
    return named


def ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """About `count` round numbers from low to high."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


class Drawing:
    """An SVG under construction, as wide as a phone's column so that its letters stay readable."""

    def __init__(self, title: str, description: str, height: float):
        attributes = {"viewBox": f"0 0 {WIDTH} {height:.0f}", "role": "img", "aria-label": title}
        self.svg = ElementTree.Element("svg", attributes)
        self.add("desc", text=description)

    def add(
        self, tag: str, within: ElementTree.Element | None = None, *, text: str = "", title: str = "",
        **attributes: str | float,
    ) -> ElementTree.Element:  # fmt: skip
        """Add an element; `kind` becomes its class, and floats get one decimal."""
        named = {"class" if name == "kind" else name.replace("_", "-"): value for name, value in attributes.items()}
        words = {name: f"{value:.1f}" if isinstance(value, float) else str(value) for name, value in named.items()}
        element = ElementTree.SubElement(self.svg if within is None else within, tag, words)
        element.text = text or None
        if title:
            ElementTree.SubElement(element, "title").text = title
        return element

    def line(self, kind: str, x1: float, x2: float, y1: float, y2: float, **more: str) -> None:
        self.add("line", kind=kind, x1=float(x1), x2=float(x2), y1=float(y1), y2=float(y2), **more)

    def text(self, x: float, y: float, text: str, *, anchor: str = "middle", **more: str) -> None:
        self.add("text", x=float(x), y=float(y), text=text, text_anchor=anchor, **more)

    def axes(
        self, x: tuple[float, float], y: tuple[float, float], *, x_label: str, y_label: str = "",
        x_ticks: Sequence[float] | None = None,
    ) -> tuple[Callable[[float], float], Callable[[float], float]]:  # fmt: skip
        """Axes and grid of a chart of the usual size; returns the coordinates as functions of x and of y. y_label
        stands above the axis of y; x_ticks: about four round numbers if not given."""
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

        def at_x(value: float) -> float:
            return LEFT + (value - x[0]) / (x[1] - x[0]) * (right - LEFT)

        def at_y(value: float) -> float:
            return bottom + (value - y[0]) / (y[1] - y[0]) * (TOP - bottom)

        y_ticks = ticks(*y)
        for value, name in zip(y_ticks, tick_names(y_ticks), strict=True):
            self.line("grid", LEFT, right, at_y(value), at_y(value))
            self.text(LEFT - 7, at_y(value) + 4, name, anchor="end")
        x_ticks = ticks(*x, count=4) if x_ticks is None else x_ticks
        for value, name in zip(x_ticks, tick_names(x_ticks), strict=True):
            self.line("axis", at_x(value), at_x(value), bottom, bottom + 4)
            self.text(at_x(value), HEIGHT - 23, name)
        if y_label:
            self.text(0, TOP - 9, y_label, anchor="start", kind="label")
        self.line("axis", LEFT, right, bottom, bottom)
        self.text((LEFT + right) / 2, HEIGHT - 5, x_label, kind="label")
        return at_x, at_y

    def finish(self) -> str:
        return ElementTree.tostring(self.svg, encoding="unicode")


def line_chart(title: str, lines: Sequence[Series], *, x_label: str, y_label: str) -> str:
    """An SVG of the lines with axes and grid, without legend; "" when no line has a point."""
    series = [(line, points) for line in lines if (points := line.points)]
    if not series:
        return ""
    xs = [x for _, points in series for x, _ in points]
    ys = [y for _, points in series for _, y in points]
    x_low, x_high, y_low, y_high = min(0.0, *xs), max(xs), min(ys), max(ys)
    margin = 0.06 * (y_high - y_low or abs(y_high) or 1)
    # a loss near zero is read best from zero
    y_low = 0.0 if 0 <= y_low < 0.1 * y_high else y_low - margin
    y_high += margin
    if x_low == x_high:
        x_low, x_high = x_low - 1, x_high + 1
    ends = "; ".join(f"{line.name} ends at {short(points[-1][1])}" for line, points in series)
    drawing = Drawing(title, f"{y_label} against {x_label}. {ends}.", HEIGHT)
    at_x, at_y = drawing.axes((x_low, x_high), (y_low, y_high), x_label=x_label)
    for line, points in series:
        path = "M" + "L".join(f"{at_x(x):.1f} {at_y(y):.1f}" for x, y in points)
        drawing.add("path", kind=f"line s{line.style}", d=path, **({"stroke_dasharray": "5 4"} if line.dashed else {}))
        for x, y in points if line.dots and len(points) <= 60 else points[-1:]:
            name = f"{line.name}: {short(y)} at {short(x)}"
            drawing.add("circle", kind=f"dot s{line.style}", cx=at_x(x), cy=at_y(y), r=2.6, title=name)
    return drawing.finish()


def dot_chart(title: str, dots: Sequence[IntervalPoint], *, x_label: str, left: float = 118) -> str:
    """An SVG of dots with whiskers, one under another, zero marked; "" without dots. left: width of the names."""
    if not dots:
        return ""
    row, right = 26, WIDTH - RIGHT
    height = TOP + row * len(dots) + BOTTOM
    low = min(0.0, *(dot.range[0] for dot in dots))
    high = max(0.0, *(dot.range[1] for dot in dots))
    spread = (high - low) or 1.0
    low, high = (low - 0.04 * spread if low < 0 else low), high + 0.04 * spread

    def at(value: float) -> float:
        return left + (min(max(value, low), high) - low) / (high - low) * (right - left)

    described = "; ".join(f"{dot.name} {dot.text(2)}" for dot in dots)
    drawing, bottom = Drawing(title, described, height), height - BOTTOM
    marks = ticks(low, high, count=4)
    for value, name in zip(marks, tick_names(marks), strict=True):
        drawing.line("zero" if value == 0 else "grid", at(value), at(value), TOP, bottom)
        drawing.text(at(value), bottom + 16, name)
    drawing.line("axis", left, right, bottom, bottom)
    drawing.text((left + right) / 2, height - 5, x_label, kind="label")
    for number, dot in enumerate(dots):
        y = TOP + row * (number + 0.5)
        emphasis = " strong" if dot.emphasized else ""
        if dot.target is not None:
            drawing.line("target", at(dot.target), at(dot.target), y - 10, y + 10, title=f"target {dot.target:g}")
        drawing.text(left - 10, y + 4, dot.name, anchor="end", kind=f"label{emphasis}")
        group = drawing.add("g", kind=f"s{dot.style}{emphasis}", title=f"{dot.name}: {dot.text(3)}{dot.note}")
        if dot.low is not None and dot.high is not None:
            drawing.line("whisker", at(dot.low), at(dot.high), y, y, within=group)
        for part in dot.parts:
            drawing.add("circle", group, kind="seed", cx=at(part), cy=float(y), r=1.8)
        drawing.add("circle", group, kind="dot", cx=at(dot.value), cy=y, r=5.0 if dot.emphasized else 3.6)
    return drawing.finish()


def heat_map(
    title: str, columns: Sequence[str], rows: Sequence[str], values: Sequence[Sequence[float | None]], *, x_label: str,
    y_label: str, after: int | None = None,
) -> str:  # fmt: skip
    """An SVG of fractions as cells, the larger the darker, each in hundredths; "" without cells.

    values: one list per row, from the top; None leaves a cell empty. after: draw a line after so many columns.
    """
    if not columns or not rows:
        return ""
    left, row = 66, 20
    bottom = TOP + row * len(rows)
    height, wide = bottom + BOTTOM, (WIDTH - RIGHT - left) / len(columns)
    drawing = Drawing(title, f"{y_label} by {x_label}, {len(rows)} by {len(columns)} cells in hundredths.", height)
    for number, (name, line) in enumerate(zip(rows, values, strict=True)):
        y = TOP + row * number
        drawing.text(left - 8, y + 14, name, anchor="end")
        for column, value in enumerate(line):
            if value is None:
                continue
            x, box = left + wide * column, {"rx": 2, "width": wide - 2, "height": row - 2}
            group = drawing.add("g", kind="s0", title=f"{columns[column]}, {name}: {value:.2f}")
            opacity = f"{0.06 + 0.94 * value:.2f}"
            drawing.add("rect", group, kind="heat", x=x + 1, y=y + 1, **box, fill_opacity=opacity)
            drawing.text(x + wide / 2, y + 14, f"{100 * value:.0f}", kind="over" if value > 0.6 else "on")
    for column, name in enumerate(columns):
        drawing.text(left + wide * (column + 0.5), height - 23, name)
    if after is not None and 0 < after < len(columns):
        drawing.line("target", left + wide * after, left + wide * after, TOP - 6, bottom + 4)
    middle = (TOP + bottom) / 2
    drawing.text((left + WIDTH - RIGHT) / 2, height - 5, x_label, kind="label")
    drawing.text(14, middle, y_label, kind="label", transform=f"rotate(-90 14 {middle:.0f})")
    return drawing.finish()
