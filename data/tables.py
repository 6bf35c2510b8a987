"""Counts as text for a terminal: aligned tables, bars, a line of blocks.

Plain characters and no colour, so that what is printed can be piped, pasted and compared. Whatever comes from outside
(ids, kinds, reasons) goes through `safe`, so that a file name cannot move the reader's cursor.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from data.tally import PARTS, Tally

MAX_ROWS = 30
"""Kinds or reasons listed one by one; the rest is summed in one row."""
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_HEIGHTS = " ▁▂▃▄▅▆▇█"


def safe(text: str, width: int = 200) -> str:
    """The text with control characters replaced, cut to `width` characters."""
    text = "".join(char if char.isprintable() else "�" for char in text[: width + 1])
    return text if len(text) <= width else text[: width - 1] + "…"


def table(head: Sequence[str], rows: Iterable[Sequence], *, foot: Sequence | None = None) -> str:
    """Columns under their headings: the first to the left, the others to the right, counts with thousands."""
    body = [[cell(value) for value in row] for row in rows]
    last = [[cell(value) for value in foot]] if foot is not None else []
    lines = [list(head), *body, *last]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    rule = "  ".join("─" * width for width in widths)

    def laid(line):
        first, *others = (text.rjust(width) for text, width in zip(line, widths, strict=True))
        return "  ".join([line[0].ljust(widths[0]), *others]) if first is not None else ""

    out = [laid(lines[0]), rule, *map(laid, body)]
    return "\n".join(out + ([rule, laid(last[0])] if last else []))


def cell(value) -> str:
    """One value of a table: counts with thousands, zero as a dot so that what is there stands out."""
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


def share(part: float, whole: float) -> str:
    """A part of a whole in percent."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def kinds_table(tally: Tally) -> str:
    """Documents of each kind per split, their tokens per modality, and the longest."""
    splits, kinds = list(tally.splits), list(tally.kinds)
    rows = [_kind_row(tally, [kind], safe(kind, 32), splits) for kind in kinds[:MAX_ROWS]]
    if rest := kinds[MAX_ROWS:]:
        rows.append(_kind_row(tally, rest, f"({len(rest)} more kinds)", splits))
    head = ["kind", *splits, "documents", *(f"{name} tokens" for name in PARTS), "longest"]
    return table(head, rows, foot=_kind_row(tally, kinds, "all", splits))


def _kind_row(tally: Tally, kinds: list[str], name: str, splits: list[str]) -> list:
    counts = [sum(tally.documents[kind, split] for kind in kinds) for split in splits]
    tokens = sum((tally.tokens[kind] for kind in kinds), np.zeros(len(PARTS), np.int64))
    longest = max((max(tally.lengths[kind]) for kind in kinds), default=0)
    return [name, *counts, sum(counts), *tokens.tolist(), longest]


def parts_table(tally: Tally) -> str:
    """Parts and tokens per modality."""
    total = tally.total
    rows = [
        [name, tally.parts[name], count, share(count, total.sum())]
        for name, count in zip(PARTS, total.tolist(), strict=True)
    ]
    return table(
        ["modality", "parts", "tokens", "of tokens"],
        rows,
        foot=["all", sum(tally.parts.values()), int(total.sum()), ""],
    )


def histogram(lengths: np.ndarray, *, width: int = 40) -> str:
    """Documents by length, a bar for every doubling."""
    if not len(lengths):
        return "no documents"
    octave = np.floor(np.log2(np.maximum(lengths, 1))).astype(int)
    counts = np.bincount(octave)
    rows = [
        (f"{2**place:,} to {2 ** (place + 1) - 1:,}", f"{count:,}", bar(count / counts.max(), width))
        for place, count in enumerate(counts.tolist())
        if place >= octave.min()
    ]
    left, right = (max(len(row[column]) for row in rows) for column in (0, 1))
    head = f"{'tokens'.rjust(left)}  {'documents'.rjust(max(right, 9))}"
    right = max(right, 9)
    return "\n".join([head, *(f"{span.rjust(left)}  {count.rjust(right)}  {drawn}" for span, count, drawn in rows)])


def reasons_table(tally: Tally) -> str:
    """What was set aside, most frequent reason first, with the first example of each."""
    groups = sorted(tally.reasons.items(), key=lambda item: (-item[1][0], item[0]))
    lines = []
    for reason, (count, example) in groups[:MAX_ROWS]:
        file = example.file if repr(example.file) not in example.reason else ""
        where = safe(example.id, 80) + (f", file {safe(file, 80)}" if file else "")
        where = "" if example.reason.startswith(f"{example.id}: ") else f"{where}: "
        lines.append(f"{count:>9,}  {safe(reason, 160)}\n{'':>11}e.g. {where}{safe(example.reason, 160)}")
    if rest := groups[MAX_ROWS:]:
        lines.append(f"{sum(count for _, (count, _) in rest):>9,}  for {len(rest)} other reasons")
    return "\n".join(lines)


def report(tally: Tally) -> str:
    """The whole text of `data check` and `data build`: kinds, modalities, lengths, what was set aside."""
    pieces = [kinds_table(tally), parts_table(tally), histogram(tally.all_lengths())] if tally.num_documents else []
    if tally.reasons:
        pieces.append(f"set aside: {tally.num_quarantined:,}\n{reasons_table(tally)}")
    return "\n\n".join(pieces) or "no documents"
