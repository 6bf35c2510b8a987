"""What each level of table, chart and screen allows, as tables; levels.py has the other kinds and the looks.

The same ladder: at level 1 every character stands in one of two places of a patch and three things are shown, level 2
shows more of them on the same grid and adds a dark style, level 3 adds sizes, frames and tasks that compare, level 4
margins, aggregates, two series, two panels. Tasks are named here and worded in questions.py and screen_questions.py.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_PIXELS = 1024 * 256
"""A picture fits 1,024 patches of 16 x 16 pixels without being scaled down."""


@dataclass(frozen=True)
class TableLevel:
    """Bounds of a table: `columns` counts the column with the labels, `rules` are the lines drawn, on the
    grid of levels 1 and 2 only those between columns: one below a row would hide underscores."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    label_chars: int
    digits: int
    peak: int
    """The least that the greatest number of a column may be."""
    subjects: tuple[str, ...]
    tasks: tuple[str, ...]
    rules: tuple[str, ...]
    aligns: tuple[str, ...]
    """Where numbers stand in their column."""
    title: float = 0.0
    """How often the caption is drawn above the table."""


TABLE = {
    1: TableLevel(
        rows=(2, 3), columns=(2, 2), label_chars=12, digits=4, peak=10,
        subjects=("functions", "names", "constants"), tasks=("cell",), rules=("none",), aligns=("left",),
    ),
    2: TableLevel(
        rows=(3, 5), columns=(2, 3), label_chars=14, digits=4, peak=5,
        subjects=("functions", "names", "constants", "classes"), tasks=("cell", "holder", "most", "fewest"),
        rules=("none", "columns"), aligns=("left", "right"),
    ),
    3: TableLevel(
        rows=(4, 8), columns=(3, 4), label_chars=18, digits=5, peak=3,
        subjects=("functions", "names", "classes", "files"),
        tasks=("cell", "holder", "most", "fewest", "sum", "difference", "over", "markdown"),
        rules=("none", "columns", "header", "grid"), aligns=("left", "right"), title=0.3,
    ),
    4: TableLevel(
        rows=(6, 12), columns=(4, 6), label_chars=22, digits=6, peak=3,
        subjects=("functions", "names", "classes", "files"),
        tasks=("most", "fewest", "sum", "difference", "total", "top", "over", "markdown", "csv"),
        rules=("none", "columns", "header", "grid"), aligns=("left", "right"), title=0.5,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ChartLevel:
    """Bounds of a chart. `points` are bars or points of one series, `sizes` pictures as (width, height) in pixels."""

    charts: tuple[str, ...]
    points: tuple[int, int]
    label_chars: int
    tasks: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    styles: tuple[str, ...]
    fonts: tuple[int, ...]
    """Heights of the font in pixels."""
    steps: int
    """The number axis has at most so many steps, and values are asked to the nearest one."""
    series: int = 1
    axis_name: bool = True
    """Whether the number axis of a single series is named; two series have a legend."""
    title: float = 0.0


CHART = {
    1: ChartLevel(
        charts=("bar",), points=(3, 3), label_chars=6, tasks=("most", "fewest", "value"), sizes=((144, 96),),
        styles=("plain",), fonts=(9,), steps=4, axis_name=False,
    ),
    2: ChartLevel(
        charts=("bar", "line"), points=(3, 6), label_chars=8, tasks=("most", "fewest", "value", "trend"),
        sizes=((208, 128), (224, 144)), styles=("plain", "dark"), fonts=(9, 10), steps=5,
    ),
    3: ChartLevel(
        charts=("bar", "hbar", "line", "scatter"), points=(4, 8), label_chars=14,
        tasks=("most", "fewest", "value", "trend"), sizes=((288, 176), (304, 208)),
        styles=("plain", "soft", "dark", "night"), fonts=(9, 10, 11), steps=6, title=0.3,
    ),
    4: ChartLevel(
        charts=("bar", "hbar", "line", "scatter"), points=(5, 12), label_chars=16,
        tasks=("most", "fewest", "value", "trend", "larger"), sizes=((352, 240), (384, 272), (416, 256)),
        styles=("plain", "soft", "paper", "dark", "night", "slate"), fonts=(9, 10, 11, 12), steps=7, series=2,
        title=0.5,
    ),
}  # fmt: skip

COMPARABLE = {
    "functions": (("arguments", "branches"), ("branches", "returns"), ("calls", "names"), ("calls", "lines")),
    "classes": (("methods", "branches"), ("calls", "branches")),
    "files": (("comments", "blank"), ("imports", "classes"), ("functions", "branches"), ("comments", "branches")),
    "line": (("words", "symbols"), ("indent", "words"), ("indent", "symbols")),
}
"""subject -> pairs of numbers of which either may be the larger: two series to compare."""


@dataclass(frozen=True)
class ScreenLevel:
    """Bounds of an interface of `num_panels` panels side by side."""

    panels: dict[str, tuple[int, int]]
    """kind of panel -> least and greatest number of its rows (form, menu), entries (tree) or commands (terminal)."""
    word_chars: int
    tasks: tuple[str, ...]
    num_panels: int = 1
    frames: bool = False
    """Whether panels may have a border and a title bar, menus a bar, and forms more space between rows."""
    prompts: tuple[str, ...] = ("$ ",)
    chars: int = 32
    """Longest line of a console, without its prompt."""


SCREEN = {
    1: ScreenLevel(panels={"form": (2, 2), "menu": (3, 3)}, word_chars=8, tasks=("value", "lit", "below")),
    2: ScreenLevel(
        panels={"form": (3, 5), "menu": (4, 6), "terminal": (2, 3)}, word_chars=10,
        tasks=("value", "left", "ticked", "is_ticked", "lit", "below", "above", "last", "output"),
    ),
    3: ScreenLevel(
        panels={"form": (4, 7), "menu": (4, 7), "terminal": (2, 4), "tree": (4, 8)}, word_chars=14,
        tasks=("value", "left", "ticked", "is_ticked", "button", "lit", "below", "above", "open", "parent", "last",
               "output", "texts"),
        frames=True, prompts=("$ ", "> ", "~ $ ", "user@host:~$ "), chars=40,
    ),
    4: ScreenLevel(
        panels={"form": (4, 8), "menu": (5, 9), "terminal": (3, 5), "tree": (6, 11)}, word_chars=16,
        tasks=("value", "left", "all_ticked", "is_ticked", "button", "lit", "below", "above", "open", "parent", "last",
               "output", "texts", "title"),
        num_panels=2, frames=True, prompts=("$ ", "> ", "~ $ ", "# "), chars=32,
    ),
}  # fmt: skip
