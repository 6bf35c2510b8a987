"""Stage `million`: one training step of the 1B model of `long_1m` on a sequence of 1,048,576 tokens.

For a GPU of 141 GB in a machine of 128 GiB, alone on both: nothing else of this command holds a context on the GPU.
First the sequence in documents of 8,192 tokens, which compiles and takes the host's pages, then the sequence as one
document. Each step is reported as it ends; the planner's estimate stands before. `--host-gib 96` leaves the machine
some memory. By the planner the sequence then fits with our own kernels, not with a flash package, which accumulates dq,
dk and dv in float32.
"""

from __future__ import annotations

from benchmarks.gpu.stage import StageContext, SuiteItem
from benchmarks.gpu.stages.train import measure


def items(toy: bool) -> list[SuiteItem]:
    """The step."""
    if toy:
        return [SuiteItem("steps-toy", 120, fresh=True)]
    return [SuiteItem(f"steps-1048576{backend}", 540, fresh=True) for backend in ("-gluon", "")]


def run(item: SuiteItem, context: StageContext) -> None:
    """Measure it."""
    measure(item.name.removeprefix("steps-"), context, steps=("packed", "one"))
