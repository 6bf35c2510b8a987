"""Draws bar, line and scatter charts with matplotlib, so that images of one spec are bit-identical.

The user's matplotlib settings are put aside, the canvas is Agg's, the font is the file DejaVu Sans that matplotlib
ships, and every tick, label and margin comes from the spec. Its import costs a rendering process 1.5 s once; a chart
takes about 40 ms. Another version may draw otherwise, so the version is part of the file's name.
"""

from functools import lru_cache
from pathlib import Path

from brine.synth.kinds.levels import MAX_PIXELS
from brine.synth.render.code_image import png_of

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


def render(spec: dict) -> bytes:
    """The PNG file of a chart spec. Raises ValueError where labels run into each other or out of the image.

    The spec has `chart` ("bar", "hbar", "line", "scatter"), `labels` (of bars or points), `names`, `values` and `axes`
    (each per series, for "scatter" across and upward; ticks are evenly spaced from 0), `title` ("" for none),
    `axis_name` and `legend` (whether to show), `width`, `height` and `font` in pixels, and `style`, a key of STYLES.
    """
    import matplotlib

    if spec["width"] * spec["height"] > MAX_PIXELS:
        raise ValueError(f"a chart of {spec['width']} x {spec['height']} has over {MAX_PIXELS} pixels")
    # the user's settings come back when the drawing is done
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        return _draw(spec)


def margins(spec: dict) -> tuple[int, int, int, int]:
    """Pixels (left, bottom, right, top) around the axes, from the lengths of what is written there."""
    font = spec["font"]
    digits = [len(str(axis[-1])) for axis in spec["axes"]]
    longest = max(map(len, spec["labels"])) if spec["chart"] == "hbar" else digits[-1]
    below, beside = _axis_names(spec)
    left = round(longest * 0.63 * font) + LABEL_GAP + 5 + (font + 4) * bool(beside)
    bottom = font + LABEL_GAP + 5 + (font + 4) * bool(below)
    # half of the last tick's number stands beyond the axis
    right = 6 + (round(digits[0] * 0.32 * font) if spec["chart"] in ("hbar", "scatter") else 0)
    top = 5 + font // 2 + (font + 5) * (bool(spec["title"]) + spec["legend"])
    return left, bottom, right, top


def labelled_left(spec: dict, x: float) -> bool:
    """Whether the label of a scatter chart's point at `x` stands to the left of it, where there is space."""
    return x > 0.55 * spec["axes"][0][-1]


