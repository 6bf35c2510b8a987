"""The plot of a check: how long documents are and what they are made of; `new_figure` and its like serve other plots.

Figures are made without pyplot, which holds global state, and matplotlib is imported only when one is plotted. File
names and kinds are printed as they are: a dollar sign in them is not a formula.
"""

from pathlib import Path

import numpy as np

from brine.common.tables import percent, sanitize
from brine.data.corpus.statistics import PART_TYPES, CorpusStats

COLOURS = {"text": "#6b7280", "image": "#2f6fde", "audio": "#12a150", "video": "#e08a00"}
"""Of the modalities, in every image of the data package."""
_KIND_COLOURS = ("#31688e", "#e07a5f", "#81b29a", "#f2cc8f", "#7d5ba6", "#c44569", "#4f9dde", "#b8bec7")
INK, FAINT = "#1f2937", "#d1d5db"
MAX_BARS = 22


def new_figure(width: float, height: float, *, title: str, subtitle: str):
    """A figure of `width` x `height` inches with a heading, to be saved at 100 dots an inch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    left, top = 0.3 / width, 1 - 0.32 / height
    figure.text(left, top, title, fontsize=17, fontweight="bold", color=INK, va="center", parse_math=False)
    figure.text(left, top - 0.33 / height, subtitle, fontsize=11.5, color="#4b5563", va="center", parse_math=False)
    return figure


def style_axes(axes, title: str) -> None:
    """The common look of a panel: a title at the left, thin lines at the left and below only."""
    axes.set_title(title, loc="left", fontsize=12.5, color=INK, pad=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#9ca3af")
    axes.tick_params(labelsize=10, colors="#374151")


def save_figure(figure, path: str | Path) -> Path:
    """Write a figure as PNG. Raises ValueError when the path cannot be written."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # no date and no version of a library in the file: the same counts give bit-identical files
        figure.savefig(path, format="png", metadata={"Software": None})
    except OSError as error:
        raise ValueError(f"image {path} cannot be written ({error.strerror})") from None
    return path


def plot_stats(stats: CorpusStats, path: str | Path, *, name: str) -> Path:
    """Lengths by kind, tokens by kind and modality, and reasons of quarantined samples; 1600 pixels wide."""
    reasons = sorted(stats.reasons.items(), key=lambda item: -item[1][0])[:6]
    num_bars = min(len(stats.kinds), MAX_BARS)
    main = max(5.2, 0.34 * num_bars + 1.6)
    height = 1.4 + main + (0.5 + 0.38 * len(reasons) if reasons else 0.0)
    parts = ", ".join(f"{stats.parts[part]:,} {part}" for part in PART_TYPES if stats.parts[part])
    figure = new_figure(
        16,
        height,
        title=sanitize(name, 110),
        subtitle=f"{stats.num_documents:,} documents  ·  {int(stats.total.sum()):,} tokens  ·  parts: {parts or 'none'}"
        f"  ·  {stats.num_quarantined:,} quarantined",
    )
    top, bottom = 1 - 1.25 / height, 1 - (0.75 + main) / height
    left = figure.add_gridspec(1, 1, left=0.05, right=0.45, top=top, bottom=bottom)
    _lengths(figure.add_subplot(left[0]), stats)
    right = figure.add_gridspec(1, 2, left=0.6, right=0.98, top=top, bottom=bottom, width_ratios=(1, 0.62), wspace=0.06)
    _tokens(figure.add_subplot(right[0]), figure.add_subplot(right[1]), stats)
    if reasons:
        _reasons(figure, reasons, top=bottom - 0.85 / height, step=0.38 / height)
    return save_figure(figure, path)


