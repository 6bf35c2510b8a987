"""Options of the command line that say what distributes trials; every command that runs trials has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brine.experiments.engines.engine import ENGINES, Engine, open_engine


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What distributes trials."""

    engine: str = "local"
    """What distributes the trials: "local" (processes on this machine), "slurm" (submitit) or "ray"."""
    workers: int | None = None
    """Trials at once; 1 on this machine, as many as the engine takes elsewhere, if not given."""
    partition: str | None = None
    """SLURM's partition."""
    hours: float = 24.0
    """Hours of one SLURM job; a trial that needs more is requeued from its checkpoint."""
    slurm: tuple[str, ...] = ()
    """Further parameters of sbatch, such as account=mine qos=low."""
    address: str = "auto"
    """Address of the Ray cluster; "local" starts one on this machine."""

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
        for name in ("partition", "slurm"):
            if getattr(self, name) and self.engine != "slurm":
                raise ValueError(f"--{name} is SLURM's: give --engine slurm as well, or leave it out")
        if self.engine == "ray":
            return {"address": self.address}
        if self.engine != "slurm":
            return {}
        if self.hours <= 0:
            raise ValueError(f"--hours {self.hours:g}: give a number above 0")
        pairs = [each.partition("=") for each in self.slurm]
        if wrong := [each for each in self.slurm if "=" not in each]:
            raise ValueError(f"--slurm {wrong[0]}: give name=value, such as account=mine")
        return {"partition": self.partition, "hours": self.hours, "more": {name: value for name, _, value in pairs}}