def _draw(spec: dict) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    width, height, chart = spec["width"], spec["height"], spec["chart"]
    left, bottom, right, top = margins(spec)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=STYLES[spec["style"]][0])
    canvas = FigureCanvasAgg(figure)
    area = (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    axes = figure.add_axes(area)
    title = _prepare(axes, spec)
    (_draw_points if chart == "scatter" else _draw_series)(axes, spec)
    canvas.draw()
    _check_labels(axes, title, canvas.get_renderer())
    return png_of(Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB"))


def _axis_names(spec: dict) -> tuple[str, str]:
    if spec["chart"] == "scatter":
        return spec["names"][0], spec["names"][1]
    name = spec["names"][0] if spec["axis_name"] else ""
    return (name, "") if spec["chart"] == "hbar" else ("", name)


def _prepare(axes, spec: dict):
    """Axes with their ticks, names and colours, the title, all in the one font; returns the title."""
    background, ink, grid, *_series = STYLES[spec["style"]]
    axes.set_facecolor(background)
    axes.set_axisbelow(True)
    axes.tick_params(length=2, pad=LABEL_GAP, color=ink)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(ink)
    chart, labels = spec["chart"], spec["labels"]
    sides = [(axes.xaxis, axes.set_xlim), (axes.yaxis, axes.set_ylim)]
    # one axis of numbers, the other of labels; a scatter chart has two of numbers
    numeric = {"scatter": sides, "hbar": sides[:1]}.get(chart, sides[1:])
    for (axis, set_limits), ticks in zip(numeric, spec["axes"], strict=False):
        axis.set_ticks(ticks, labels=list(map(str, ticks)))
        # a little beyond the last tick, so that its line is seen
        set_limits(0, ticks[-1] * 1.04)
        axis.grid(True, color=grid, linewidth=1)
    if chart == "hbar":
        axes.yaxis.set_ticks(range(len(labels)), labels=labels)
        # the first bar on top, as lists are read
        axes.set_ylim(len(labels) - 0.5, -0.5)
    elif chart != "scatter":
        axes.xaxis.set_ticks(range(len(labels)), labels=labels)
        axes.set_xlim(-0.5, len(labels) - 0.5)
    written = {"fontproperties": _font(spec["font"]), "color": ink}
    below, beside = _axis_names(spec)
    axes.set_xlabel(below, labelpad=2, **written)
    axes.set_ylabel(beside, labelpad=2, **written)
    # above the legend, which stands on the axes
    title = axes.set_title(spec["title"], loc="left", pad=3 + (spec["font"] + 5) * spec["legend"], **written)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set(**written)
    return title


def _draw_series(axes, spec: dict) -> None:
    """Bars, those of a label side by side, or lines with their points; a legend above them."""
    _background, ink, _grid, *colours = STYLES[spec["style"]]
    count, chart = len(spec["names"]), spec["chart"]
    for number, (name, values) in enumerate(zip(spec["names"], spec["values"], strict=True)):
        common = {"color": colours[number], "label": name}
        if chart == "line":
            line = {"linewidth": 1.5, "marker": MARKERS[number], "markersize": 4, "clip_on": False}
            axes.plot(range(len(values)), values, **common, **line)
        else:
            thickness = 0.7 / count
            centres = [index + (number - (count - 1) / 2) * thickness for index in range(len(values))]
            (axes.barh if chart == "hbar" else axes.bar)(centres, values, thickness, **common)
    if spec["legend"]:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=count, frameon=False, prop=_font(spec["font"]),
            labelcolor=ink, borderaxespad=0.2, borderpad=0, handlelength=1.2, columnspacing=1.2,
        )  # fmt: skip


def _draw_points(axes, spec: dict) -> None:
    _background, ink, _grid, colour, _other = STYLES[spec["style"]]
    across, upward = spec["values"]
    axes.scatter(across, upward, s=18, color=colour, clip_on=False, linewidths=0, zorder=3)
    for label, x, y in zip(spec["labels"], across, upward, strict=True):
        offset, align = (-5, "right") if labelled_left(spec, x) else (5, "left")
        text = {"va": "center", "ha": align, "color": ink, "fontproperties": _font(spec["font"])}
        axes.annotate(label, (x, y), xytext=(offset, 0), textcoords="offset points", **text)


def _check_labels(axes, title, renderer) -> None:
    """Raises ValueError where a text leaves the image or two texts of a kind overlap: such a chart cannot be read."""
    canvas = axes.figure.bbox
    groups = {
        "labels below": axes.get_xticklabels(),
        "labels beside": axes.get_yticklabels(),
        "labels of points": axes.texts,
        "titles": [title, axes.xaxis.label, axes.yaxis.label],
    }
    for what, texts in groups.items():
        boxes = [text.get_window_extent(renderer) for text in texts if text.get_visible() and text.get_text()]
        for number, box in enumerate(boxes):
            if box.x0 < -1 or box.y0 < -1 or box.x1 > canvas.x1 + 1 or box.y1 > canvas.y1 + 1:
                raise ValueError(f"the chart's {what} do not fit the image")
            if any(box.overlaps(other) for other in boxes[:number]):
                raise ValueError(f"the chart's {what} overlap")


@lru_cache
def _font(pixels: int):
    """The DejaVu Sans that matplotlib ships, by its file: a family's name could find another version of it."""
    import matplotlib
    from matplotlib.font_manager import FontProperties

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return FontProperties(fname=str(path), size=pixels)
