"""Two charts of experiments beside those of a run's report: cost against quality, and a map of differences.

They are inline SVG with CSS classes as in `brine.evals.report.charts`, and follow the reader's light or dark setting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from brine.evals.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Drawing, short

_MAP_ROW, _MAP_LEFT = 24, 168
CHAR_WIDTH = 7.2
"""Of a letter of a label, on average, in the units of a drawing."""
_EQUAL_COST = 0.01
"""Relative spread of costs below which they are shown as equal."""
_POINT_NAME = 24
"""Characters of a name that fit beside a point."""
_POINTS_NAMED = 2
"""Points whose names do not run into each other; of more the numbers are shown."""
_FIGURE_WIDTH = 40
"""Width of a cell in which a figure has a decimal."""
_BETTER, _WORSE = 0, 1
"""Colour classes of what is better and worse."""


@dataclass(frozen=True)
class CostPoint:
    """A setting's mean cost and quality. seeds: (cost, quality) of each training."""

    name: str
    cost: float
    quality: float
    seeds: Sequence[tuple[float, float]] = ()
    emphasized: bool = False


def pareto_front(points: Sequence[tuple[float, float]], *, lower_is_better: bool) -> list[int]:
    """Indices, by cost, of the points that no other one beats in cost and quality at once."""
    sign = 1 if lower_is_better else -1
    order = sorted(range(len(points)), key=lambda number: (points[number][0], sign * points[number][1]))
    front, best = [], math.inf
    for number in order:
        if sign * points[number][1] < best:
            best = sign * points[number][1]
            front.append(number)
    return front


def cost_chart(
    title: str, points: Sequence[CostPoint], *, x_label: str, y_label: str, lower_is_better: bool = True
) -> str:
    """An SVG of settings by cost and quality, the line of those that nothing beats through them; "" without points."""
    if not points:
        return ""
    every = [(point.cost, point.quality) for point in points] + [pair for point in points for pair in point.seeds]
    costs, (y_low, y_high) = [pair[0] for pair in every], _padded([pair[1] for pair in every])
    (x_low, x_high), x_ticks = _padded(costs), None
    if max(costs) - min(costs) <= _EQUAL_COST * max(map(abs, costs)):
        # equal but for rounding to whole steps and documents: one tick, and no spread where there is none
        middle = (max(costs) + min(costs)) / 2
        x_ticks, margin = [middle], 10 * _EQUAL_COST * (abs(middle) or 1)
        x_low, x_high = middle - margin, middle + margin
    front = pareto_front([(point.cost, point.quality) for point in points], lower_is_better=lower_is_better)
    named = ", ".join(points[number].name for number in front)
    drawing = Drawing(title, f"{y_label} against {x_label} of {len(points)} settings; none beats {named}.", HEIGHT)
    at_x, at_y = drawing.axes((x_low, x_high), (y_low, y_high), x_label=x_label, y_label=y_label, x_ticks=x_ticks)
    path = ""
    for number in front:
        x, y = at_x(points[number].cost), at_y(points[number].quality)
        # what is reached at a cost stays reached until a better one costs more
        path += f"H{x:.1f}V{y:.1f}" if path else f"M{x:.1f} {y:.1f}"
    drawing.add("path", kind="line s5", d=f"{path}H{WIDTH - RIGHT:.1f}", stroke_dasharray="3 3")
    for number, point in enumerate(points):
        style = "s0" if number in front else "s5"
        for cost, quality in point.seeds:
            drawing.add("circle", kind=f"seed {style}", cx=at_x(cost), cy=at_y(quality), r=1.8)
        words = f"{point.name}: {point.quality:.4g} at {short(point.cost)}"
        size = 5.5 if point.emphasized else 4.0
        drawing.add("circle", kind=f"dot {style}", cx=at_x(point.cost), cy=at_y(point.quality), r=size, title=words)
    in_full = len(front) <= _POINTS_NAMED and all(len(points[number].name) <= _POINT_NAME for number in front)
    for number in front:
        x, y, name = at_x(points[number].cost), at_y(points[number].quality), points[number].name
        anchor = "end" if x > (LEFT + WIDTH - RIGHT) / 2 else "start"
        drawing.text(
            x + (-8 if anchor == "end" else 8),
            y + (16 if anchor == "end" else -7),
            name if in_full else cut(name.partition(" ")[0], _POINT_NAME),
            anchor=anchor,
            kind="label",
        )
    return drawing.finish()


def difference_map(
    title: str, columns: Sequence[str], rows: Sequence[str], values: Sequence[Sequence[tuple[float, bool] | None]], *,
    x_label: str,
) -> str:  # fmt: skip
    """An SVG of relative differences in per cent; "" without cells.

    values: for each row, from the top, (relative difference, positive is better; whether it is decided) of each column,
    or None. The colour says better or worse, its strength how much, a frame that the interval excludes 0.
    """
    if not columns or not rows:
        return ""
    bottom = TOP + _MAP_ROW * len(rows)
    wide = (WIDTH - RIGHT - _MAP_LEFT) / len(columns)
    shown = columns
    if max(map(len, columns)) * CHAR_WIDTH > wide:
        # names that do not fit are given by the number that they begin with
        shown = [cut(name.partition(" ")[0], max(2, int(wide / CHAR_WIDTH))) for name in columns]
    found = [abs(cell[0]) for line in values for cell in line if cell is not None]
    most = max(max(found, default=0.0), 1e-9)
    drawing = Drawing(title, f"{x_label}: {len(rows)} measures by {len(columns)} settings, per cent.", bottom + BOTTOM)
    for number, (name, line) in enumerate(zip(rows, values, strict=True)):
        y = TOP + _MAP_ROW * number
        drawing.text(_MAP_LEFT - 8, y + 16, name, anchor="end")
        for column, cell in enumerate(line):
            if cell is None:
                continue
            value, decided = cell
            x = _MAP_LEFT + wide * column
            words = f"{columns[column]}, {name}: {100 * abs(value):.1f} % {'better' if value >= 0 else 'worse'}"
            group = drawing.add("g", kind=f"s{_BETTER if value >= 0 else _WORSE}", title=words)
            box = {"x": x + 1, "y": float(y + 1), "width": wide - 2, "height": float(_MAP_ROW - 2), "rx": 2}
            strength = abs(value) / most
            drawing.add("rect", group, kind="heat", fill_opacity=f"{0.05 + 0.75 * strength:.2f}", **box)
            if decided:
                drawing.add("rect", group, kind="frame", **box)
            kind = "over" if strength > 0.75 else "on"
            figure = f"{100 * value:+.1f}" if wide > _FIGURE_WIDTH else f"{100 * value:+.0f}"
            if len(figure) * CHAR_WIDTH <= wide:
                drawing.text(x + wide / 2, y + 16, figure.replace("-", "\N{MINUS SIGN}"), kind=kind)
    for column, name in enumerate(shown):
        drawing.text(_MAP_LEFT + wide * (column + 0.5), bottom + 16, name)
    drawing.text((_MAP_LEFT + WIDTH - RIGHT) / 2, bottom + 34, x_label, kind="label")
    return drawing.finish()


def cut(name: str, length: int) -> str:
    """A name in at most so many characters."""
    return name if len(name) <= length else name[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.08 * (high - low or abs(high) or 1)
    return low - margin, high + margin
