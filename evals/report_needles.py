"""The report's section on finding things: a heat map of depth and length for each modality, and a table with intervals.

It reads what `python -m evals.needle` left in `needle/results.json`; a run that was not asked has no such section.
Lengths beyond that of the training stand behind a dashed line.

`python -m evals.report_needles RESULTS.json PICTURE.png` draws the same heat maps as one picture with matplotlib,
for pages that cannot hold SVG.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from evals.charts import heat_map
from evals.report_sections import DASH, number, span, table
from evals.summary import read_json


def needles_section(results: Mapping[str, Any]) -> str:
    """The section's HTML, or "" without a cell."""
    cells = [cell for cell in results.get("cells") or [] if cell.get("exact") is not None]
    if not cells:
        return ""
    trained = results.get("trained_tokens")
    names = list(dict.fromkeys(cell["modality"] for cell in cells))
    maps = []
    for name in names:
        columns, rows, values, after = grid_of(cells, name, trained)
        chart = heat_map(
            f"Needles: {name}", columns, rows, values, x_label="tokens of context and question", y_label="depth",
            after=after,
        )  # fmt: skip
        maps.append(f'<div class="sheet"><h3>{escape(name)}</h3>{chart}</div>')
    lines = [
        [escape(cell["modality"]), number(cell["length"]), number(float(cell["exact"])), span(cell, 3) or DASH,
         number(cell["trials"])]
        for cell in sorted(cells, key=lambda cell: (names.index(cell["modality"]), cell["length"]))
    ]  # fmt: skip
    chance = results.get("chance")
    settings = results.get("settings") or {}
    about = (
        f"Answers that are exactly right, of needles at every depth; {number(settings.get('needles'))} needles in each "
        f"context, each asked on its own at the end. A guess is right in {number(chance, 2)} of the trials."
    )
    if trained:
        about += f" Training rows had {number(trained)} tokens: lengths right of the dashed line were never seen."
    head = ("modality", "tokens", "exact", "95 % interval", "trials")
    return (
        f'<section id="needles"><h2>Finding things</h2><p class="about">{about}</p>'
        f'<div class="charts">{"".join(maps)}</div><div class="sheet below">{table(head, lines)}</div></section>'
    )


def grid_of(
    cells: list[Mapping[str, Any]], modality: str, trained: int | None
) -> tuple[list[str], list[str], list[list[float | None]], int | None]:
    """Columns (lengths), rows (depths), shares by row, and after how many columns the training's length ends."""
    own = sorted((cell for cell in cells if cell["modality"] == modality), key=lambda cell: cell["length"])
    rows = [f"{100 * part['depth']:.0f} %" for part in own[0]["depths"]]
    values = [
        [part["right"] / part["trials"] if part["trials"] else None for part in (cell["depths"][row] for cell in own)]
        for row in range(len(rows))
    ]
    columns = [f"{cell['length']:,}" for cell in own]
    return columns, rows, values, sum(cell["length"] <= trained for cell in own) if trained else None


def draw(results: Mapping[str, Any], path: Path) -> None:
    """The heat maps of all modalities as one PNG. Raises ValueError when there is nothing to draw."""
    from matplotlib.figure import Figure

    cells = results.get("cells") or []
    names = list(dict.fromkeys(cell["modality"] for cell in cells))
    if not names:
        raise ValueError("the results hold no cell: run `python -m evals.needle RUN` first")
    across = min(3, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(4.1 * across, 3.6 * down), layout="constrained", dpi=110)
    for place, name in enumerate(names):
        axes = figure.add_subplot(down, across, place + 1)
        columns, rows, values, after = grid_of(cells, name, results.get("trained_tokens"))
        shares = [[float("nan") if value is None else value for value in line] for line in values]
        axes.imshow(shares, vmin=0, vmax=1, cmap="GnBu", aspect="auto")
        axes.set_title(name, loc="left", fontsize=11)
        axes.set_xticks(range(len(columns)), columns, fontsize=8)
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
        axes.tick_params(length=0)
        axes.set_frame_on(False)
        for y, line in enumerate(values):
            for x, value in enumerate(line):
                if value is not None:
                    tone = "white" if value > 0.6 else "#17211f"
                    axes.text(x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=tone)
        if after is not None and 0 < after < len(columns):
            axes.axvline(after - 0.5, color="#f0955a", linestyle=(0, (2, 1.5)), linewidth=2)
        if place % across == 0:
            axes.set_ylabel("depth of the needle", fontsize=9)
        if place >= len(names) - across:
            axes.set_xlabel("tokens of context and question", fontsize=9)
    trials, chance = cells[0]["trials"], results.get("chance", 0)
    figure.suptitle(
        f"Exact answers in hundredths; {trials} trials a column, chance {100 * chance:.0f}; "
        "right of the dashed line: longer than any training row", fontsize=10, x=0.01, ha="left",
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main(argv: list[str] | None = None) -> int:
    """Draw a picture of a results file; returns 2 after one line on standard error when it cannot."""
    given = sys.argv[1:] if argv is None else argv
    if len(given) != 2:
        print("usage: python -m evals.report_needles RESULTS.json PICTURE.png", file=sys.stderr)
        return 2
    results = read_json(Path(given[0]))
    try:
        if not isinstance(results, dict):
            raise ValueError(f"{given[0]} is missing or no results of evals.needle")
        draw(results, Path(given[1]))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
