"""A `DocumentView` as one PNG, 1600 pixels wide: tokens, media, position ids and mask, one under the other.

    tokens      text readable, a box each; targets underlined; media in the colour of their modality, tokens counted
    image       put together from its patches, with the patch grid
    audio       mel over time, with a tick for every token (40 ms by default) and a line per block of a second
    video       frames with their times, and its audio track below
    positions   (t, h, w) of every token
    mask        query i sees key j; strong colour where it sees past itself, inside a media block

Long documents are truncated by the `MAX_*` below, and the image says so.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from brine.common.tables import sanitize
from brine.data.corpus.statistics import PART_TYPES
from brine.data.document import MODALITIES
from brine.data.inspect.check_plot import COLOURS, INK, new_figure, save_figure, style_axes
from brine.data.inspect.show import (
    DocumentView,
    MediaRange,
    mask_image,
    media_ranges,
    media_start_position,
    mel_spectrogram_of,
    modality_ids,
    pixels_of,
)
from brine.data.inspect.show_tokens import COLUMNS, TRAINED_ROLES, token_lines

WIDTH = 16.0
LEFT, INNER = 0.85, 14.8  # inches: left edge and width of every panel
MAX_LINES = 44
MAX_MEDIA = 8
MAX_FRAMES = 10
_MAX_TICKS = 400


class _Panel(NamedTuple):
    height: float  # inches, the title included
    draw: Callable  # takes the figure and the panel's top in inches from the bottom


def write_image(view: DocumentView, path: str | Path) -> Path:
    """Draw a view into a PNG; returns its path."""
    sequence, document = view.sequence, view.document
    counts = np.bincount(modality_ids(sequence), minlength=len(PART_TYPES))
    tokens = ", ".join(f"{count:,} {name}" for name, count in zip(PART_TYPES, counts.tolist(), strict=True) if count)
    media = media_ranges(view)
    panels = [_tokens_panel(view, media)]
    panels += [_PANELS[media_range.modality](view, media_range) for media_range in media[:MAX_MEDIA]]
    panels.append(_structure_panel(view, more=len(media) - MAX_MEDIA))
    height = 1.0 + sum(panel.height for panel in panels)
    facts = [document.kind, document.split, *filter(None, [document.source]), f"level {document.level}", view.origin]
    figure = new_figure(
        WIDTH,
        height,
        title=sanitize(document.id, 110),
        subtitle=sanitize("  ·  ".join([f"{len(sequence):,} tokens: {tokens}", *facts]), 190),
    )
    top = height - 1.0
    for panel in panels:
        panel.draw(figure, top)
        top -= panel.height
    return save_figure(figure, path)


def _axes(figure, left: float, top: float, width: float, height: float):
    high = figure.get_figheight()
    return figure.add_axes((left / WIDTH, (top - height) / high, width / WIDTH, height / high))


def _text(figure, left: float, top: float, words: str, **style) -> None:
    style = {"fontsize": 11.5, "va": "center", "parse_math": False} | style
    figure.text(left / WIDTH, top / figure.get_figheight(), words, **style)


def _range(media_range: MediaRange) -> str:
    return f"tokens {media_range.start:,} to {media_range.stop - 1:,}"


def _tokens_panel(view: DocumentView, media: list[MediaRange]) -> _Panel:
    lines, more = token_lines(view, media, max_lines=MAX_LINES)
    line_in = 0.215
    height = line_in * len(lines)

    def draw(figure, top):
        from matplotlib.collections import PolyCollection

        axes = _axes(figure, LEFT, top - 0.35, INNER, height)
        boxes, faces, marks = [], [], []
        # points an inch, over the width of a character of the font in ems
        font_size = INNER * 72 / COLUMNS / 0.602
        for row, line in enumerate(lines):
            column = 0
            for word, part, is_target in line:
                right = column + len(word)
                boxes.append([(column, row + 0.06), (right, row + 0.06), (right, row + 0.94), (column, row + 0.94)])
                faces.append(TRAINED_ROLES[is_target] if part == "text" else _pale(COLOURS[part]))
                if is_target:
                    marks.append([(column + 0.12, row + 0.87), (right - 0.12, row + 0.87),
                                  (right - 0.12, row + 0.94), (column + 0.12, row + 0.94)])  # fmt: skip
                column = right
            axes.text(0, row + 0.52, "".join(word for word, *_ in line), fontsize=font_size, family="DejaVu Sans Mono",
                      va="center", color=INK, parse_math=False)  # fmt: skip
        axes.add_collection(PolyCollection(boxes, facecolors=faces, edgecolors="white", linewidths=0.9, zorder=0))
        axes.add_collection(PolyCollection(marks, facecolors="#4f46e5", zorder=1))
        axes.set_xlim(0, COLUMNS)
        axes.set_ylim(len(lines), 0)
        axes.axis("off")
        words = "tokens   (underlined: a target; grey: context; ↵ line end; media tokens counted)"
        _text(figure, LEFT, top - 0.15, words + (f"   {more:,} more tokens are not drawn" if more else ""), color=INK)

    return _Panel(height + 0.65, draw)


def _pale(colour: str) -> tuple[float, ...]:
    return tuple(1 - 0.3 * (1 - value / 255) for value in bytes.fromhex(colour[1:]))


def _image_panel(view: DocumentView, media_range: MediaRange) -> _Panel:
    pixels = pixels_of(view, media_range)[0][0]
    high, wide = pixels.shape[:2]
    # small images are enlarged up to four times, large ones take at most 6.5 inches in height
    scale = min(4.0 / 100, 6.5 / high, (INNER - 4.3) / wide)
    size, grid = view.config.patch_size, (high // view.config.patch_size, wide // view.config.patch_size)
    height = max(high * scale, 1.0)

    def draw(figure, top):
        axes = _axes(figure, LEFT, top - 0.3, wide * scale, high * scale)
        axes.imshow(pixels, interpolation="nearest", extent=(0, wide, high, 0), aspect="auto")
        _grid(axes, wide, high, size)
        axes.set_xticks([]), axes.set_yticks([])
        _heading(axes, media_range, view)
        words = [
            f"{wide} x {high} pixels as encoded",
            f"{grid[0]} x {grid[1]} patches of {size} x {size}",
            f"{grid[0] * grid[1]:,} image tokens, one block",
            f"t = {media_start_position(view, media_range):g} for all; h and w from there",
        ]
        style = {"fontsize": 11, "color": "#374151", "va": "top", "linespacing": 1.6}
        _text(figure, LEFT + wide * scale + 0.25, top - 0.3, "\n".join(words), **style)

    return _Panel(height + 0.6, draw)


def _grid(axes, wide: int, high: int, size: int, *, strength: float = 1.0) -> None:
    """The lines between patches, dark under light so that they show on any image."""
    for colour, width, alpha in (("black", 1.4 * strength, 0.25), ("white", 0.6 * strength, 0.75)):
        axes.vlines(np.arange(0, wide + 1, size), 0, high, color=colour, linewidth=width, alpha=alpha)
        axes.hlines(np.arange(0, high + 1, size), 0, wide, color=colour, linewidth=width, alpha=alpha)
    axes.set_xlim(0, wide)
    axes.set_ylim(high, 0)


def _heading(axes, media_range: MediaRange, view: DocumentView) -> None:
    axes.set_title(
        f"{media_range.modality}  {sanitize(media_range.path, 90)}  ({_range(media_range)})",
        loc="left", fontsize=11.5, color=COLOURS[media_range.modality], pad=5, parse_math=False,
    )  # fmt: skip


def _audio_panel(view: DocumentView, media_range: MediaRange) -> _Panel:
    def draw(figure, top):
        axes = _axes(figure, LEFT, top - 0.3, INNER, 1.9)
        _draw_mel(axes, mel_spectrogram_of(view, media_range), view)
        _heading(axes, media_range, view)

    return _Panel(2.85, draw)


def _draw_mel(axes, mel: np.ndarray, view: DocumentView, *, end_s: float = 0.0) -> None:
    """Mel over seconds, low bands below; ticks are tokens, lines are blocks."""
    config = view.config
    seconds, num_tokens = len(mel) / 100, len(mel) // config.mel_frames_per_token
    axes.imshow(mel.T, origin="lower", aspect="auto", interpolation="nearest", cmap="magma", vmin=-1, vmax=1,
                extent=(0, seconds, 0, config.mel_bins))  # fmt: skip
    ticks = np.arange(0, num_tokens + 1)
    if num_tokens <= _MAX_TICKS:
        axes.vlines(ticks * config.time_step_s, 0, config.mel_bins * 0.045, color="white", linewidth=0.8)
    axes.vlines(np.arange(1, int(np.ceil(seconds))), 0, config.mel_bins, color="white", linewidth=0.7, alpha=0.6)
    axes.set_xlim(0, max(seconds, end_s))
    axes.set_ylim(0, config.mel_bins)
    hertz = [250, 500, 1000, 2000, 4000]
    top = _mel(config.sample_rate / 2)
    axes.set_yticks([_mel(hz) / top * config.mel_bins for hz in hertz], [f"{hz:,} Hz" for hz in hertz])
    note = (
        "too many tokens for ticks"
        if num_tokens > _MAX_TICKS
        else f"a tick is a token of {1000 * config.time_step_s:g} ms"
    )
    axes.set_xlabel(
        f"seconds   ({num_tokens:,} audio tokens; {note}, a line begins a block of one second)", fontsize=10
    )
    axes.tick_params(labelsize=9, colors="#374151")


def _mel(hertz: float) -> float:
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * np.log(hertz / 1000) / np.log(6.4)


def _video_panel(view: DocumentView, media_range: MediaRange) -> _Panel:
    frames, times = pixels_of(view, media_range)
    mel = mel_spectrogram_of(view, media_range)
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(MAX_FRAMES, len(frames))).round().astype(int))
    high, wide = frames.shape[1:3]
    gap, columns = 0.14, 5
    width = min((INNER - gap * (columns - 1)) / columns, 2.6 * wide / high)
    height = width * high / wide
    rows = -(-len(chosen) // columns)
    size = view.config.patch_size

    def draw(figure, top):
        for index, frame in enumerate(chosen):
            row, column = divmod(index, columns)
            below = top - 0.52 - row * (height + 0.34)
            axes = _axes(figure, LEFT + column * (width + gap), below, width, height)
            axes.imshow(frames[frame], interpolation="nearest", extent=(0, wide, high, 0), aspect="auto")
            _grid(axes, wide, high, size, strength=0.55)
            axes.set_xticks([]), axes.set_yticks([])
            axes.set_title(f"{times[frame]:.2f} s", fontsize=10, pad=3, color="#374151")
        tubelets, tubelet_frames = len(frames) // view.config.tubelet_frames, view.config.tubelet_frames
        words = (
            f"video  {sanitize(media_range.path, 70)}  ({_range(media_range)};  {len(chosen)} of {len(frames)} "
            f"frames;  {tubelets} tubelets of {tubelet_frames} frames,  {high // size} x {wide // size} patches each)"
        )
        _text(figure, LEFT, top - 0.13, words, color=COLOURS["video"])
        if len(mel):
            axes = _axes(figure, LEFT, top - 0.5 - rows * (height + 0.34), INNER, 1.5)
            _draw_mel(axes, mel, view, end_s=float(times[-1]))

    return _Panel(rows * (height + 0.34) + 0.55 + (2.2 if len(mel) else 0.0), draw)


_PANELS = {"image": _image_panel, "audio": _audio_panel, "video": _video_panel}


def _structure_panel(view: DocumentView, *, more: int) -> _Panel:

    def draw(figure, top):
        if more > 0:
            _text(figure, LEFT, top, f"{more:,} more media are not drawn")
        whole = len(view.sequence)
        media = media_ranges(view)
        # an image tells most; the axes part there
        first = next((span for span in media if span.modality == "image"), media[0] if media else None)
        parted = first is not None and whole > 2 * (first.stop - first.start)
        _draw_positions(_axes(figure, LEFT, top - 0.55, 6.6, 2.7 if parted else 6.2), view, 0, whole)
        if parted:
            around = max(0, first.start - 4), min(whole, first.stop + 4)
            _draw_positions(_axes(figure, LEFT, top - 4.2, 6.6, 2.7), view, *around)
        _draw_mask(_axes(figure, LEFT + 7.9, top - 0.55, 6.7, 6.7), view)

    return _Panel(7.9, draw)


def _draw_positions(axes, view: DocumentView, start: int, stop: int) -> None:
    position, positions = view.sequence.position, np.arange(start, stop)
    whole = stop - start == len(view.sequence)
    style_axes(axes, "position ids (t, h, w) of the tokens" if whole else "the same around one image, audio or video")
    dot = 1.0 if stop - start > 300 else 2.0
    for axis, name, colour, size in ((2, "w", "#0e9fb5", 3.2), (1, "h", "#db2777", 2.4), (0, "t", INK, 1.6)):
        axes.plot(positions, position[start:stop, axis], ".", markersize=dot * size, color=colour, label=name)
    kinds = modality_ids(view.sequence)[start:stop]
    edges = np.flatnonzero(np.diff(kinds)) + 1
    for first, last in zip([0, *edges], [*edges, len(kinds)], strict=True):
        if kinds[first]:
            span = (start + first - 0.5, start + last - 0.5)
            axes.axvspan(*span, color=COLOURS[PART_TYPES[kinds[first]]], alpha=0.14, linewidth=0)
    axes.set_xlabel("token", fontsize=10.5)
    axes.set_ylabel("text tokens, or time steps", fontsize=10.5)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(fontsize=10.5, frameon=False, markerscale=3 / dot, loc="upper left", ncols=3)


def _draw_mask(axes, view: DocumentView) -> None:
    mask, positions = mask_image(view.sequence)
    kinds = modality_ids(view.sequence)[positions]
    shown = "" if len(positions) == len(view.sequence) else f" ({len(positions):,} of {len(view.sequence):,} tokens)"
    style_axes(axes, f"mask{shown}")
    strong = np.array([list(bytes.fromhex(COLOURS[name][1:])) for name in PART_TYPES], np.float32)
    pale = 255 - 0.38 * (255 - strong)
    drawn = np.full((*mask.shape, 3), 255, np.uint8)
    for value, colours in ((1, pale), (2, strong)):
        seen = mask == value
        drawn[seen] = np.broadcast_to(colours[kinds].astype(np.uint8), drawn.shape)[seen]
    axes.imshow(drawn, interpolation="nearest" if len(positions) < 400 else "antialiased")
    ticks = np.arange(0, len(view.sequence), _tick_step(len(view.sequence)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(np.searchsorted(positions, ticks), [f"{tick:,}" for tick in ticks])
    axes.set_xlabel(
        "key j, in the colour of its modality   (strong: it comes after query i, in the same block)", fontsize=10
    )
    axes.set_ylabel("query i", fontsize=11)
    from matplotlib.patches import Patch

    present = [name for number, name in enumerate(("text", *MODALITIES)) if (kinds == number).any()]
    axes.legend(handles=[Patch(color=COLOURS[name], label=name) for name in present], fontsize=11, frameon=False,
                loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, columnspacing=1.2)  # fmt: skip


def _tick_step(count: int) -> int:
    """The smallest of 1, 2, 5, 10, 20 ... that gives at most ten ticks over `count`."""
    steps = (unit * 10**power for power in range(18) for unit in (1, 2, 5))
    return next(step for step in steps if count <= 10 * step)
