"""Draws which tiles the Triton kernels compute for a packed sequence with images: the figure of
kernels/attention/README.md.

    python -m benchmarks.kernels.tile_walk [--out docs/tile_walk.png]

Tiles are found by the kernels' own rule (four numbers for each tile of queries) and checked against the dense mask
before they are drawn: a full tile must be seen whole, and what is left out must be seen by nobody.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from brine.kernels.attention import Spans

TILE = 64
TOKENS = 1024
SKIPPED, PARTIAL, FULL = 0, 1, 2


def packed_sequence(window: int | None) -> Spans:
    """Two documents with an image each, then padding."""
    document = torch.full((1, TOKENS), -1, dtype=torch.int32)
    document[0, :560], document[0, 560:960] = 1, 2
    block = torch.zeros_like(document)
    block[0, 150:400], block[0, 640:760] = 1, 2
    return Spans.packed(document, block=block, window=window)


def classify(spans: Spans, tile: int = TILE) -> np.ndarray:
    """(query tiles, key tiles) of SKIPPED, PARTIAL or FULL, for the first sequence of the batch.

    Raises AssertionError where the rule and the dense mask disagree.
    """
    lo, hi = spans.lo[0].tolist(), spans.hi[0].tolist()
    dense = spans.dense()[0].numpy()
    kinds = np.zeros((-(-spans.num_queries // tile), -(-spans.num_keys // tile)), int)
    for i in range(len(kinds)):
        first, last = i * tile, min((i + 1) * tile, spans.num_queries) - 1
        start, stop = lo[first] // tile, -(-hi[last] // tile)
        full_start, full_stop = -(-lo[last] // tile), hi[first] // tile
        kinds[i, start:stop] = PARTIAL
        kinds[i, full_start : max(full_start, full_stop)] = FULL
        for j, kind in enumerate(kinds[i]):
            part = dense[first : last + 1, j * tile : (j + 1) * tile]
            assert kind != FULL or part.all(), f"tile {i}, {j} is not seen whole"
            assert kind != SKIPPED or not part.any(), f"tile {i}, {j} is seen"
    return kinds


def plot(out: Path) -> dict[str, dict[str, int]]:
    """Write the figure; returns how many tiles of each kind it shows."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    colours = {PARTIAL: "#f2b36b", FULL: "#c9ced6"}
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.6), constrained_layout=True)
    counts = {}
    for axis, (title, window) in zip(axes, (("global layer", None), ("local layer, window 128", 128)), strict=True):
        spans = packed_sequence(window)
        kinds = classify(spans)
        for i, j in np.argwhere(kinds != SKIPPED):
            corner = (j * TILE, i * TILE)
            axis.add_patch(Rectangle(corner, TILE, TILE, facecolor=colours[kinds[i, j]], edgecolor="white", lw=0.8))
        row = np.arange(TOKENS) + 0.5
        axis.fill_betweenx(row, spans.lo[0], spans.hi[0], facecolor="#27508f", alpha=0.45, lw=0, step="mid")
        counts[title] = {"partial": int((kinds == PARTIAL).sum()), "full": int((kinds == FULL).sum()),
                         "skipped": int((kinds == SKIPPED).sum())}  # fmt: skip
        axis.set(xlim=(0, TOKENS), ylim=(TOKENS, 0), aspect="equal", xlabel="key", ylabel="query")
        axis.set_title("{}: {partial} partial, {full} full, {skipped} skipped".format(title, **counts[title]), size=11)
        axis.set_xticks(range(0, TOKENS + 1, 256))
        axis.set_yticks(range(0, TOKENS + 1, 256))
    handles = [
        Rectangle((0, 0), 1, 1, facecolor=colours[FULL], label="full tile: no mask"),
        Rectangle((0, 0), 1, 1, facecolor=colours[PARTIAL], label="partial tile: compared with lo and hi"),
        Rectangle((0, 0), 1, 1, facecolor="#27508f", alpha=0.45, label="what queries see"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(out, dpi=110)
    plt.close(figure)
    return counts


def main(argv: list[str] | None = None) -> int:
    """Draw, and print the counts as one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.tile_walk", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "docs" / "tile_walk.png")
    print(json.dumps(plot(parser.parse_args(argv).out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
