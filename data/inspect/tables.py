"""What a collection of documents holds, as tables for a terminal."""

import numpy as np

from brine.common.tables import histogram, percent, sanitize, table
from brine.data.corpus.statistics import PART_TYPES, CorpusStats

MAX_ROWS = 30  # kinds or reasons listed one by one; the rest is summed in one line


def report(stats: CorpusStats) -> list:
    """What `data check` and `data build` print: kinds, modalities, lengths, quarantined samples; tables and texts."""
    parts = [_kinds(stats), _modalities(stats), histogram(stats.all_lengths())] if stats.num_documents else []
    if stats.reasons:
        parts.append(f"quarantined: {stats.num_quarantined:,}\n{_reasons(stats)}")
    return parts or ["no documents"]


def _kinds(stats: CorpusStats):
    splits, kinds = list(stats.splits), list(stats.kinds)

    def row(some: list[str], name: str) -> list:
        counts = [sum(stats.documents[kind, split] for kind in some) for split in splits]
        tokens = sum((stats.tokens[kind] for kind in some), np.zeros(len(PART_TYPES), np.int64))
        longest = max((max(stats.lengths[kind]) for kind in some), default=0)
        return [name, *counts, sum(counts), *tokens.tolist(), longest]

    rows = [row([kind], sanitize(kind, 32)) for kind in kinds[:MAX_ROWS]]
    if rest := kinds[MAX_ROWS:]:
        rows.append(row(rest, f"({len(rest)} more kinds)"))
    head = ["kind", *splits, "documents", *(f"{name} tokens" for name in PART_TYPES), "longest"]
    return table(head, rows, foot=row(kinds, "all"))


def _modalities(stats: CorpusStats):
    total = stats.total
    rows = [
        [name, stats.parts[name], count, percent(count, total.sum())]
        for name, count in zip(PART_TYPES, total.tolist(), strict=True)
    ]
    foot = ["all", sum(stats.parts.values()), int(total.sum()), ""]
    return table(["modality", "parts", "tokens", "of tokens"], rows, foot=foot)


def _reasons(stats: CorpusStats) -> str:
    groups = sorted(stats.reasons.items(), key=lambda item: (-item[1][0], item[0]))
    lines = []
    for reason, (count, example) in groups[:MAX_ROWS]:
        file = example.file if repr(example.file) not in example.reason else ""
        where = sanitize(example.id, 80) + (f", file {sanitize(file, 80)}" if file else "")
        where = "" if example.reason.startswith(f"{example.id}: ") else f"{where}: "
        lines.append(f"{count:>9,}  {sanitize(reason, 160)}\n{'':>11}e.g. {where}{sanitize(example.reason, 160)}")
    if rest := groups[MAX_ROWS:]:
        lines.append(f"{sum(count for _, (count, _) in rest):>9,}  for {len(rest)} other reasons")
    return "\n".join(lines)
