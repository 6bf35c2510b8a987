"""The stages of a first hour on a GPU: what a stage is made of, which there are, how long each may last.

A stage is a module `benchmarks.gpu.stages.<name>` with

    items(toy)          -> list[SuiteItem]: what to do, most wanted first; made without touching the GPU
    run(item, context)  does one, and calls `context.record(...)` whenever it has a figure

`run` is called in its own child (`benchmarks.gpu.child`), which does the items one after the other. When one
kills its process, hangs, or leaves the GPU's context unusable, the parent notes it and starts another for the rest.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.gpu.record import ResultsLog, append, backend_choices

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class SuiteStage:
    """One part of the half hour."""

    name: str
    minutes: float
    """At most."""
    least: float
    """Minutes below which it is not begun."""
    what: str
    """In a few words."""

    def module(self, instead: str = "") -> ModuleType:
        """The module that does it, or another one for tests. Raises ImportError."""
        return importlib.import_module(instead or f"benchmarks.gpu.stages.{self.name}")


STAGES = {
    stage.name: stage
    for stage in (
        SuiteStage(
            "smoke", 4, 0.5, "versions, the GPU's peaks, backends against the specification, compiled against eager"
        ),
        SuiteStage("tests", 4, 1, "the kernels' tests and those that need a GPU, in parallel; reported, no gate"),
        SuiteStage("attention", 8, 1, "attention over spans and its peers, by mask, length and head dim"),
        SuiteStage("loss", 4, 0.5, "the fused head and loss and its peers"),
        SuiteStage("gluon", 4, 1, "the warp-specialized forward: right in every shape, and its times beside others'"),
        SuiteStage("gluon_backward", 4, 1, "the warp-specialized backward, likewise"),
        SuiteStage("sweep", 7, 2, "tiles of the Triton kernels: which is fastest"),
        SuiteStage("train", 8, 2, "training steps of the 1B model against the planner; a short run of train.py"),
        SuiteStage("generate", 5, 1, "generation: tokens per second"),
        SuiteStage("demo", 8, 2, "the demo by train.py, for as long as there is; the same command continues it"),
        SuiteStage("million", 9, 4, "one training step of the 1B model on 1,048,576 tokens; wants a GPU of 141 GB"),
    )
}
"""In the order of `all`."""


@dataclass(frozen=True)
class SuiteItem:
    """One thing that a stage does."""

    name: str
    timeout_s: float = 120.0
    """After that its process is killed."""
    fresh: bool = False
    """Does it want a process to itself?"""
    least_s: float = 0.0
    """It is not begun with less time than this."""


@dataclass
class StageContext:
    """What a stage's `run` works with."""

    stage: str
    toy: bool
    """Sizes that a CPU does in seconds."""
    device: str
    """"cpu" or "cuda"."""
    out: Path
    """Folder of results, which are few and small."""
    work: Path
    """Folder for all else: corpora, runs, models."""
    corpus: Path | None
    """A packed corpus that was brought along (`benchmarks.gpu.corpus`)."""
    host_gib: float
    """Host memory that may be pinned."""
    gpu_gib: float
    """Memory of the GPU that the planner may use; 0: all of it."""
    end: float
    """When the stage's time is up, by `time.time`."""
    item: SuiteItem
    """What is being done."""
    without: frozenset[str] = frozenset()
    """Implementations that killed a process at this item before."""
    on_work: Callable[[str], None] = lambda implementation_name: None
    """Called with what runs now, so that the parent knows what to leave out after a crash."""

    def left_s(self) -> float:
        """Seconds until the stage's time is up."""
        return self.end - time.time()

    def record(self, what: str = "", **figures: Any) -> None:
        """Put figures on disk. what: names one of several results of an item."""
        case = f"{self.item.name} {what}".strip()
        ResultsLog(self.out).write(stage=self.stage, case=case, toy=self.toy, **figures, backends=backend_choices())

    def say(self, words: str) -> None:
        """Human-readable text, such as a table."""
        ResultsLog(self.out).say(words)


def run_command(
    command: list[str], *, log: Path, seconds: float, gentle: bool = False, **environment: str
) -> int | None:
    """Run a command with its output in a file -> exit code, None where the time was up and it was ended.

    gentle: ask it to stop (SIGTERM) twenty seconds earlier, so that it can save.
    """
    append(log, "$ " + " ".join(command) + "\n", fresh=True)
    with log.open("a") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
        )
        try:
            process.wait(max(1.0, seconds - 20.0 * gentle))
        except subprocess.TimeoutExpired:
            if gentle:
                process.send_signal(signal.SIGTERM)
                try:
                    return process.wait(20.0)
                except subprocess.TimeoutExpired:
                    pass
            process.kill()
            process.wait()
            return None
    return process.returncode
