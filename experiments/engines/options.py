"""Options of the command line that say what distributes trials; every command that runs trials has them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brine.experiments.engines.engine import ENGINES, Engine, open_engine

DEFAULT_HOURS = 24.0
OWN_OPTIONS = {"slurm": ("SLURM's", ("partition", "hours", "slurm")), "ray": ("Ray's", ("address",))}
"""Engine -> (whose they are, options that no other engine has)."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What distributes trials."""

    engine: str = "local"
    """What distributes the trials: "local" (processes on this machine), "slurm" (submitit) or "ray"."""
    workers: int | None = None
    """Trials at once; 1 on this machine, as many as the engine takes elsewhere, if not given."""
    partition: str | None = None
    """SLURM's partition."""
    hours: float | None = None
    """Hours of one SLURM job, 24 if not given; a trial that needs more is requeued from its checkpoint."""
    slurm: tuple[str, ...] = ()
    """Further parameters of sbatch, such as account=mine qos=low."""
    address: str | None = None
    """Address of the Ray cluster, the one that runs here if not given; "local" starts one on this machine."""

    def engine_opener(self) -> Callable[[Path], Engine]:
        """What makes the engine of an experiment's folder. Raises ValueError for options that cannot be."""
        if self.engine not in ENGINES:
            raise ValueError(f"--engine {self.engine}: give one of {', '.join(ENGINES)}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers {self.workers}: give 1 or more")
        options = self.options()
        return lambda folder: open_engine(self.engine, folder=folder, workers=self.workers, options=options)

    def options(self) -> dict[str, Any]:
        """The engine's own options. Raises ValueError for one that cannot be."""
        for engine, (whose, names) in OWN_OPTIONS.items():
            for name in names:
                if getattr(self, name) not in (None, ()) and self.engine != engine:
                    raise ValueError(f"--{name} is {whose}: give --engine {engine} as well, or leave it out")
        if self.engine == "ray":
            return {"address": "auto" if self.address is None else self.address}
        if self.engine != "slurm":
            return {}
        hours = DEFAULT_HOURS if self.hours is None else self.hours
        if not 0 < hours < math.inf:
            raise ValueError(f"--hours {hours:g}: give a number above 0")
        pairs = [each.partition("=") for each in self.slurm]
        if wrong := [each for each in self.slurm if "=" not in each]:
            raise ValueError(f"--slurm {wrong[0]}: give name=value, such as account=mine")
        return {"partition": self.partition, "hours": hours, "more": {name: value for name, _, value in pairs}}
