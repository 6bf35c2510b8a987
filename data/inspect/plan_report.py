"""How full the packed sequences of a plan are, what they are made of and what was excluded, as text and as a PNG.

Along a plan the mixture should be even, a sparkline without steps; the sequences plotted show how documents share them.
"""

from pathlib import Path

import numpy as np

from brine.common.tables import percent, sanitize, sparkline, table
from brine.data.corpus.statistics import PART_TYPES
from brine.data.inspect.check_plot import COLOURS, FAINT, new_figure, save_figure, style_axes
from brine.data.packing.composition import binned, tokens_per_sequence
from brine.data.packing.plan import PackingPlan

MAX_DRAWN_SEQUENCES = 8
NUM_BINS = 60
_LETTERS = dict(zip(PART_TYPES, "tiav", strict=True))


def summary(plan: PackingPlan, chunk_tokens: np.ndarray) -> dict:
    info = {
        name: plan.info[name]
        for name in ("sequences", "packing_efficiency", "excluded", "epochs_begun", "seed", "split")
    }
    tokens = dict(zip(PART_TYPES, chunk_tokens.sum(axis=0).tolist(), strict=True))
    documents = len(np.unique(plan.document))
    return info | {"seq_len": plan.seq_len, "media_budget": plan.media_budget, "tokens": tokens, "documents": documents}


