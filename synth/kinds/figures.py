"""Samples of tables and charts: real numbers, how to draw them, a question and its answer.

Here a level's bounds bring what data_tables.py shows and asks together into specs. Nothing is drawn, so what does not
fit is foreseen from lengths; the few charts whose labels still overlap are refused when they are drawn.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from brine.synth.kinds import data_tables
from brine.synth.kinds.data_tables import AnswerBalancer, DataTable, QuestionAnswer
from brine.synth.kinds.levels import CHART, COMPARABLE, MAX_CELLS, TABLE, ChartLevel, TableLevel
from brine.synth.kinds.samples import SynthSample, render_style
from brine.synth.render.chart import labelled_left, margins
from brine.synth.render.table import num_cells
from brine.synth.sources.code_regions import SplitSampler

TRIES = 6
"""Attempts at a chart about one file before the next one is visited: most names are too long for short labels."""
MIN_COLUMN_MAX = 4
_NAMED = ("functions", "classes", "names", "files")
SUBJECTS = {"bar": (*_NAMED, "line"), "hbar": _NAMED, "scatter": _NAMED}
"""chart -> what it may be about. Two series are not about names: of their first and last line the last is larger."""
CHAR_WIDTH = 0.63
"""Of the font's size: about the width of a letter of DejaVu Sans."""


Drawn = tuple[object, SynthSample] | None
"""A sample and the key by which repetitions of it are known, or None."""


def distinct(draw: Callable[..., Drawn]) -> Callable[[SplitSampler, int, random.Random], Iterator[SynthSample]]:
    """The stream of what `draw(sampler, file, level, balance, rng)` gives for every file, each key once."""

    def stream(sampler: SplitSampler, level: int, rng: random.Random) -> Iterator[SynthSample]:
        balance, seen = AnswerBalancer(), set()
        for index in data_tables.file_order(sampler, rng):
            drawn = draw(sampler, index, level, balance, rng)
            if drawn is not None and drawn[0] not in seen:
                seen.add(drawn[0])
                yield drawn[1]

    return stream


@distinct
def tables(sampler: SplitSampler, index: int, level: int, _balance: AnswerBalancer, rng: random.Random) -> Drawn:
    """A table about file `index` with a question; None where it has too few numbers."""
    bounds = TABLE[level]
    table = data_tables.sample_table(sampler, index, rng.choice(bounds.subjects), bounds, rng)
    if table is None:
        return None
    title = table.caption if rng.random() < bounds.title else ""
    spec = {"type": "image", "renderer": "table", "title": title, "header": table.cells[0], "rows": table.cells[1:]}
    spec |= {"rules": rng.choice(bounds.rules), "align": rng.choice(bounds.aligns)}
    spec |= render_style(sampler, level, rng)
    lines, chars = num_cells(spec)
    qa = first_asked(bounds.tasks, lambda task: data_tables.ask_table(table, task, rng), rng)
    return None if lines * chars > MAX_CELLS else _sample(spec, table, qa, level)


@distinct
def charts(sampler: SplitSampler, index: int, level: int, balance: AnswerBalancer, rng: random.Random) -> Drawn:
    """A chart about file `index` with a question; None where there are too few numbers or no space."""
    bounds = CHART[level]
    tries = (_plan_chart(sampler, index, bounds, rng) for _ in range(TRIES))
    if (planned := next(filter(None, tries), None)) is None:
        return None
    table, spec = planned
    qa = first_asked(bounds.tasks, lambda task: data_tables.ask_chart(table, task, spec, balance, rng), rng)
    return _sample(spec, table, qa, level)


def first_asked(
    tasks: Sequence[str], ask: Callable[[str], QuestionAnswer | None], rng: random.Random
) -> QuestionAnswer | None:
    """The first question that can be asked, in random order of the tasks."""
    return next((qa for task in rng.sample(tasks, len(tasks)) if (qa := ask(task)) is not None), None)


