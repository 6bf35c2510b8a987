"""Draws bar, line and scatter charts with matplotlib, so that one recipe gives one picture to the byte.

Nothing of the user's matplotlib takes part: its settings are put aside for the drawing, the canvas is Agg's and no
window system's, the font is the file DejaVu Sans that matplotlib ships, and every tick, label and margin comes from the
recipe. matplotlib is imported where a chart is drawn, which costs a rendering process 1.5 s once; a chart takes about
40 ms. What comes out for another version of matplotlib may differ, so its version is part of the file's name.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from data.workbench.levels_screen import MAX_PIXELS
from data.workbench.picture import png_of

DPI = 72
"""With which a point is a pixel."""

STYLES = {
    # background, text and axes, grid, first series, second series
    "plain": ("#ffffff", "#000000", "#d8d8d8", "#303030", "#a0a0a0"),
    "soft": ("#ffffff", "#333333", "#e0e4ea", "#3b6fb6", "#e08a3c"),
    "paper": ("#f6f0e0", "#3a3020", "#ded4bc", "#8c2f39", "#2f6f6a"),
    "dark": ("#000000", "#f0f0f0", "#404040", "#d8d8d8", "#808080"),
    "night": ("#1b1e2b", "#d5d8e4", "#383c50", "#82aaff", "#f78c6c"),
    "slate": ("#2e3440", "#eceff4", "#4c566a", "#a3be8c", "#b48ead"),
}
MARKERS = ("o", "s")
LABEL_GAP = 3
"""Pixels between an axis and its labels."""


def render_chart(recipe: dict) -> bytes:
    """The PNG file of a chart recipe. Raises ValueError where labels run into each other or out of the picture.

    The recipe has `chart` ("bar", "hbar", "line", "scatter"), `labels` (of bars or points), `names` and `values` (one
    of each per series; for "scatter" across and upward), `axes` (ticks per series, evenly spaced from 0), `title` (""
    for none), `axis_name` and `legend` (whether to show), `width`, `height` and `font` in pixels, and `style`, a key of
    STYLES.
    """
    import matplotlib

    if recipe["width"] * recipe["height"] > MAX_PIXELS:
        raise ValueError(f"a chart of {recipe['width']} x {recipe['height']} has over {MAX_PIXELS} pixels")
    # the user's settings come back when the drawing is done
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        return png_of(_draw(recipe))


def _draw(recipe: dict):
    """The PIL picture of a recipe, RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    width, height = recipe["width"], recipe["height"]
    left, bottom, right, top = margins(recipe)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=STYLES[recipe["style"]][0])
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    )
    title = _prepare(axes, recipe)
    {"bar": _bars, "hbar": _bars, "line": _lines, "scatter": _points}[recipe["chart"]](axes, recipe)
    canvas.draw()
    _check_labels(axes, title, canvas.get_renderer())
    return Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")


def margins(recipe: dict) -> tuple[int, int, int, int]:
    """Pixels (left, bottom, right, top) around the axes, from the lengths of what is written there."""
    font = recipe["font"]
    digits = [len(str(axis[-1])) for axis in recipe["axes"]]
    longest = max(map(len, recipe["labels"])) if recipe["chart"] == "hbar" else digits[-1]
    below, beside = _axis_names(recipe)
    left = round(longest * 0.63 * font) + LABEL_GAP + 5 + (font + 4) * bool(beside)
    bottom = font + LABEL_GAP + 5 + (font + 4) * bool(below)
    # half of the last tick's number stands beyond the axis
    right = 6 + (round(digits[0] * 0.32 * font) if recipe["chart"] in ("hbar", "scatter") else 0)
    top = 5 + font // 2 + (font + 5) * (bool(recipe["title"]) + recipe["legend"])
    return left, bottom, right, top


def labelled_left(recipe: dict, x: float) -> bool:
    """Whether the label of a scatter chart's point at `x` stands to the left of it: on the side where there is room."""
    return x > 0.55 * recipe["axes"][0][-1]


def _axis_names(recipe: dict) -> tuple[str, str]:
    """What stands below the horizontal axis and beside the vertical one; "" for nothing."""
    if recipe["chart"] == "scatter":
        return recipe["names"][0], recipe["names"][1]
    name = recipe["names"][0] if recipe["axis_name"] else ""
    return (name, "") if recipe["chart"] == "hbar" else ("", name)


