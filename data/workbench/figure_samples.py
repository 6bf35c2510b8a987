"""Samples of tables and charts: real numbers, how to draw them, a question and its answer.

What is shown comes from frames.py, what is asked from questions.py; here a level's bounds bring the two together into
recipes, which table.py and chart.py render. Nothing is drawn here, so what does not fit is foreseen from lengths: a
chart whose labels would run into each other is not planned, and the few that still do are refused when they are drawn.
The streams end when every file has been visited some times; plan.py takes as many as it wants.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from data.workbench.chart import labelled_left, margins
from data.workbench.frames import Frame, draw_frame, line_frame, visits
from data.workbench.levels_screen import CHART, COMPARABLE, TABLE, ChartLevel
from data.workbench.lines import Bench
from data.workbench.questions import Asked, Balance, ask_chart, ask_table
from data.workbench.samples import Sample, look_of
from data.workbench.table import num_cells

MAX_CELLS = 900
"""Characters times lines of a table: in the largest font this still fits 1,024 patches."""
TRIES = 6
"""Draws of a chart about one file before the next one is visited: most names are too long for short labels."""
PEAK = 4
"""The greatest number of a chart is at least this."""
SUBJECTS = {
    ("bar", False): ("functions", "classes", "names", "files", "line"),
    ("hbar", False): ("functions", "classes", "names", "files"),
    ("scatter", False): ("functions", "classes", "names", "files"),
    # of a name's first and last line the last is the larger: nothing to compare
    ("bar", True): ("functions", "classes", "files", "line"),
    ("hbar", True): ("functions", "classes", "files"),
    ("scatter", True): ("functions", "classes", "names", "files"),
}
"""(chart, whether it has two series) -> what it may be about."""
CHAR_WIDTH = 0.63
"""Of the font's size: about the width of a letter of DejaVu Sans."""


def tables(bench: Bench, *, level: int, style: str, rng: random.Random) -> Iterator[Sample]:
    """Tables of the split with a question each, no question about the same table twice."""
    bounds = TABLE[level]
    seen: set[tuple] = set()
    for index in visits(bench, rng=rng):
        frame = draw_frame(
            bench,
            index,
            subject=rng.choice(bounds.subjects),
            num_rows=bounds.rows,
            num_columns=(bounds.columns[0] - 1, bounds.columns[1] - 1),
            label_chars=bounds.label_chars,
            digits=bounds.digits,
            peak=bounds.peak,
            rng=rng,
        )
        if frame is None:
            continue
        recipe = {
            "type": "image",
            "draw": "table",
            "title": frame.caption if rng.random() < bounds.title else "",
            "header": [frame.label, *frame.columns],
            "rows": [[label, *map(str, numbers)] for label, numbers in frame.rows],
            "rules": rng.choice(bounds.rules),
            "align": rng.choice(bounds.aligns),
            **look_of(level, style=style, rng=rng),
        }
        lines, chars = num_cells(recipe)
        asked = _first_asked(bounds.tasks, lambda task, frame=frame: ask_table(frame, task, rng=rng), rng=rng)
        if asked is None or lines * chars > MAX_CELLS or (frame.rows, asked.question) in seen:
            continue
        seen.add((frame.rows, asked.question))
        yield _sample(recipe, frame, asked, level=level)


def charts(bench: Bench, *, level: int, rng: random.Random) -> Iterator[Sample]:
    """Charts of the split with a question each, no question about the same chart twice."""
    bounds = CHART[level]
    balance = Balance()
    seen: set[tuple] = set()
    for index in visits(bench, rng=rng):
        tries = (_plan_chart(bench, index, bounds, rng=rng) for _ in range(TRIES))
        planned = next((item for item in tries if item is not None), None)
        if planned is None:
            continue
        frame, recipe = planned

        def ask(task: str, frame: Frame = frame, recipe: dict = recipe) -> Asked | None:
            return ask_chart(frame, task, axes=recipe["axes"], chart=recipe["chart"], balance=balance, rng=rng)

        asked = _first_asked(bounds.tasks, ask, rng=rng)
        if asked is None or (frame.rows, asked.question) in seen:
            continue
        seen.add((frame.rows, asked.question))
        yield _sample(recipe, frame, asked, level=level)


