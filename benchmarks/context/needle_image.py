"""The heat maps of a needle-in-a-haystack evaluation as one PNG, for README files, which cannot hold SVG.

uv run python -m benchmarks.context.needle_image runs/needle/needle/results.json docs/needle.png
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from brine.evals.needle.table import read_needle_results
from brine.evals.report.needles import X_LABEL, grid_of


def draw(results: Mapping[str, Any], path: Path) -> None:
    """The heat maps of all modalities as one PNG. Raises ValueError when there is nothing to draw."""
    cells = results.get("cells") or []
    names = list(dict.fromkeys(cell["modality"] for cell in cells))
    if not names:
        raise ValueError("the results hold no cell: run `brine needle RUN` first")
    across = min(3, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(4.1 * across, 3.6 * down), layout="constrained", dpi=110)
    for index, name in enumerate(names):
        axes = figure.add_subplot(down, across, index + 1)
        columns, rows, values, after = grid_of(cells, name, results.get("trained_context_tokens"))
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
        if index % across == 0:
            axes.set_ylabel("depth of the needle", fontsize=9)
        if index >= len(names) - across:
            axes.set_xlabel(X_LABEL, fontsize=9)
    trials, chance = cells[0]["trials"], results.get("chance", 0)
    figure.suptitle(
        f"Exact answers in hundredths; {trials} trials a column, chance {100 * chance:.0f}; "
        "right of the dashed line: longer than any training sequence", fontsize=10, x=0.01, ha="left",
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main(argv: list[str] | None = None) -> int:
    """Draw an image of a results file; returns 2 after one line on standard error when it cannot."""
    given = sys.argv[1:] if argv is None else argv
    if len(given) != 2:
        print("usage: python -m benchmarks.context.needle_image RESULTS.json IMAGE.png", file=sys.stderr)
        return 2
    try:
        draw(read_needle_results(Path(given[0])), Path(given[1]))
    except ValueError as error:
        print(f"error: {given[0]}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
