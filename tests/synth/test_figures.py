"""Tables and charts: the numbers are the source's, the answers right, the images what was planned.

Answers are worked out here once more, from the recipe alone and in other words than the code that made them.
"""

import ast
import csv
import io
import re
from collections import Counter
from functools import cache

import numpy as np
import pytest

from brine.synth.kinds.levels import CHART, MAX_PIXELS, TABLE
from brine.synth.render.chart import STYLES, margins
from brine.synth.render_worker import Renderer
from brine.synth.sources.code_metrics import line_numbers
from tests.synth.planned_corpus import LEVELS, drawn, image_of, plain


def solve_table(question: str, header: list[str], rows: list[list[str]]) -> str:
    """The answer, from the strings that stand in the image."""
    by_label = {row[0]: dict(zip(header[1:], map(int, row[1:]), strict=True)) for row in rows}
    if match := re.fullmatch(r"(\w+) of (\S+) (together|and (\S+) together|less that of (\S+))\?", question):
        first, second = by_label[match[2]][match[1]], by_label[match[4] or match[5]][match[1]]
        return str(first + second if match[4] else first - second)
    if match := re.fullmatch(r"(\w+) of (\S+)\?", question):
        return str(by_label[match[2]][match[1]])
    if match := re.fullmatch(r"Which \w+ has (\w+) (\d+)\?", question):
        (label,) = [label for label, cells in by_label.items() if cells[match[1]] == int(match[2])]
        return label
    if match := re.fullmatch(r"Which \w+ is (largest|smallest) by (\w+)\?", question):
        values = {label: cells[match[2]] for label, cells in by_label.items()}
        best = max(values.values()) if match[1] == "largest" else min(values.values())
        (label,) = [label for label, value in values.items() if value == best]
        return label
    if match := re.fullmatch(r"Sum of the column (\w+)\?", question):
        return str(sum(cells[match[1]] for cells in by_label.values()))
    if match := re.fullmatch(r"How many have (\w+) over (\d+)\?", question):
        return str(len([1 for cells in by_label.values() if cells[match[1]] > int(match[2])]))
    if match := re.fullmatch(r"The three largest by (\w+), largest first\?", question):
        ranked = sorted(((cells[match[1]], label) for label, cells in by_label.items()), reverse=True)
        assert len({value for value, _label in ranked[:4]}) == 4
        return ", ".join(label for _value, label in ranked[:3])
    raise AssertionError(f"an unknown question: {question}")


@pytest.mark.parametrize("level", LEVELS)
def test_table_answers_are_right(planned, level):
    for spec, question, answer, _item in planned.of("table", level):
        header, rows = spec["header"], spec["rows"]
        if question == "Write the table as CSV.":
            assert list(csv.reader(io.StringIO(answer))) == [header, *rows]
        elif question == "Write the table as Markdown.":
            lines = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in answer.split("\n")]
            assert (lines[0], set(lines[1]), lines[2:]) == (header, {"---"}, rows)
        else:
            assert answer == solve_table(question, header, rows), question


@pytest.mark.parametrize("level", LEVELS)
def test_table_keeps_its_levels_bounds(planned, level):
    bounds = TABLE[level]
    for spec, _question, _answer, item in planned.of("table", level):
        assert bounds.rows[0] <= len(spec["rows"]) <= bounds.rows[1]
        assert bounds.columns[0] <= len(spec["header"]) <= bounds.columns[1]
        assert spec["rules"] in bounds.rules and (level > 2 or spec["title"] == "")
        labels = [row[0] for row in spec["rows"]]
        assert len(set(labels)) == len(labels) and max(map(len, labels)) <= bounds.label_chars
        for column in list(zip(*spec["rows"], strict=True))[1:]:
            assert max(map(int, column)) >= bounds.min_column_max and len(set(column)) > 1
        source = item["content"][1]["text"].split("\n")[0]
        assert level == 1 or source.split(" of ")[1] in (item["source"], "this source", "json", "http")


