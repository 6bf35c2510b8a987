"""From trials to numbers: exact match with its interval, by depth, and as a table for the console.

A cell is one modality at one length. Its interval is a percentile bootstrap over contexts, since the questions of one
context share a haystack (`bootstrap.ratio_interval`: right answers over questions, both summed by context). Depths
are cut into ten equal parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from evals.bootstrap import ratio_interval

NUM_DEPTHS = 10


def cell_of(trials: list[dict[str, Any]], *, seed: int = 0) -> dict[str, Any]:
    """Exact match of the trials of one modality and length, as JSON.

    trials: objects with modality, length, context, depth, right. Raises ValueError when they are none, or of
    several cells.
    """
    if len({(trial["modality"], trial["length"]) for trial in trials}) != 1:
        raise ValueError("a cell holds the trials of one modality and one length, at least one")
    contexts = np.array([trial["context"] for trial in trials])
    right = np.array([trial["right"] for trial in trials])
    depth = np.array([trial["depth"] for trial in trials])
    asked = np.bincount(contexts)
    interval = ratio_interval(np.bincount(contexts, weights=right), asked, seed=seed)
    part = np.minimum((depth * NUM_DEPTHS).astype(int), NUM_DEPTHS - 1)
    depths = [
        {"depth": number / NUM_DEPTHS, "trials": int((part == number).sum()), "right": int(right[part == number].sum())}
        for number in range(NUM_DEPTHS)
    ]
    return {
        "modality": trials[0]["modality"],
        "length": trials[0]["length"],
        "trials": len(trials),
        "exact": interval.value,
        "low": interval.low,
        "high": interval.high,
        "depths": depths,
    }


def console_table(cells: Iterable[Mapping[str, Any]], *, head: bool = True) -> str:
    """Aligned lines: modality, length, trials, exact match with its interval, and the ten depths."""
    title = f"{'modality':<10}{'length':>8}{'trials':>8}{'exact':>8}  {'95 %':<15} by depth, 0 to 100 %"
    lines = [title] if head else []
    for cell in sorted(cells, key=lambda cell: (cell["modality"], cell["length"])):
        span = f"{cell['low']:.3f} to {cell['high']:.3f}"
        depths = " ".join(
            f"{part['right'] / part['trials']:4.2f}" if part["trials"] else "   -" for part in cell["depths"]
        )
        lines.append(
            f"{cell['modality']:<10}{cell['length']:>8,}{cell['trials']:>8,}{cell['exact']:>8.3f}  {span:<15} {depths}"
        )
    return "\n".join(lines)
