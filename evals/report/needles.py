"""The report's needle-in-a-haystack evaluation: a heat map of depth and length per modality, and a table.

It reads `needle/results.json` of `brine needle`. Lengths beyond that of the training are right of a dashed line.
`benchmarks/context/needle_image.py` draws the same heat maps for pages that cannot hold SVG.
"""

from collections.abc import Mapping
from typing import Any

from brine.evals.report.charts import heat_map
from brine.evals.report.tables import interval, number

X_LABEL = "tokens of haystack and question"


def needles_section(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """The section, or None without a cell."""
    cells = [cell for cell in results.get("cells") or [] if cell.get("exact") is not None]
    if not cells:
        return None
    trained = results.get("trained_context_tokens")
    names = list(dict.fromkeys(cell["modality"] for cell in cells))
    maps = []
    for name in names:
        columns, rows, values, after = grid_of(cells, name, trained)
        drawn = heat_map(f"Needles: {name}", columns, rows, values, x_label=X_LABEL, y_label="depth", after=after)
        maps.append((name, drawn))
    return {
        "id": "needles",
        "maps": maps,
        "needles": number((results.get("settings") or {}).get("needles")),
        "chance": number(results.get("chance"), 2),
        "trained": number(trained),
        "cells": [
            [cell["modality"], number(cell["length"]), number(cell["exact"]), interval(cell, 3), number(cell["trials"])]
            for cell in sorted(cells, key=lambda cell: (names.index(cell["modality"]), cell["length"]))
        ],
    }


def grid_of(
    cells: list[Mapping[str, Any]], modality: str, trained: int | None
) -> tuple[list[str], list[str], list[list[float | None]], int | None]:
    """Columns (lengths), rows (depths), exact fractions by row, and the number of columns within the trained length."""
    chosen = sorted((cell for cell in cells if cell["modality"] == modality), key=lambda cell: cell["length"])
    rows = [f"{100 * part['depth']:.0f} %" for part in chosen[0]["depths"]]
    values = [
        [part["is_exact"] / part["trials"] if part["trials"] else None for part in parts]
        for parts in zip(*(cell["depths"] for cell in chosen), strict=True)
    ]
    columns = [f"{cell['length']:,}" for cell in chosen]
    return columns, rows, values, sum(cell["length"] <= trained for cell in chosen) if trained else None