def nice_ticks(greatest: int, *, most: int) -> list[int]:
    """Ticks from 0 to `greatest` or just beyond, at most `most` steps of 1, 2, 5, 10, 20, 50, ..."""
    scale = 1
    while True:
        for step in (scale, 2 * scale, 5 * scale):
            if step * most >= greatest:
                return list(range(0, step * (-(-greatest // step) + 1), step))
        scale *= 10


def _first_asked(tasks: Sequence[str], ask: Callable[[str], Asked | None], *, rng: random.Random) -> Asked | None:
    """The first question that can be asked, in random order of the tasks."""
    for task in rng.sample(tasks, len(tasks)):
        asked = ask(task)
        if asked is not None:
            return asked
    return None


def _sample(recipe: dict, frame: Frame, asked: Asked, *, level: int) -> Sample:
    """The sample of a picture and a question. From level 2 on the question's first line tells the numbers' source."""
    question = asked.question if level == 1 else f"{frame.caption}\n{asked.question}"
    return Sample(recipe, asked.answer, file=frame.file, question=question)


def _plan_chart(bench: Bench, index: int, bounds: ChartLevel, *, rng: random.Random) -> tuple[Frame, dict] | None:
    """What a chart about file `index` shows, and its recipe; None where there is too little or no room for it."""
    chart = rng.choice(bounds.charts)
    frame = _chart_frame(bench, index, chart, bounds, rng=rng)
    if frame is None:
        return None
    width, height = rng.choice(bounds.sizes)
    columns = [frame.column(place) for place in range(len(frame.columns))]
    recipe = {
        "type": "image",
        "draw": "chart",
        "chart": chart,
        "labels": frame.labels,
        "names": list(frame.columns),
        "values": columns,
        "axes": _axes(columns, chart, bounds),
        "title": frame.caption if rng.random() < bounds.title else "",
        "axis_name": bounds.axis_name and len(columns) == 1,
        "legend": chart != "scatter" and len(columns) > 1,
        "width": width,
        "height": height,
        "font": rng.choice(bounds.fonts),
        "style": rng.choice(bounds.styles),
    }
    rows = _apart(recipe)[: bounds.points[1]] if chart == "scatter" else _in_a_row(recipe)
    if len(rows) < bounds.points[0]:
        return None
    recipe["labels"] = [frame.labels[row] for row in rows]
    recipe["values"] = [[column[row] for row in rows] for column in columns]
    if max(map(max, recipe["values"])) < PEAK:
        return None
    if chart != "scatter":
        # the greatest may be among those without room; a scatter chart's places were found with these axes
        recipe["axes"] = _axes(recipe["values"], chart, bounds)
    return replace(frame, rows=tuple(frame.rows[row] for row in rows)), recipe


def _axes(columns: list[list[int]], chart: str, bounds: ChartLevel) -> list[list[int]]:
    """The ticks of each column: two series share an axis, the two sides of a scatter chart do not."""
    shared = max(map(max, columns))
    return [nice_ticks(max(column) if chart == "scatter" else shared, most=bounds.steps) for column in columns]


def _chart_frame(bench: Bench, index: int, chart: str, bounds: ChartLevel, *, rng: random.Random) -> Frame | None:
    """Numbers for a chart: lines of the file for a line chart and some of the bars, else whatever has names; two
    columns to compare or for the two axes of a scatter chart, one otherwise.
    """
    two = bounds.series == 2
    subject = "line" if chart == "line" else rng.choice(SUBJECTS[chart, two])
    if subject == "line":
        names = rng.choice(COMPARABLE["line"]) if two else (rng.choice(("characters", "words", "symbols")),)
        return line_frame(bench, index, num_rows=bounds.points, names=names, rng=rng)
    return draw_frame(
        bench,
        index,
        subject=subject,
        # points whose labels would run into others are left out again
        num_rows=(bounds.points[0], bounds.points[1] * (2 if chart == "scatter" else 1)),
        num_columns=(2, 2) if chart == "scatter" else (1, 1),
        only=rng.choice(COMPARABLE[subject]) if two and chart != "scatter" else None,
        # long labels fit below bars no better than beside points
        label_chars=bounds.label_chars if chart == "hbar" else min(8, bounds.label_chars),
        digits=5,
        peak=PEAK,
        rng=rng,
    )


def _in_a_row(recipe: dict) -> range:
    """As many rows, from the first, as have room for their labels along the axis."""
    font, labels = recipe["font"], recipe["labels"]
    left, bottom, right, top = margins(recipe)
    across, upward = recipe["width"] - left - right, recipe["height"] - bottom - top
    if len(recipe["title"]) * CHAR_WIDTH * font > across or 2 * across < recipe["width"]:
        return range(0)
    if recipe["chart"] == "hbar":
        return range(min(len(labels), int(upward / (font + 3))))
    slot = max(map(len, labels)) * CHAR_WIDTH * font + 4
    return range(min(len(labels), int(across / slot)))


def _apart(recipe: dict) -> list[int]:
    """Rows of a scatter chart whose labels, drawn as chart.py draws them, are clear of each other and of all points."""
    font = recipe["font"]
    left, bottom, right, top = margins(recipe)
    across, upward = recipe["width"] - left - right, recipe["height"] - bottom - top
    if len(recipe["title"]) * CHAR_WIDTH * font > across:
        return []
    kept: list[int] = []
    taken: list[tuple[float, float, float, float]] = []
    for row, (label, first, second) in enumerate(zip(recipe["labels"], *recipe["values"], strict=True)):
        x, y = first / recipe["axes"][0][-1] * across, second / recipe["axes"][1][-1] * upward
        reach = 8 + len(label) * CHAR_WIDTH * font
        start, end = (x - reach, x + 4) if labelled_left(recipe, first) else (x - 4, x + reach)
        box = (start, y - 0.7 * font, end, y + 0.7 * font)
        inside = start > -4 and end < across + right and y > 0.4 * font
        clear = all(box[2] < o[0] or o[2] < box[0] or box[3] < o[1] or o[3] < box[1] for o in taken)
        if inside and clear:
            kept.append(row)
            taken.append(box)
    return kept
