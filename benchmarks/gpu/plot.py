"""An image of what was measured on a GPU, from the lines of a results file.

    python -m benchmarks.gpu --plot FILE.jsonl         FILE.png: attention by case, the warp-specialized forward, the
    loss

TFLOP/s over visible pairs, forward and backward separately, with the best matmul of the same run as a line. A case that
an implementation cannot express, or that is not in the file, leaves a gap.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.record import read

NAMES = {
    "brine": "Brine, auto", "brine-triton": "Brine, Triton", "brine-gluon": "Brine, Gluon", "brine-flex": "Brine, flex",
    "brine-flash": "Brine, flash", "sdpa-cudnn": "cuDNN", "fa4": "flash-attn-4", "fa4-mask": "flash-attn-4, mask",
    "flex": "FlexAttention", "torch-varlen": "torch varlen", "sdpa-flash": "torch flash",
}  # fmt: skip
LOSSES = {"brine-triton": "Brine, Triton", "brine-chunked": "Brine, chunked", "liger": "Liger", "plain": "plain"}


def plot(file: Path) -> int:
    """Write FILE.png -> exit code."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    lines = read(file)
    attention = [x for x in lines if x["stage"] == "attention" and "implementations" in x and not x.get("toy")]
    losses = [x for x in lines if x["stage"] == "loss" and "implementations" in x and not x.get("toy")]
    special = specialised(lines)
    if not attention and not losses:
        print(f"{file} has no line of attention or the loss that was measured on a GPU", file=sys.stderr)
        return 1
    figure = Figure(figsize=(13, 12), layout="constrained")
    axes = above, middle, lower, below = figure.subplots(4, 1)
    colours = dict(zip(NAMES, colormaps["tab20"].colors, strict=False)) | {"liger": "#888888", "plain": "#cccccc"}
    for axis, part in ((above, "forward"), (middle, "backward")):
        bars(
            axis,
            attention,
            NAMES,
            lambda implementation, part=part: implementation.get("tflops", {}).get(part),
            colours,
        )
        axis.set_ylabel(f"attention, {part}: TFLOP/s")
    bars(lower, special, NAMES, lambda implementation: implementation.get("tflops"), colours)
    lower.set_ylabel("one pass alone: TFLOP/s")
    bars(below, losses, LOSSES, lambda implementation: implementation.get("tflops"), colours)
    below.set_ylabel("head and loss: TFLOP/s")
    peaks = [line["matmul_flops_per_s"] / 1e12 for line in attention + losses]
    for axis in axes:
        axis.axhline(max(peaks), color="black", lw=0.8, ls=":", label="matmul, 8,192 cubed")
        axis.legend(ncols=6, fontsize=7, loc="upper left")
        axis.set_ylim(0, 1.35 * max(peaks))
        axis.spines[["top", "right"]].set_visible(False)
    where = (attention + losses)[0]["where"]
    versions = where["versions"]
    figure.suptitle(
        f"{where['gpu']}, torch {versions['torch']}, triton {versions['triton']}, commit {where['commit']}; bf16"
    )
    figure.savefig(file.with_suffix(".png"), dpi=110)
    print(file.with_suffix(".png"))
    return 0


def specialised(lines: list[dict]) -> list[dict]:
    """The lines of stage `gluon` by case: of our warp-specialized kernels those that
    `brine.kernels.attention.gluon.backend` takes."""
    taken = {(64, "forward"): "gluon-128-2-00", (128, "forward"): "gluon-128-2-10"}
    taken |= {(dim, "backward"): "gluon-64-3-1" for dim in (64, 128)}
    cases: dict[str, dict] = {}
    for line in lines:
        if line["stage"] == "gluon" and "tflops" in line:
            names = {"triton": "brine-triton", "cudnn": "sdpa-cudnn", "flash": "sdpa-flash"}
            part = line.get("pass", "forward")
            name = (
                "brine-gluon"
                if line["implementation_name"] == taken[line["dim"], part]
                else names.get(line["implementation_name"])
            )
            case = f"D{line['dim']}-{line['tokens'] // 1024}k-{line['mask']}" + "\nbackward" * (part == "backward")
            if name:
                cases.setdefault(case, {"case": case, "implementations": {}})["implementations"][name] = line
    return list(cases.values())


def bars(axis: Any, lines: list[dict], names: dict[str, str], height, colours: dict[str, Any]) -> None:
    """A group of bars for each case, one for each implementation that ran."""
    ran = [name for name in names if any(height(line["implementations"].get(name, {})) for line in lines)]
    width = 0.84 / max(1, len(ran))
    for i, name in enumerate(ran):
        found = [(at, height(line["implementations"].get(name, {}))) for at, line in enumerate(lines)]
        shown = [(at + (i - (len(ran) - 1) / 2) * width, value) for at, value in found if value]
        axis.bar(*zip(*shown, strict=True), 0.92 * width, label=names[name], color=colours.get(name))
    axis.set_xticks(range(len(lines)), [line["case"].replace("k-", "k\n") for line in lines], fontsize=8)