def counted_again(text: str, what: str, label: str) -> dict[str, set[int]]:
    """column -> the numbers that something called `label` has in a file, for the columns that are easily counted."""
    if what == "name":
        rows = [row for row, line in enumerate(text.split("\n"), 1) if re.search(rf"\b{label}\b", line)]
        return {"lines": {len(rows)}, "first": {rows[0]}, "last": {rows[-1]}}
    if what == "constant":
        return {"value": {int(n, 0) for n in re.findall(rf"^\s*{label} = (0[xob]\w+|\d+)", text, re.M)}}
    if what == "file":
        return {"lines": {len(text.removesuffix("\n").split("\n"))}, "words": {len(re.findall(r"\S+", text))}}
    return {"lines": {node.end_lineno - node.lineno + 1 for node in definitions(text) if node.name == label}}


@cache
def definitions(text: str) -> list[ast.AST]:
    """All that has a name and a body, of a file that many tables ask for."""
    return [node for node in ast.walk(ast.parse(text)) if getattr(node, "name", "") and hasattr(node, "body")]


@pytest.mark.slow
def test_table_numbers_are_the_sources(planned):
    """Counted again in the file, by other means."""
    seen = Counter()
    for spec, _question, _answer, item in planned.of("table")[::3]:
        what = spec["header"][0]
        for label, *numbers in spec["rows"]:
            paths = [item["source"]]
            if what == "file":
                paths = [path for path in planned.text if path.split("/")[-1] == label]
            found = [counted_again(planned.text[path], what, label) for path in paths]
            for column, number in zip(spec["header"][1:], map(int, numbers), strict=True):
                if column in found[0]:
                    assert any(number in numbers[column] for numbers in found), (item["id"], label, column)
                    seen[what] += 1
    assert set(seen) == {"name", "constant", "function", "class", "file"} and min(seen.values()) >= 5


def test_table_of_level_1_stands_on_the_patch_grid(planned):
    """Each character in its own 8 x 16 cell, columns at the left edge of a patch, and not a dot besides."""
    for spec, _question, _answer, _item in planned.of("table", 1)[:30]:
        ink = image_of(spec).mean(axis=2) < 110
        expected = np.zeros_like(ink)
        start = 0
        for column in zip(spec["header"], *spec["rows"], strict=True):
            assert start % 2 == 0
            for row, text in enumerate(column):
                for place, char in enumerate(text):
                    x = 8 * (start + place)
                    expected[16 * row : 16 * row + 16, x : x + 8] = plain(char)
            width = max(map(len, column))
            start += width + width % 2 + 2
        assert np.array_equal(ink, expected)


def solve_chart(question: str, spec: dict) -> str:
    series = dict(zip(spec["names"], spec["values"], strict=True))
    if match := re.fullmatch(r"Which \w+ is (largest|smallest) by (\w+)\?", question):
        values = series[match[2]]
        best = max(values) if match[1] == "largest" else min(values)
        assert values.count(best) == 1
        return spec["labels"][values.index(best)]
    if match := re.fullmatch(r"(\w+) from line (\d+) to (\d+): rises, falls or flat\?", question):
        start, end = (series[match[1]][spec["labels"].index(match[place])] for place in (2, 3))
        return "rises" if end > start else "falls" if end < start else "flat"
    if match := re.fullmatch(r"Which is larger at (?:line )?(\S+), (\w+) or (\w+)\?", question):
        place = spec["labels"].index(match[1])
        return match[2] if series[match[2]][place] > series[match[3]][place] else match[3]
    match = re.fullmatch(r"(\w+) of (?:line )?(\S+?)(?:, to the nearest (\d+))?\?", question)
    value, step = series[match[1]][spec["labels"].index(match[2])], int(match[3] or 1)
    nearest = [tick for tick in range(0, value + 2 * step, step) if abs(tick - value) * 2 < step]
    assert len(nearest) == 1, f"{value} lies midway"
    return str(nearest[0])


@pytest.mark.parametrize("level", LEVELS)
def test_chart_answers_are_right(planned, level):
    tasks = Counter()
    for spec, question, answer, _item in planned.of("chart", level):
        assert answer == solve_chart(question, spec), question
        tasks["value" if question.split()[1] == "of" else question.split()[2]] += 1
        if ", to the nearest" in question:
            # as the axis allows: to one of its ticks
            assert any(int(answer) in axis for axis in spec["axes"])
    # largest and smallest; trends of lines from level 2 on; larger of two at level 4
    assert {"value", "is"} <= set(tasks) and ("from" in str(planned.of("chart", level)) or level == 1)
    assert (level < 4) or "larger" in str([question for _r, question, _a, _i in planned.of("chart", level)])