def _prepare(axes, recipe: dict):
    """Axes with their ticks, names and colours, the title, all in the one font; returns the title."""
    background, ink, grid, *_series = STYLES[recipe["style"]]
    axes.set_facecolor(background)
    axes.set_axisbelow(True)
    axes.tick_params(length=2, pad=LABEL_GAP, color=ink)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(ink)
    labels, chart = recipe["labels"], recipe["chart"]
    if chart == "scatter":
        _number_axis(axes.xaxis, axes.set_xlim, recipe["axes"][0], grid)
        _number_axis(axes.yaxis, axes.set_ylim, recipe["axes"][1], grid)
    elif chart == "hbar":
        _number_axis(axes.xaxis, axes.set_xlim, recipe["axes"][0], grid)
        axes.yaxis.set_ticks(range(len(labels)), labels=labels)
        # the first bar on top, as lists are read
        axes.set_ylim(len(labels) - 0.5, -0.5)
    else:
        _number_axis(axes.yaxis, axes.set_ylim, recipe["axes"][0], grid)
        axes.xaxis.set_ticks(range(len(labels)), labels=labels)
        axes.set_xlim(-0.5, len(labels) - 0.5)
    written = {"fontproperties": _font(recipe["font"]), "color": ink}
    below, beside = _axis_names(recipe)
    axes.set_xlabel(below, labelpad=2, **written)
    axes.set_ylabel(beside, labelpad=2, **written)
    # above the legend, which stands on the axes
    title = axes.set_title(recipe["title"], loc="left", pad=3 + (recipe["font"] + 5) * recipe["legend"], **written)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set(**written)
    return title


def _number_axis(axis, set_limits, ticks: list[int], grid: str) -> None:
    axis.set_ticks(ticks, labels=[str(tick) for tick in ticks])
    # a little beyond the last tick, so that its line is seen
    set_limits(0, ticks[-1] * 1.04)
    axis.grid(True, color=grid, linewidth=1)


def _bars(axes, recipe: dict) -> None:
    """One bar for each label and series, those of a label side by side."""
    colours = STYLES[recipe["style"]][3:]
    count = len(recipe["names"])
    thickness = 0.7 / count
    draw = axes.barh if recipe["chart"] == "hbar" else axes.bar
    for place, (name, values) in enumerate(zip(recipe["names"], recipe["values"], strict=True)):
        centres = [index + (place - (count - 1) / 2) * thickness for index in range(len(values))]
        draw(centres, values, thickness, color=colours[place], label=name)
    _legend(axes, recipe)


def _lines(axes, recipe: dict) -> None:
    """One line with its points for each series."""
    colours = STYLES[recipe["style"]][3:]
    for place, (name, values) in enumerate(zip(recipe["names"], recipe["values"], strict=True)):
        axes.plot(
            range(len(values)), values, color=colours[place], label=name,
            linewidth=1.5, marker=MARKERS[place], markersize=4, clip_on=False,
        )  # fmt: skip
    _legend(axes, recipe)


def _points(axes, recipe: dict) -> None:
    """Points with their labels beside them."""
    _background, ink, _grid, colour, _other = STYLES[recipe["style"]]
    across, upward = recipe["values"]
    axes.scatter(across, upward, s=18, color=colour, clip_on=False, linewidths=0, zorder=3)
    for label, x, y in zip(recipe["labels"], across, upward, strict=True):
        left = labelled_left(recipe, x)
        axes.annotate(
            label, (x, y), xytext=(-5 if left else 5, 0), textcoords="offset points", va="center",
            ha="right" if left else "left", color=ink, fontproperties=_font(recipe["font"]),
        )  # fmt: skip


def _legend(axes, recipe: dict) -> None:
    if not recipe["legend"]:
        return
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=len(recipe["names"]), frameon=False, prop=_font(recipe["font"]),
        labelcolor=STYLES[recipe["style"]][1], borderaxespad=0.2, borderpad=0, handlelength=1.2, columnspacing=1.2,
    )  # fmt: skip


def _check_labels(axes, title, renderer) -> None:
    """Raises ValueError where a text leaves the picture or two texts of a kind overlap: such a chart cannot be read."""
    canvas = axes.figure.bbox
    groups = {
        "labels below": axes.get_xticklabels(),
        "labels beside": axes.get_yticklabels(),
        "labels of points": axes.texts,
        "titles": [title, axes.xaxis.label, axes.yaxis.label],
    }
    for what, texts in groups.items():
        boxes = [text.get_window_extent(renderer) for text in texts if text.get_visible() and text.get_text()]
        for place, box in enumerate(boxes):
            if box.x0 < -1 or box.y0 < -1 or box.x1 > canvas.x1 + 1 or box.y1 > canvas.y1 + 1:
                raise ValueError(f"the chart's {what} do not fit the picture")
            if any(box.overlaps(other) for other in boxes[:place]):
                raise ValueError(f"the chart's {what} overlap")


@lru_cache
def _font(pixels: int):
    """The DejaVu Sans that matplotlib ships, by its file: a family's name could find another version of it."""
    import matplotlib
    from matplotlib.font_manager import FontProperties

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return FontProperties(fname=str(path), size=pixels)
