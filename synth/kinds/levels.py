"""What each level of difficulty allows, as tables: read here what a model is asked to learn.

Level 1 is for a tiny model. Its images hold two characters in every 16 x 16 patch: DejaVu Sans Mono at size 13 advances
8 pixels and fits a line of 16 without margins, so a glyph has one of two offsets in a patch. Its speech has one voice
and 300 words. Level 2 adds lines, rows and a dark style on the same grid, level 3 other sizes, borders and tasks that
compare, level 4 margins, aggregates, two series, two panels, ten voices and 8 s of video, and should leave work for a
large model. Tasks are named here and worded in data_tables.py and screens.py.
"""

from dataclasses import dataclass

PATCH = 16
"""Images and videos have sides in multiples of this, so that no encoder with 16-pixel patches must resize them."""
MAX_PIXELS = 1024 * PATCH**2
"""An image fits 1,024 patches without being scaled down."""
MAX_CELLS = 900
"""Characters times lines of a table or interface: in the largest font this still fits MAX_PIXELS."""
FRAMES_PER_SECOND = 10
MAX_VIDEO_S = 8.0
SAMPLE_RATE = 16000

LIGHT = ("default", "friendly", "tango", "vs", "xcode", "solarized-light", "gruvbox-light")
DARK = ("monokai", "native", "dracula", "github-dark", "one-dark", "nord", "solarized-dark", "gruvbox-dark")


@dataclass(frozen=True)
class RenderStyle:
    """How code is drawn. `styles` are Pygments styles (() = the config's level1_style), sizes in points."""

    styles: tuple[str, ...]
    sizes: tuple[int, ...] = (13,)
    margin: tuple[int, int] = (0, 0)
    """Minimum and maximum margin in pixels, left and top sampled separately."""
    leading: tuple[int, int] = (-1, -1)
    """Minimum and maximum pixels between lines, beyond the font's own height."""


RENDER_STYLES = {
    1: RenderStyle(styles=()),
    2: RenderStyle(styles=("default", "monokai")),
    3: RenderStyle(styles=LIGHT[:3] + DARK[:3], sizes=(12, 13, 14, 16), leading=(-1, 3)),
    4: RenderStyle(styles=LIGHT + DARK, sizes=(10, 11, 12, 13, 14, 15, 16, 17), margin=(0, 15), leading=(0, 4)),
}


@dataclass(frozen=True)
class RegionSpec:
    """Which code: a number of lines, and how many characters its longest line has."""

    lines: tuple[int, int]
    chars: tuple[int, int]
    blank_lines: bool = False
    """Whether lines in the middle may be empty."""


SCREENSHOT = {
    1: RegionSpec(lines=(1, 1), chars=(12, 32)),
    2: RegionSpec(lines=(1, 3), chars=(8, 48)),
    3: RegionSpec(lines=(2, 6), chars=(8, 64), blank_lines=True),
    4: RegionSpec(lines=(3, 12), chars=(12, 80), blank_lines=True),
}
PAGE_CODE = RegionSpec(lines=(3, 8), chars=(8, 80), blank_lines=True)
PAGE_VIDEO_FRACTION = {1: 0.25, 2: 0.5, 3: 0.5, 4: 0.5}


@dataclass(frozen=True)
class VoiceSpec:
    """How speech sounds: espeak-ng voices with variants, words per minute, pitch 0 to 99 (espeak's own scale)."""

    names: tuple[str, ...]
    rate: tuple[int, int]
    pitch: tuple[int, int]


_VOICE_NAMES = ("en-us", "en", "en-us+f2", "en-us+m3", "en+f4", "en-us+m7", "en-gb-scotland", "en-gb-x-rp", "en-029",
                "en-us+f5")  # fmt: skip
VOICES = {
    1: VoiceSpec(names=_VOICE_NAMES[:1], rate=(150, 150), pitch=(50, 50)),
    2: VoiceSpec(names=_VOICE_NAMES[:4], rate=(140, 180), pitch=(50, 50)),
    3: VoiceSpec(names=_VOICE_NAMES[:6], rate=(130, 200), pitch=(35, 65)),
    4: VoiceSpec(names=_VOICE_NAMES, rate=(120, 230), pitch=(25, 80)),
}
NUM_SPOKEN_PARTS = ((1, 0.1), (2, 0.45), (3, 0.45))


@dataclass(frozen=True)
class VideoSpec:
    """A recording's length in seconds, how the code moves, and how many of its lines a scrolling one shows."""

    seconds: tuple[float, float]
    modes: tuple[str, ...]
    visible_lines: tuple[int, int] = (1, 1)
    names: tuple[int, int] = (0, 0)
    """How many identifiers are narrated; (0, 0) is silent."""