@pytest.mark.parametrize("level", LEVELS)
def test_chart_keeps_its_levels_bounds(planned, level):
    bounds = CHART[level]
    kinds = set()
    for spec, _question, _answer, _item in planned.of("chart", level):
        kinds.add(spec["chart"])
        assert bounds.points[0] <= len(spec["labels"]) <= bounds.points[1]
        assert (spec["width"], spec["height"]) in bounds.sizes and spec["style"] in bounds.styles
        assert len(spec["names"]) == (2 if spec["chart"] == "scatter" else bounds.series)
        for values, ticks in zip(spec["values"], spec["axes"], strict=True):
            assert len(values) == len(spec["labels"]) and min(values) >= 0 and max(values) <= ticks[-1]
            assert ticks[0] == 0 and len(set(np.diff(ticks))) == 1 and len(ticks) <= bounds.steps + 1
    assert kinds == set(bounds.charts)


def test_line_charts_show_the_lines_of_the_file(planned):
    for spec, _question, _answer, item in planned.of("chart"):
        if spec["chart"] == "line":
            lines = planned.text[item["source"]].split("\n")
            for name, values in zip(spec["names"], spec["values"], strict=True):
                shown = [lines[int(label) - 1].expandtabs(4).rstrip() for label in spec["labels"]]
                assert values == [line_numbers(line)[name] for line in shown]


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_bars_are_as_long_as_the_axis_says(planned, level):
    """Measured in the image: a bar's pixels, along its middle, against its number on the axis."""
    checked = refused = 0
    for spec, _question, _answer, _item in planned.of("chart", level)[:16]:
        try:
            image = image_of(spec).astype(int)
        except ValueError as error:
            assert "the chart's" in str(error)
            refused += 1
            continue
        assert image.shape == (spec["height"], spec["width"], 3)
        assert spec["height"] % 16 == spec["width"] % 16 == 0
        assert spec["height"] * spec["width"] <= MAX_PIXELS
        if spec["chart"] not in ("bar", "hbar"):
            continue
        left, bottom, right, top = margins(spec)
        plot = image[top : spec["height"] - bottom, left : spec["width"] - right]
        # now the first axis is the one that labels stand along, the second that of numbers
        plot = plot if spec["chart"] == "hbar" else plot.swapaxes(0, 1)
        slot, count = plot.shape[0] / len(spec["labels"]), len(spec["names"])
        for place, values in enumerate(spec["values"]):
            colour = np.array([int(STYLES[spec["style"]][3 + place][at : at + 2], 16) for at in (1, 3, 5)])
            for index, value in enumerate(values):
                middle = (index + 0.5 + (place - (count - 1) / 2) * 0.7 / count) * slot
                length = (np.abs(plot[int(middle)] - colour).max(axis=1) < 12).sum()
                assert abs(length - value / (1.04 * spec["axes"][0][-1]) * plot.shape[1]) < 2.5
                checked += 1
    assert refused <= 1 and checked > 4


def test_chart_is_the_same_whatever_matplotlib_was_told(planned):
    import matplotlib

    spec = planned.of("chart", 4)[0][0]
    before = drawn(spec)
    told = {"font.size": 30, "lines.linewidth": 9, "axes.facecolor": "red", "text.antialiased": False}
    with matplotlib.rc_context(told):
        assert drawn(spec) == before
        assert matplotlib.rcParams["font.size"] == 30


def test_a_chart_that_cannot_be_read_is_a_reject(planned, tmp_path):
    spec = next(spec for spec, *_ in planned.of("chart", 1))
    renderer = Renderer(tmp_path, utterance_timeout_s=1)
    long = {**spec, "labels": ["a_name_that_is_long", "another_long_name", "and_a_third_one"]}
    assert renderer.render("media/x.png", long).startswith("the chart's labels below")
    assert "over" in renderer.render("media/x.png", {**spec, "width": 16000})
    table = {
        "type": "image",
        "renderer": "table",
        "title": "",
        "header": ["name", "lines"],
        "rows": [["x" * 999, "1"]] * 99,
    }
    look = {"style": "bw", "size": 13, "left": 0, "top": 0, "leading": -1, "rules": "none", "align": "left"}
    assert "does not fit" in renderer.render("media/x.png", {**table, **look})
    assert "Pygments has no style" in renderer.render("media/x.png", {**table, **look, "style": "no-such"})
    assert not (tmp_path / "media").exists()
