"""The interface of engines, and engines by name.

An engine runs jobs somewhere and says how each ended; it knows nothing of experiments. What it does by itself (waiting
for resources, moving a job to another node, requeueing after a time-out) is not repeated here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from brine.experiments.engines.process import TrialJob
from brine.experiments.trials.ending import Ending

ENGINES = ("local", "slurm", "ray")


class Engine(Protocol):
    """Runs trials as processes on some machines."""

    max_jobs: int
    """Jobs that it takes at once."""

    def submit(self, job: TrialJob) -> str:
        """Take a job; returns what names it to this engine. Raises ValueError for one that can never run."""

    def poll(self, name: str) -> Ending | None:
        """How the job of a trial ended, or None while it waits or runs; an ending is told once."""

    def cancel(self, name: str) -> None:
        """Ask the job of a trial to save and end; `poll` tells when it has."""

    def close(self) -> None:
        """Release what the engine holds; jobs that still run are ended."""


def open_engine(name: str, *, folder: Path, workers: int | None, options: dict[str, Any]) -> Engine:
    """An engine by name. folder: the experiment's. workers: jobs at once; None: 1 for "local", as many as the engine
    takes for others. options: of the engine. Raises ValueError for an unknown engine or a library that is missing."""
    if name == "local":
        from brine.experiments.engines.local import LocalPool

        return LocalPool(workers or 1)
    if name == "slurm":
        from brine.experiments.engines.slurm import SlurmEngine

        return SlurmEngine(folder, max_jobs=workers or 256, **options)
    if name == "ray":
        from brine.experiments.engines.ray_cluster import RayEngine

        return RayEngine(max_jobs=workers or 4096, **options)
    raise ValueError(f"engine {name!r} is unknown: choose one of {', '.join(ENGINES)}")