VIDEO_REGION = {
    1: RegionSpec(lines=(1, 1), chars=(12, 24)),
    2: RegionSpec(lines=(1, 1), chars=(12, 40)),
    3: RegionSpec(lines=(2, 5), chars=(12, 48)),
    4: RegionSpec(lines=(10, 24), chars=(16, 64), blank_lines=True),
}
VIDEO = {
    1: VideoSpec(seconds=(2.0, 3.0), modes=("type",)),
    2: VideoSpec(seconds=(2.5, 4.0), modes=("type",), names=(1, 4)),
    3: VideoSpec(seconds=(3.0, 5.0), modes=("type", "scroll"), visible_lines=(2, 3), names=(1, 4)),
    4: VideoSpec(seconds=(6.0, 7.5), modes=("scroll",), visible_lines=(4, 8), names=(2, 5)),
}
TYPING_FRACTION = 0.6
"""The fraction of a video after which the last character is shown."""


@dataclass(frozen=True)
class TableLevel:
    """Bounds of a table: `columns` counts the column with the labels, `rules` are the lines drawn, on the grid of
    levels 1 and 2 only those between columns: one below a row would hide underscores."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    label_chars: int
    digits: int
    min_column_max: int
    """The least that the greatest number of a column may be."""
    subjects: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    rules: tuple[str, ...] = ("none", "columns", "header", "grid")
    aligns: tuple[str, ...] = ("left", "right")
    """Where numbers stand in their column."""
    title: float = 0.0
    """How often the caption is drawn above the table."""


TABLE = {
    1: TableLevel(
        rows=(2, 3), columns=(2, 2), label_chars=12, digits=4, min_column_max=10,
        subjects=("functions", "names", "constants"), tasks=("cell",), rules=("none",), aligns=("left",),
    ),
    2: TableLevel(
        rows=(3, 5), columns=(2, 3), label_chars=14, digits=4, min_column_max=5,
        subjects=("functions", "names", "constants", "classes"), tasks=("cell", "holder", "most", "fewest"),
        rules=("none", "columns"),
    ),
    3: TableLevel(
        rows=(4, 8), columns=(3, 4), label_chars=18, digits=5, min_column_max=3,
        subjects=("functions", "names", "classes", "files"),
        tasks=("cell", "holder", "most", "fewest", "sum", "difference", "over", "markdown"), title=0.3,
    ),
    4: TableLevel(
        rows=(6, 12), columns=(4, 6), label_chars=22, digits=6, min_column_max=3,
        subjects=("functions", "names", "classes", "files"),
        tasks=("most", "fewest", "sum", "difference", "total", "top", "over", "markdown", "csv"), title=0.5,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ChartLevel:
    """Bounds of a chart. `points` are bars or points of one series, `sizes` images as (width, height) in pixels."""

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
    bordered: bool = False
    """Whether panels may have a border and a title bar, and forms more space between rows."""
    prompts: tuple[str, ...] = ("$ ",)
    chars: int = 32
    """Longest line of a terminal, without its prompt."""


SCREEN = {
    1: ScreenLevel(panels={"form": (2, 2), "menu": (3, 3)}, word_chars=8, tasks=("value", "highlighted", "below")),
    2: ScreenLevel(
        panels={"form": (3, 5), "menu": (4, 6), "terminal": (2, 3)}, word_chars=10,
        tasks=("value", "left", "ticked", "is_ticked", "highlighted", "below", "above", "last", "output"),
    ),
    3: ScreenLevel(
        panels={"form": (4, 7), "menu": (4, 7), "terminal": (2, 4), "tree": (4, 8)}, word_chars=14,
        tasks=("value", "left", "ticked", "is_ticked", "button", "highlighted", "below", "above", "open", "parent",
               "last", "output", "texts"),
        bordered=True, prompts=("$ ", "> ", "~ $ ", "user@host:~$ "), chars=40,
    ),
    4: ScreenLevel(
        panels={"form": (4, 8), "menu": (5, 9), "terminal": (3, 5), "tree": (6, 11)}, word_chars=16,
        tasks=("value", "left", "all_ticked", "is_ticked", "button", "highlighted", "below", "above", "open", "parent",
               "last", "output", "texts", "title"),
        num_panels=2, bordered=True, prompts=("$ ", "> ", "~ $ ", "# "), chars=32,
    ),
}  # fmt: skip
