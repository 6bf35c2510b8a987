"""Metrics and console of a training run, and the window of steps that a line of them covers.

Numbers are sums over the steps since the line before, so they are part of the checkpoint. What depends on a clock is
under `time`; with several ranks `time.ranks` has each rank's seconds at work, waiting for data, and memory, and
`skew` is how far the slowest is above the mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from brine.common.formatting import Console
from brine.training.config import TrainConfig
from brine.training.logging.compute_cost import CostAccounting
from brine.training.logging.metrics import MetricsSink, RunLog, append_event
from brine.training.logging.peak_flops import NO_PEAK
from brine.training.logging.throughput import Throughput
from brine.training.parallel.distributed import World
from brine.training.runtime import Runtime
from brine.training.step import StepSums


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
        sinks: tuple[MetricsSink, ...] = (),
        quiet: bool = False,
    ):
        self.world, self.kinds, self.folder = world, kinds, folder
        self._has_load_failures = False
        self.record = RunLog(folder if world.is_main else None, sinks=sinks)
        self.console = Console(name, num_steps=config.num_steps, quiet=quiet or not world.is_main)
        self.pace = Throughput(
            runtime, num_steps=config.num_steps, world=world, peak=NO_PEAK if self.console.quiet else None
        )
        self.window = StepSums(kinds)
        self.last_loss = float("nan")

    def log(
        self,
        *,
        step: int,
        sequence_index: int,
        tokens: int,
        grad_norm: float,
        rate: float,
        distill_weight: float,
        compute_cost: CostAccounting,
    ) -> None:
        """Write a line about the window that ends here, and begin the next. All ranks."""
        flops = compute_cost.total_flops()
        numbers = self.window.to_dict()
        self.last_loss = numbers["loss"]
        status = self.pace.status(
            step=step, tokens=tokens, flops=flops, loss=self.last_loss, grad_norm=grad_norm, learning_rate=rate
        )
        self.record.metrics(
            {
                "step": step,
                "sequence_index": sequence_index,
                "tokens": tokens,
                **numbers,
                "grad_norm": grad_norm,
                "learning_rate": rate,
                "distill_weight": distill_weight,
                "flops": {**compute_cost.flops, "total": flops},
                # all that a clock decides
                "time": {
                    "tokens_per_s": status.tokens_per_s,
                    "flops_per_s": self.pace.flops_per_s,
                    "mfu": status.mfu,
                    "peak": self.pace.peak,
                    "memory_gib": status.memory_gib,
                    "data_wait_fraction": status.data_wait_fraction,
                    "seconds": compute_cost.total_seconds(),
                    **({"skew": status.skew, "ranks": self.pace.ranks} if self.world.size > 1 else {}),
                },
            }
        )
        self.console.status(status)
        self.window = StepSums(self.kinds)
        self.pace.begin(step=step, tokens=tokens, flops=flops)

    def validation(self, *, step: int, found: dict[str, Any] | None, flops: int) -> None:
        """Write the numbers of a validation; rank 0 has them."""
        if found is not None:
            self.record.metrics({"step": step, "validation": found, "flops": {"total": flops}})

    def load_failures(self, step: int, failures: Iterable[tuple[int, str]]) -> None:
        """Record this rank's documents that could not be loaded, as (document, reason); the first is printed too."""
        for document, why in failures:
            append_event(self.folder, "document_load_failed", step=step, document=document, reason=why)
            if not self._has_load_failures:
                told = f"document {document} cannot be loaded and is left out ({why}); all are in events.jsonl"
                self.console.say(f"step {step}: {told}")
            self._has_load_failures = True

    def state(self) -> dict[str, Any]:
        """Plain JSON for the checkpoint."""
        return {
            "last_loss": self.last_loss if self.last_loss == self.last_loss else None,
            "window": self.window.sums.tolist(),
        }

    def take(self, state: dict[str, Any]) -> None:
        """Become what `state` gave."""
        self.last_loss = float("nan") if state["last_loss"] is None else state["last_loss"]
        self.window = StepSums(self.kinds, torch.tensor(state["window"], dtype=torch.float64))

    def close(self) -> None:
        """Finish the files and take the bar away."""
        self.record.finish()
        self.console.close()
