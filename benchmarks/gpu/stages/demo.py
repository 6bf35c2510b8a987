"""Stage `demo`: `python train.py demo`, all four modalities, for as long as there is time.

It is asked to stop twenty seconds before the time is up, saves, and the next command with the same `--work` continues;
the line then says so ("went_on"). A toy starts from scratch.
The corpus is the one brought along, a share of the demo's own, so numbers are not those of the README's demo; else text
alone.
"""

from __future__ import annotations

from benchmarks.gpu.stage import StageContext, SuiteItem
from benchmarks.gpu.stages.train import TINY, line


def items(toy: bool) -> list[SuiteItem]:
    """The run."""
    return [SuiteItem("demo", 240 if toy else 480)]


def run(item: SuiteItem, context: StageContext) -> None:
    """Start it, or resume."""
    seconds = min(item.timeout_s, context.left_s()) - 10
    line("demo", TINY if context.toy else (), context, seconds=seconds, again=not context.toy)
