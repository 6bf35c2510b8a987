"""Winners of a results folder into the tables that "auto" reads, with where they come from.

    python -m benchmarks.gpu --write-table FOLDER

From stage `attention` comes a row for each (compute capability, dtype, mask type, head dim), from stage `loss` one
for each kind of loss: median milliseconds of forward and backward by backend. Of attention's cases packed documents
come first, then the longest at which most ran; of a loss's, the geometric mean over those that a backend shares with
all others is taken, since the fastest backend changes with the number of tokens. Toys, deterministic cases, and lines
without a commit are skipped: a row has to be repeatable. Commit the tables after reading the difference. Tiles
(`tiles.json` of stage `sweep`) are copied by hand, as a compile report belongs to them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from benchmarks.gpu.record import read
from benchmarks.harness.implementations import OURS

DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
KINDS = {"causal": "causal", "packed": "causal", "window": "window", "multimodal": "block"}
"""Kind of spans by mask of `benchmarks.kernels.masks`."""
LOSSES = {"plain": "plain", "z": "z", "distill": "dense"}
"""Kind of loss by terms of `benchmarks.kernels.linear_loss`."""
WHERE = {"attention": "brine.kernels.attention.select_backend", "loss": "brine.kernels.linear_loss.select_backend"}


def milliseconds(line: dict[str, Any]) -> dict[str, float]:
    """Median milliseconds, forward and backward, of each backend that was asked for by name.

    "flash" is several packages, and the time is that of the one that was there: "flash/<package>". torch's own, which
    is there always, takes part as a peer.
    """
    names = {name: name.removeprefix(f"{OURS}-") for name in line["implementations"] if name.startswith(f"{OURS}-")}
    if package := line.get("flash_package"):
        names |= {"torch-varlen": "flash/torch", f"{OURS}-flash": f"flash/{package}"}
    return {
        ours: 1e3 * line["implementations"][name]["seconds"]["total"]["median"]
        for name, ours in names.items()
        if "seconds" in line["implementations"].get(name, {})
    }


def rows_of(lines: Iterable[dict[str, Any]], stage: str) -> list[dict[str, Any]]:
    """Arguments of `brine.kernels.selection.measured_order.row_of` for a stage's lines; the largest sum of visible
    pairs or tokens wins a table row."""
    found: dict[tuple, list] = {}
    for line in lines:
        where = line.get("where", {})
        if line["stage"] != stage or "implementations" not in line or line.get("toy") or line.get("deterministic"):
            continue
        if not where.get("commit"):
            continue
        ms = milliseconds(line)
        if not ms:
            continue
        capability = tuple(int(part) for part in where["capability"].split("."))
        kind = KINDS[line["kind"]] if stage == "attention" else LOSSES[line["terms"]]
        dim = line.get("dim")
        key = capability, DTYPES[line["dtype"]], kind, dim
        # packed documents are what training sees; one long causal document is a sequence of them too, and larger
        rank = len(ms), line.get("kind") == "packed", line["tokens"]
        source = {
            "gpu": where["gpu"], "commit": where["commit"], "command": f"python -m benchmarks.gpu --stage {stage}",
            "case": line["case"], "time": line["time"],
        }  # fmt: skip
        row = {"capability": capability, "dtype": key[1], "kind": kind, "dim": dim, "ms": ms, "source": source}
        found.setdefault(key, []).append((rank, row))
    return [(_together if stage == "loss" else _first)(ranked) for ranked in found.values()]


def _first(ranked: list[tuple[tuple, dict]]) -> dict[str, Any]:
    return max(ranked, key=lambda pair: pair[0])[1]


def _together(ranked: list[tuple[tuple, dict]]) -> dict[str, Any]:
    """One row of several sizes: of those at which as many backends ran as anywhere."""
    most = max(len(row["ms"]) for _, row in ranked)
    rows = [row for _, row in ranked if len(row["ms"]) == most]
    names = set.intersection(*(set(row["ms"]) for row in rows))
    source = rows[-1]["source"] | {"case": ", ".join(row["source"]["case"] for row in rows)}
    ms = {name: geometric_mean(row["ms"][name] for row in rows) for name in rows[0]["ms"] if name in names}
    return rows[-1] | {"ms": ms, "source": source}


def write_table(folder: Path) -> int:
    """Put the winners into the committed tables -> exit code."""
    from brine.kernels.selection.measured_order import row_of, write_rows

    lines, written = read(folder), 0
    for stage, module in WHERE.items():
        rows = rows_of(lines, stage)
        if rows:
            write_rows(importlib.import_module(module).TABLE, [row_of(**row) for row in rows])
        for row in rows:
            times = ", ".join(f"{name} {row['ms'][name]:.3f} ms" for name in sorted(row["ms"], key=row["ms"].get))
            print(f"{stage} {row['kind']} D{row['dim']}: {times}")
        written += len(rows)
    if not written:
        print(f"nothing in {folder} was measured on a GPU with a known commit", file=sys.stderr)
    return 0 if written else 1
