"""A plan for the eye: how full its rows are, what they are made of, what was left out.

    python -m data plan FOLDER    prints `report`, and draws `plot_plan` where a picture is asked for

Along a plan the mixture should be even, a sparkline without steps; the rows drawn show how documents share them.
Counting is by numpy over the plan's entries; only documents that were split are read for where their media lie.
"""

from pathlib import Path

import numpy as np

from data.check_plot import COLOURS, FAINT, new_figure, save_figure, tidy
from data.document import MODALITIES
from data.plan import Plan
from data.tables import safe, share, sparkline, table
from data.tally import PARTS
from data.tokenizer import SLOT_ID

ROWS_DRAWN = 8
NUM_BINS = 60
_LETTERS = dict(zip(PARTS, "tiav", strict=True))


def entry_tokens(corpus, plan: Plan) -> np.ndarray:
    """(E, 4) int64 tokens of each entry of the plan by modality, in the order of PARTS."""
    media = np.stack([corpus.num_media[name][plan.document] for name in MODALITIES], axis=1).astype(np.int64)
    length = plan.stop.astype(np.int64) - plan.start
    split = np.flatnonzero(length < corpus.num_tokens[plan.document])
    # entries of one document one after another, so that each is read once
    split = split[np.argsort(plan.document[split], kind="stable")]
    last, totals = -1, None
    for entry in split.tolist():
        number = int(plan.document[entry])
        if number != last:
            ids = corpus.tokens(number).token_ids
            slots = np.stack([ids == SLOT_ID[name] for name in MODALITIES], axis=1)
            totals = np.concatenate([np.zeros((1, len(MODALITIES)), np.int64), np.cumsum(slots, axis=0)])
            last = number
        media[entry] = totals[plan.stop[entry]] - totals[plan.start[entry]]
    return np.concatenate([(length - media.sum(axis=1))[:, None], media], axis=1)


def row_tokens(plan: Plan, of_entries: np.ndarray) -> np.ndarray:
    """(R, 4) int64 tokens of each row by modality, from those of the entries."""
    total = np.concatenate([np.zeros((1, len(PARTS)), np.int64), np.cumsum(of_entries, axis=0)])
    return total[plan.offset[1:]] - total[plan.offset[:-1]]


def binned(rows: np.ndarray, num_bins: int = NUM_BINS) -> np.ndarray:
    """(b, 4) tokens of at most `num_bins` equal stretches of the plan, from those of its rows."""
    edges = np.linspace(0, len(rows), min(num_bins, len(rows)) + 1).round().astype(np.int64)
    total = np.concatenate([np.zeros((1, rows.shape[1]), np.int64), np.cumsum(rows, axis=0)])
    return np.diff(total[edges], axis=0)


def summary(corpus, plan: Plan, of_entries: np.ndarray) -> dict:
    """The plan in one flat JSON object."""
    return {
        "rows": len(plan),
        "row_tokens": plan.row_tokens,
        "fill": round(plan.fill, 6),
        "tokens": dict(zip(PARTS, of_entries.sum(axis=0).tolist(), strict=True)),
        "documents": len(np.unique(plan.document)),
        "left_out": plan.info["left_out"],
        "epochs_begun": plan.info["epochs_begun"],
        "media_budget": plan.media_budget,
        "seed": plan.info["seed"],
        "split": plan.info["split"],
    }


def report(corpus, plan: Plan, of_entries: np.ndarray) -> str:
    """The text of `data plan`."""
    rows = row_tokens(plan, of_entries)
    counts = np.diff(plan.offset)
    used = np.unique(plan.document)
    lengths = (plan.stop - plan.start).astype(np.int64)
    split = int(np.unique(plan.document[lengths < corpus.num_tokens[plan.document]]).size)
    facts = [
        ("rows", f"{len(plan):,} of {plan.row_tokens:,} tokens"),
        ("fill", f"{100 * plan.fill:.2f} %, padding {100 * (1 - plan.fill):.2f} %"),
        ("documents", f"{len(used):,} used of {plan.info['documents']:,} that fit, in {len(lengths):,} stretches"),
        ("split over rows", f"{split:,}"),
        ("left out", f"{plan.info['left_out']:,}"),
        ("documents a row", f"{counts.mean():.1f}, at most {counts.max()}"),
        ("epochs begun", f"{plan.info['epochs_begun']}"),
    ]
    width = max(len(name) for name, _ in facts)
    pieces = ["\n".join(f"{name:<{width}}  {value}" for name, value in facts)]
    pieces.append(_mixture(plan, rows))
    if plan.info["left_out"]:
        groups = sorted(plan.info["left_out_counts"].items(), key=lambda item: (-item[1], item[0]))
        lines = [f"{count:>9,}  {safe(what)}" for what, count in groups]
        number, reason = next(iter(plan.info["left_out_reasons"].items()))
        example = f"{'':>11}e.g. {safe(corpus.document(int(number)).id, 60)}: {safe(reason)}"
        pieces.append("\n".join(["left out:", *lines, example]))
    pieces.append(_first_rows(corpus, plan, of_entries))
    return "\n\n".join(pieces)