def nice_ticks(greatest: int, *, most: int) -> list[int]:
    """Ticks from 0 to `greatest` or just beyond, at most `most` steps of 1, 2, 5, 10, 20, 50, ..."""
    scale = 1
    while True:
        for step in (scale, 2 * scale, 5 * scale):
            if step * most >= greatest:
                return list(range(0, step * (-(-greatest // step) + 1), step))
        scale *= 10


def _sample(spec: dict, table: DataTable, qa: QuestionAnswer | None, level: int) -> Drawn:
    """The sample of an image and a question. From level 2 on the question's first line names the numbers' source."""
    if qa is None:
        return None
    question = qa[0] if level == 1 else f"{table.caption}\n{qa[0]}"
    return (table.rows, qa[0]), SynthSample(spec, qa[1], table.file, question)


def _plan_chart(
    sampler: SplitSampler, index: int, bounds: ChartLevel, rng: random.Random
) -> tuple[DataTable, dict] | None:
    """What a chart about file `index` shows, and its spec; None where there is too little or no space for it."""
    chart = rng.choice(bounds.charts)
    table = _chart_table(sampler, index, chart, bounds, rng)
    if table is None:
        return None
    width, height = rng.choice(bounds.sizes)
    columns = [table.column(column) for column in range(len(table.columns))]

    def axes(columns: list[list[int]]) -> list[list[int]]:
        # two series share an axis, the two sides of a scatter chart do not
        shared = max(map(max, columns))
        return [nice_ticks(max(column) if chart == "scatter" else shared, most=bounds.steps) for column in columns]

    spec = {
        "type": "image",
        "renderer": "chart",
        "chart": chart,
        "labels": table.labels,
        "names": list(table.columns),
        "values": columns,
        "axes": axes(columns),
        "title": table.caption if rng.random() < bounds.title else "",
        "axis_name": bounds.axis_name and len(columns) == 1,
        "legend": chart != "scatter" and len(columns) > 1,
    }
    spec |= {"width": width, "height": height, "font": rng.choice(bounds.fonts), "style": rng.choice(bounds.styles)}
    rows = _rows_that_fit(spec, bounds.points[1])
    if len(rows) < bounds.points[0]:
        return None
    spec["labels"] = [table.labels[row] for row in rows]
    spec["values"] = [[column[row] for row in rows] for column in columns]
    if max(map(max, spec["values"])) < MIN_COLUMN_MAX:
        return None
    if chart != "scatter":
        # the greatest may be among those without space; a scatter chart's rows were found with these axes
        spec["axes"] = axes(spec["values"])
    return replace(table, rows=tuple(table.rows[row] for row in rows)), spec


def _chart_table(
    sampler: SplitSampler, index: int, chart: str, bounds: ChartLevel, rng: random.Random
) -> DataTable | None:
    """Numbers for a chart: of lines of the file, or of what has names; two columns to compare or for the axes of a
    scatter chart, one otherwise."""
    scatter, two = chart == "scatter", bounds.series == 2
    subjects = [name for name in SUBJECTS.get(chart, ()) if not two or scatter or name != "names"]
    subject = rng.choice(subjects) if subjects else "line"
    if subject == "line":
        names = rng.choice(COMPARABLE["line"]) if two else (rng.choice(("characters", "words", "symbols")),)
        return data_tables.sample_line_table(sampler, index, num_rows=bounds.points, names=names, rng=rng)
    columns = (3, 3) if scatter else (2, 2)
    # points whose labels would overlap others are left out again
    rows = (bounds.points[0], bounds.points[1] * (2 if scatter else 1))
    # long labels fit below bars no better than beside points
    label_chars = bounds.label_chars if chart == "hbar" else min(8, bounds.label_chars)
    limits = TableLevel(rows, columns, label_chars, digits=5, min_column_max=MIN_COLUMN_MAX)
    only = rng.choice(COMPARABLE[subject]) if two and not scatter else None
    return data_tables.sample_table(sampler, index, subject, limits, rng, only=only)


def _rows_that_fit(spec: dict, most: int) -> Sequence[int]:
    """The rows whose labels have space: the first ones along an axis, points of a scatter chart clear of each other."""
    font, labels, chart = spec["font"], spec["labels"], spec["chart"]
    left, bottom, right, top = margins(spec)
    across, upward = spec["width"] - left - right, spec["height"] - bottom - top
    if len(spec["title"]) * CHAR_WIDTH * font > across or (chart != "scatter" and 2 * across < spec["width"]):
        return ()
    if chart == "hbar":
        return range(min(len(labels), int(upward / (font + 3))))
    if chart != "scatter":
        return range(min(len(labels), int(across / (max(map(len, labels)) * CHAR_WIDTH * font + 4))))
    kept: list[int] = []
    taken: list[tuple[float, float, float, float]] = []
    for row, (label, first, second) in enumerate(zip(labels, *spec["values"], strict=True)):
        x, y = first / spec["axes"][0][-1] * across, second / spec["axes"][1][-1] * upward
        reach = 8 + len(label) * CHAR_WIDTH * font
        start, end = (x - reach, x + 4) if labelled_left(spec, first) else (x - 4, x + reach)
        box = (start, y - 0.7 * font, end, y + 0.7 * font)
        inside = start > -4 and end < across + right and y > 0.4 * font
        if inside and all(box[2] < o[0] or o[2] < box[0] or box[3] < o[1] or o[3] < box[1] for o in taken):
            kept.append(row)
            taken.append(box)
    return kept[:most]
