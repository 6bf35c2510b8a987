"""Needle trials to results: exact match with its interval, by depth, and as a table for the console.

A cell is one modality at one length. Its interval is a percentile bootstrap over haystacks, since the questions of one
haystack are not independent (exact answers over questions, both summed by haystack). Where all answers are right, or
none is, resampling says nothing, and the interval is that of Clopper and Pearson (1934) over haystacks. Depths are ten
equal parts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from brine.common.renamed import rename
from brine.common.tables import as_text, table
from brine.evals.config import ratio_interval
from brine.evals.run_files import read_object

NUM_DEPTHS = 10


def read_needle_results(path: Path) -> dict[str, Any]:
    """results.json of a needle evaluation, also with its former keys; {} where there is none."""
    return rename(read_object(path), {"right": "is_exact", "trained_tokens": "trained_context_tokens"})


def summarize_trials(trials: list[dict[str, Any]], *, seed: int = 0) -> dict[str, Any]:
    """Exact match of the trials of one modality and length, as JSON.

    trials: objects with modality, length, haystack, depth, is_exact. Raises ValueError for none and for several
    cells.
    """
    if len({(trial["modality"], trial["length"]) for trial in trials}) != 1:
        raise ValueError("a cell holds the trials of one modality and one length, at least one")
    haystack, is_exact, depth = (
        np.array([trial[key] for trial in trials]) for key in ("haystack", "is_exact", "depth")
    )
    interval = ratio_interval(np.bincount(haystack, weights=is_exact), np.bincount(haystack), seed=seed)
    if is_exact.all() or not is_exact.any():
        bound = 0.025 ** (1 / len(set(haystack.tolist())))
        interval = replace(interval, low=bound if is_exact.all() else 0.0, high=1.0 if is_exact.all() else 1 - bound)
    part = np.minimum((depth * NUM_DEPTHS).astype(int), NUM_DEPTHS - 1)
    num_trials = np.bincount(part, minlength=NUM_DEPTHS).tolist()
    num_exact = np.bincount(part[is_exact], minlength=NUM_DEPTHS).tolist()
    depths = [
        {"depth": number / NUM_DEPTHS, "trials": num_trials[number], "is_exact": num_exact[number]}
        for number in range(NUM_DEPTHS)
    ]
    cell = {"modality": trials[0]["modality"], "length": trials[0]["length"], "trials": len(trials)}
    return cell | {"exact": interval.value, "low": interval.low, "high": interval.high, "depths": depths}


def console_table(cells: Iterable[Mapping[str, Any]]) -> str:
    """Modality, length, trials, exact match with its interval, and the ten depths, as aligned text."""
    rows = []
    for cell in sorted(cells, key=lambda cell: (cell["modality"], cell["length"])):
        depths = (f"{part['is_exact'] / part['trials']:4.2f}" if part["trials"] else "   -" for part in cell["depths"])
        interval = "-" if cell["low"] is None else f"{cell['low']:.3f} to {cell['high']:.3f}"
        counts = (cell["modality"], cell["length"], cell["trials"])
        rows.append((*counts, f"{cell['exact']:.3f}", interval, " ".join(depths)))
    head = ("modality", "length", "trials", "exact", "95 % interval", "by depth, 0 to 100 %")
    return as_text(table(head, rows))
