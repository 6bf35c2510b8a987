"""Tables for a terminal by rich, bars and sparklines; plain characters and no colour where the output is piped.

Text from outside (ids, kinds, reasons) goes through `sanitize`, so that a file name cannot move the cursor. rich is
imported where it is used.
"""

import sys
from collections.abc import Iterable, Sequence

import numpy as np

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_HEIGHTS = " ▁▂▃▄▅▆▇█"
_PLAIN_WIDTH = 100_000


def sanitize(text: str, width: int = 200) -> str:
    """The text with control characters replaced, truncated to `width` characters."""
    text = "".join(char if char.isprintable() else "�" for char in text[: width + 1])
    return text if len(text) <= width else text[: width - 1] + "…"


def table(head: Sequence[str], rows: Iterable[Sequence], *, foot: Sequence | None = None):
    """A rich table: the first column left-aligned, the others right-aligned, counts with thousands separators."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    body = [[_cell(value) for value in row] for row in rows]
    last = [_cell(value) for value in foot] if foot is not None else [""] * len(head)
    made = Table(box=box.SIMPLE_HEAD, show_footer=foot is not None, show_edge=False, padding=(0, 1, 0, 0))
    for column, name in enumerate(head):
        # on a narrow terminal headings fold, values do not
        widest = max(map(len, (last[column], *(row[column] for row in body))))
        made.add_column(
            Text(name), Text(last[column]), justify="right" if column else "left", overflow="fold", min_width=widest
        )
    for row in body:
        made.add_row(*map(Text, row))
    return made


def print_plain_or_rich(*parts) -> None:
    """Print tables and texts with a blank line after each: for a terminal as rich does it, plain where it is piped."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False) if sys.stdout.isatty() else _plain_console()
    for part in parts:
        console.print(Text(part) if isinstance(part, str) else part, soft_wrap=isinstance(part, str), crop=False)
        console.print()


def as_text(part) -> str:
    console = _plain_console()
    with console.capture() as captured:
        console.print(part)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    # rich draws its rule under the padding of the last column too
    width = max(len(line) for line in lines if set(line) != {"─"})
    return "\n".join(line[:width] for line in lines)


def _plain_console():
    from rich.console import Console

    return Console(width=_PLAIN_WIDTH, color_system=None, force_terminal=False, highlight=False)


def _cell(value) -> str:
    if isinstance(value, int | np.integer):
        return f"{value:,}" if value else "·"
    return value if isinstance(value, str) else f"{value:.3g}"


def bar(fraction: float, width: int = 40) -> str:
    """A bar of a fraction of `width`, to an eighth of a character; anything above zero shows."""
    eighths = max(round(fraction * width * 8), 1 if fraction > 0 else 0)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def sparkline(values: Sequence[float], *, top: float = 1.0) -> str:
    """One character a value, its height the value over `top`; anything above zero shows."""
    marks = [min(8, max(int(np.ceil(value / top * 8)), 0)) if top > 0 else 0 for value in values]
    return "".join(_HEIGHTS[mark] for mark in marks)


def percent(part: float, whole: float) -> str:
    """A part of a whole in percent."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def histogram(lengths: np.ndarray, *, width: int = 40) -> str:
    """Documents by length, a bar for every doubling."""
    if not len(lengths):
        return "no documents"
    octave = np.floor(np.log2(np.maximum(lengths, 1))).astype(int)
    counts = np.bincount(octave)
    rows = [
        (f"{2**power:,} to {2 ** (power + 1) - 1:,}", f"{count:,}", bar(count / counts.max(), width))
        for power, count in enumerate(counts.tolist())
        if power >= octave.min()
    ]
    left, right = (max(len(row[column]) for row in rows) for column in (0, 1))
    head = f"{'tokens'.rjust(left)}  {'documents'.rjust(max(right, 9))}"
    right = max(right, 9)
    return "\n".join([head, *(f"{span.rjust(left)}  {count.rjust(right)}  {drawn}" for span, count, drawn in rows)])