def report(corpus, plan: PackingPlan, chunk_tokens: np.ndarray) -> list:
    """What `data plan` prints, tables and texts."""
    lengths, counts, info = (plan.stop - plan.start).astype(np.int64), np.diff(plan.offset), plan.info
    num_split = int(np.unique(plan.document[lengths < corpus.num_tokens[plan.document]]).size)
    efficiency = 100 * plan.packing_efficiency
    used = len(np.unique(plan.document))
    facts = {
        "sequences": f"{len(plan):,} of {plan.seq_len:,} tokens",
        "packing efficiency": f"{efficiency:.2f} %, padding {100 - efficiency:.2f} %",
        "documents": f"{used:,} used of {info['documents']:,} that fit, in {len(lengths):,} chunks",
        "split over sequences": f"{num_split:,}",
        "excluded": f"{info['excluded']:,}",
        "documents per sequence": f"{counts.mean():.1f}, at most {counts.max()}",
        "epochs begun": f"{info['epochs_begun']}",
    }
    width = max(map(len, facts))
    parts = ["\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()), _mixture(plan, chunk_tokens)]
    if info["excluded"]:
        groups = sorted(info["excluded_counts"].items(), key=lambda item: (-item[1], item[0]))
        lines = [f"{count:>9,}  {sanitize(what)}" for what, count in groups]
        number, reason = next(iter(info["excluded_reasons"].items()))
        example = f"{'':>11}e.g. {sanitize(corpus.document(int(number)).id, 60)}: {sanitize(reason)}"
        parts.append("\n".join(["excluded:", *lines, example]))
    return [*parts, _first_sequences(corpus, plan, chunk_tokens)]


def _mixture(plan: PackingPlan, chunk_tokens: np.ndarray):
    tokens = tokens_per_sequence(plan, chunk_tokens)
    bins, total, most = binned(tokens, NUM_BINS), tokens.sum(axis=0), tokens.max(axis=0)
    shares = bins / np.maximum(bins.sum(axis=1, keepdims=True), 1)
    # to the left, since a short plan has few characters
    last = "share along the plan, 0 to 100 %"
    lines = [
        (
            name,
            int(total[column]),
            percent(total[column], total.sum()),
            f"{most[column]:,} / {plan.media_budget.get(name, plan.seq_len):,}",
            sparkline(shares[:, column]).ljust(max(len(last), len(bins))),
        )
        for column, name in enumerate(PART_TYPES)
    ]
    return table(["modality", "tokens", "share", "most in a sequence / budget", last], lines)


def _first_sequences(corpus, plan: PackingPlan, chunk_tokens: np.ndarray, width: int = 96) -> str:
    """Sequences as bars: a letter for what most of a chunk is, a line between documents, dots for padding."""
    lines = ["first sequences (t text, i image, a audio, v video, . padding; | between documents)"]
    for number in range(min(MAX_DRAWN_SEQUENCES, len(plan))):
        drawn, column, used = "", 0, 0
        chunks = range(plan.offset[number], plan.offset[number + 1])
        for chunk in chunks:
            used += int(plan.stop[chunk] - plan.start[chunk])
            end = round(used / plan.seq_len * width)
            # a document too short for a character is not drawn, and the next one follows
            if end > column:
                drawn += _LETTERS[PART_TYPES[int(chunk_tokens[chunk].argmax())]] * (end - column - 1) + "|"
                column = end
        first = sanitize(corpus.document(int(plan.document[chunks[0]])).id, 24) if len(chunks) else ""
        bar = f"{drawn + '.' * (width - column)} {100 * used / plan.seq_len:6.2f} %"
        lines.append(f"{number:>4} {bar}{len(chunks):>5} docs, {first}")
    return "\n".join(lines)


def plot_plan(plan: PackingPlan, chunk_tokens: np.ndarray, path: str | Path, *, name: str) -> Path:
    """Mixture along the plan and the first sequences, document by document, as a PNG 1600 pixels wide."""
    shown = min(24, len(plan))
    height = 4.9 + 0.24 * shown
    figure = new_figure(
        16,
        height,
        title=sanitize(name, 110),
        subtitle=f"{len(plan):,} sequences of {plan.seq_len:,} tokens, {100 * plan.packing_efficiency:.2f} % full  ·  "
        f"{len(np.unique(plan.document)):,} documents used, {plan.info['excluded']:,} excluded  ·  "
        f"seed {plan.info['seed']}",
    )
    grid = figure.add_gridspec(
        2, 1, left=0.05, right=0.975, top=1 - 1.15 / height, bottom=0.62 / height, hspace=0.62 / (height / 4),
        height_ratios=(2.0, 0.24 * shown + 0.2),
    )  # fmt: skip
    _draw_mixture(figure.add_subplot(grid[0]), plan, tokens_per_sequence(plan, chunk_tokens))
    _draw_sequences(figure.add_subplot(grid[1]), plan, chunk_tokens, shown)
    return save_figure(figure, path)


def _draw_mixture(axes, plan: PackingPlan, tokens: np.ndarray) -> None:
    style_axes(axes, "tokens along the plan, of the sequences")
    bins = binned(tokens, 200)
    edges = np.linspace(0, len(tokens), len(bins) + 1).round()
    capacity = np.diff(edges) * plan.seq_len
    bottom = np.zeros(len(bins))
    for column, name in enumerate(PART_TYPES):
        part = bins[:, column] / capacity
        if part.any():
            axes.bar(
                edges[:-1], part, width=np.diff(edges), bottom=bottom, align="edge", color=COLOURS[name], label=name
            )
        bottom += part
    axes.set_xlim(0, len(tokens))
    axes.set_ylim(0, 1)
    axes.set_xlabel("sequence", fontsize=11)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.legend(fontsize=10.5, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=4)


def _draw_sequences(axes, plan: PackingPlan, chunk_tokens: np.ndarray, shown: int) -> None:
    style_axes(axes, "first sequences: each box a chunk, its modalities side by side")
    # one collection a sequence and modality: a bar for each chunk takes seconds
    for number in range(shown):
        chunks = slice(int(plan.offset[number]), int(plan.offset[number + 1]))
        counts = chunk_tokens[chunks]
        ends = np.cumsum(counts.ravel()).reshape(counts.shape)
        for column, name in enumerate(PART_TYPES):
            spans = np.stack([ends[:, column] - counts[:, column], counts[:, column]], axis=1)
            axes.broken_barh(spans[spans[:, 1] > 0], (number - 0.4, 0.8), facecolors=COLOURS[name])
        axes.vlines(ends[:, -1], number - 0.4, number + 0.4, color="white", linewidth=1.6)
    axes.barh(range(shown), plan.seq_len, height=0.8, color=FAINT, zorder=0)
    axes.set_xlim(0, plan.seq_len)
    axes.set_ylim(shown - 0.5, -0.5)
    axes.set_xlabel("token of the sequence", fontsize=11)
    axes.set_yticks(range(0, shown, max(1, shown // 8)))