def _lengths(axes, stats: CorpusStats) -> None:
    style_axes(axes, "documents by length")
    lengths = stats.all_lengths()
    axes.set_xlabel("tokens in a document", fontsize=11)
    axes.set_ylabel("documents", fontsize=11)
    if not len(lengths):
        return
    low, high = np.floor(np.log2(max(1, lengths.min()))), np.log2(lengths.max() + 1)
    edges = 2 ** np.arange(low, high + 0.26, 0.25 if high - low > 3 else 0.125)
    kinds = list(stats.kinds)
    shown = kinds[: len(_KIND_COLOURS) - (len(kinds) > len(_KIND_COLOURS))]
    groups = [(sanitize(kind, 30), [kind]) for kind in shown]
    if rest := kinds[len(shown) :]:
        groups.append((f"{len(rest)} more kinds", rest))
    columns = [np.concatenate([np.frombuffer(stats.lengths[kind], np.int64) for kind in some]) for _, some in groups]
    labels = [label.replace("$", r"\$") for label, _ in groups]
    style = {"color": _KIND_COLOURS[: len(groups)], "edgecolor": "white", "linewidth": 0.5}
    axes.hist(columns, bins=edges, stacked=True, label=labels, **style)
    axes.set_xscale("log", base=2)
    axes.set_xlim(edges[0] / 1.1, edges[-1] * 1.1)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.get_major_locator().set_params(integer=True)
    middle = float(np.median(lengths))
    axes.axvline(middle, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"median {middle:,.0f}", (middle, 1), xycoords=("data", "axes fraction"), xytext=(5, -4),
        textcoords="offset points", fontsize=10, color=INK, va="top",
    )  # fmt: skip
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(fontsize=10, frameon=False, loc="best")


def _tokens(axes, shares, stats: CorpusStats) -> None:
    style_axes(axes, "tokens by kind and modality")
    style_axes(shares, "the same, in percent")
    order = sorted(stats.tokens, key=lambda kind: (-stats.tokens[kind].sum(), kind))
    bars = [(sanitize(kind, 26), stats.tokens[kind]) for kind in order[:MAX_BARS]]
    if rest := order[MAX_BARS:]:
        bars[-1] = (f"{len(rest) + 1} more kinds", sum(stats.tokens[kind] for kind in order[MAX_BARS - 1 :]))
    if not bars:
        return
    counts = np.array([count for _, count in bars], dtype=np.float64)
    ticks, left, whole = np.arange(len(bars)), np.zeros(len(bars)), stats.total
    each = counts.sum(axis=1)
    for column, part in enumerate(PART_TYPES):
        if whole[column]:
            label = f"{part}  {percent(whole[column], whole.sum())}"
            axes.barh(ticks, counts[:, column], left=left, color=COLOURS[part], label=label, height=0.72)
            shares.barh(ticks, 100 * counts[:, column] / each, left=100 * left / each, color=COLOURS[part], height=0.72)
        left += counts[:, column]
    for x, total in zip(ticks, each, strict=True):
        axes.annotate(
            f"{total:,.0f}", (total, x), xytext=(5, 0), textcoords="offset points", va="center",
            fontsize=10, color="#374151",
        )  # fmt: skip
    axes.set_yticks(ticks, [name for name, _ in bars], parse_math=False)
    shares.set_yticks([])
    axes.set_xlim(0, each.max() * 1.3)
    shares.set_xlim(0, 100)
    axes.xaxis.get_major_locator().set_params(nbins=5)
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    for some in (axes, shares):
        some.set_ylim(len(bars) - 0.4, -0.6)
        some.grid(axis="x", color=FAINT, linewidth=0.6)
        some.set_axisbelow(True)
    axes.legend(fontsize=10.5, frameon=False, loc="lower right")


def _reasons(figure, reasons: list, *, top: float, step: float) -> None:
    figure.text(0.05, top, "quarantined, by reason", fontsize=12.5, color=INK, va="center")
    for number, (reason, (count, example)) in enumerate(reasons, start=1):
        where = sanitize(example.file or example.id, 50)
        for x, text, align, colour in (
            (0.09, f"{count:,}", "right", "#b91c1c"),
            (0.1, f"{sanitize(reason, 110)}   (e.g. {where})", "left", "#374151"),
        ):
            figure.text(x, top - number * step, text, fontsize=10.5, color=colour, ha=align, va="center",
                        parse_math=False)  # fmt: skip


def _short(value: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"
