"""What a training run tells of itself: lines of metrics, the console, and the window of steps that they are about.

The numbers of a line are sums over the steps since the line before, so they are part of the checkpoint: the lines of a
run that was killed read like those of one that was not. What a clock decides (tokens per second, MFU, memory, waiting)
stands under `time`. With several ranks, `time.ranks` has each rank's seconds at work before it waits for the others,
seconds waiting for data, and memory; `skew` is how far the slowest is above the mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from training.config import TrainConfig
from training.console import Console
from training.distributed import World
from training.ledger import Ledger
from training.metrics import Record, Sink
from training.pace import Pace
from training.peak import NONE
from training.runtime import Runtime
from training.step import Tally


class Progress:
    """Record, console, pace and window of one call of `train`."""

    def __init__(
        self,
        name: str,
        *,
        folder: Path,
        config: TrainConfig,
        runtime: Runtime,
        world: World,
        kinds: tuple[str, ...],
        sinks: tuple[Sink, ...] = (),
        quiet: bool = False,
    ):
        self.world, self.kinds = world, kinds
        self.record = Record(folder if world.is_main else None, sinks=sinks)
        self.console = Console(name, num_steps=config.num_steps, quiet=quiet or not world.is_main)
        self.pace = Pace(runtime, num_steps=config.num_steps, world=world, peak=NONE if self.console.quiet else None)
        self.window = Tally(kinds)
        self.last_loss = float("nan")

    def log(
        self, *, step: int, row: int, tokens: int, grad_norm: float, rate: float, soft: float, ledger: Ledger
    ) -> None:
        """Write a line about the window that ends here, and begin the next. All ranks."""
        flops = ledger.total_flops()
        numbers = self.window.to_dict()
        self.last_loss = numbers["loss"]
        status = self.pace.status(
            step=step, tokens=tokens, flops=flops, loss=self.last_loss, grad_norm=grad_norm, learning_rate=rate
        )
        self.record.metrics(
            {
                "step": step,
                "row": row,
                "tokens": tokens,
                **numbers,
                "grad_norm": grad_norm,
                "learning_rate": rate,
                "distill_weight": soft,
                "flops": {**ledger.flops, "total": flops},
                # all that a clock decides
                "time": {
                    "tokens_per_s": status.tokens_per_s,
                    "flops_per_s": self.pace.flops_per_s,
                    "mfu": status.mfu,
                    "peak": self.pace.peak,
                    "memory_gib": status.memory_gib,
                    "data_wait": status.data_wait,
                    "seconds": ledger.total_seconds(),
                    **({"skew": status.skew, "ranks": self.pace.ranks} if self.world.size > 1 else {}),
                },
            }
        )
        self.console.status(status)
        self.window = Tally(self.kinds)
        self.pace.begin(step=step, tokens=tokens, flops=flops)

    def validation(self, *, step: int, found: dict[str, Any] | None, flops: int) -> None:
        """Write the numbers of a validation; rank 0 has them."""
        if found is not None:
            self.record.metrics({"step": step, "validation": found, "flops": {"total": flops}})

    def state(self) -> dict[str, Any]:
        """Plain JSON for the checkpoint."""
        return {
            "last_loss": self.last_loss if self.last_loss == self.last_loss else None,
            "window": self.window.sums.tolist(),
        }

    def take(self, state: dict[str, Any]) -> None:
        """Become what `state` gave."""
        self.last_loss = float("nan") if state["last_loss"] is None else state["last_loss"]
        self.window = Tally(self.kinds, torch.tensor(state["window"], dtype=torch.float64))

    def close(self) -> None:
        """Finish the files and take the bar away."""
        self.record.finish()
        self.console.close()