def _mixture(plan: Plan, rows: np.ndarray) -> str:
    bins = binned(rows)
    whole = np.maximum(bins.sum(axis=1, keepdims=True), 1)
    shares, total, most = bins / whole, rows.sum(axis=0), rows.max(axis=0)
    lines = []
    for column, name in enumerate(PARTS):
        budget = plan.media_budget.get(name, plan.row_tokens)
        lines.append(
            [
                name,
                int(total[column]),
                share(total[column], total.sum()),
                f"{most[column]:,} / {budget:,}",
                sparkline(shares[:, column]),
            ]
        )
    # to the left, since a short plan has few characters of its own
    last = "share along the plan, 0 to 100 %"
    lines = [[*line[:-1], line[-1].ljust(max(len(last), len(bins)))] for line in lines]
    return table(["modality", "tokens", "share", "most in a row / budget", last], lines)


def _first_rows(corpus, plan: Plan, of_entries: np.ndarray, width: int = 96) -> str:
    """Rows as bars: a letter for what most of a stretch is, a line between documents, dots for padding."""
    lines = ["first rows (t text, i image, a audio, v video, . padding; | between documents)"]
    for number in range(min(ROWS_DRAWN, len(plan))):
        drawn, column, used = "", 0, 0
        entries = range(plan.offset[number], plan.offset[number + 1])
        for entry in entries:
            used += int(plan.stop[entry] - plan.start[entry])
            place = round(used / plan.row_tokens * width)
            letter = _LETTERS[PARTS[int(of_entries[entry].argmax())]]
            # a document too short for a character of its own is not drawn, and the next one follows
            if place > column:
                drawn += letter * (place - column - 1) + "|"
                column = place
        first = safe(corpus.document(int(plan.document[entries[0]])).id, 24) if len(entries) else ""
        lines.append(
            f"{number:>4} {drawn + '.' * (width - column)} {100 * used / plan.row_tokens:6.2f} %"
            f"{len(entries):>5} docs, {first}"
        )
    return "\n".join(lines)


def plot_plan(corpus, plan: Plan, of_entries: np.ndarray, path: str | Path, *, name: str) -> Path:
    """Mixture along the plan and the first rows, document by document, as a PNG of 1600 pixels' width."""
    rows = row_tokens(plan, of_entries)
    shown = min(24, len(plan))
    height = 4.9 + 0.24 * shown
    figure = new_figure(
        16,
        height,
        title=safe(name, 110),
        subtitle=f"{len(plan):,} rows of {plan.row_tokens:,} tokens  ·  fill {100 * plan.fill:.2f} %  ·  "
        f"{len(np.unique(plan.document)):,} documents used, {plan.info['left_out']:,} left out  ·  "
        f"seed {plan.info['seed']}",
    )
    grid = figure.add_gridspec(
        2, 1, left=0.05, right=0.975, top=1 - 1.15 / height, bottom=0.62 / height, hspace=0.62 / (height / 4),
        height_ratios=(2.0, 0.24 * shown + 0.2),
    )  # fmt: skip
    _draw_mixture(figure.add_subplot(grid[0]), plan, rows)
    _draw_rows(figure.add_subplot(grid[1]), plan, of_entries, shown)
    return save_figure(figure, path)


def _draw_mixture(axes, plan: Plan, rows: np.ndarray) -> None:
    tidy(axes, "tokens along the plan, of the row")
    bins = binned(rows, 200)
    edges = np.linspace(0, len(rows), len(bins) + 1).round()
    room = np.diff(edges) * plan.row_tokens
    bottom = np.zeros(len(bins))
    for column, name in enumerate(PARTS):
        part = bins[:, column] / room
        if part.any():
            axes.bar(
                edges[:-1], part, width=np.diff(edges), bottom=bottom, align="edge", color=COLOURS[name], label=name
            )
        bottom += part
    axes.set_xlim(0, len(rows))
    axes.set_ylim(0, 1)
    axes.set_xlabel("row", fontsize=11)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.legend(fontsize=10.5, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=4)


def _draw_rows(axes, plan: Plan, of_entries: np.ndarray, shown: int) -> None:
    tidy(axes, "first rows: each box a document's stretch, its modalities side by side")
    # one collection a row and modality: a bar of its own for each stretch takes seconds
    for number in range(shown):
        entries = slice(int(plan.offset[number]), int(plan.offset[number + 1]))
        counts = of_entries[entries]
        ends = np.cumsum(counts.ravel()).reshape(counts.shape)
        for column, name in enumerate(PARTS):
            spans = np.stack([ends[:, column] - counts[:, column], counts[:, column]], axis=1)
            axes.broken_barh(spans[spans[:, 1] > 0], (number - 0.4, 0.8), facecolors=COLOURS[name])
        axes.vlines(ends[:, -1], number - 0.4, number + 0.4, color="white", linewidth=1.6)
    axes.barh(range(shown), plan.row_tokens, height=0.8, color=FAINT, zorder=0)
    axes.set_xlim(0, plan.row_tokens)
    axes.set_ylim(shown - 0.5, -0.5)
    axes.set_xlabel("token of the row", fontsize=11)
    axes.set_yticks(range(0, shown, max(1, shown // 8)))
