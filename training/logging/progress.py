"""Metrics and console of a training run, and the window of steps that a line of them covers.

Numbers are sums over the steps since the line before, so they are part of the checkpoint. What depends on a clock is
under `time`; with several ranks `time.ranks` has each rank's seconds at work, waiting for data, and memory, and
`skew` is how far the slowest is above the mean. Validation does not count in tokens per second.
"""

import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from brine.common.formatting import Console, StatusLine
from brine.training.config import TrainConfig
from brine.training.logging.compute_cost import CostAccounting
from brine.training.logging.device_specs import MEASURED, NO_PEAK, PeakFlops, find_peak
from brine.training.logging.metrics import MetricsSink, RunLog, append_event
from brine.training.parallel.distributed import World
from brine.training.runtime import Runtime, peak_memory_gib
from brine.training.step import StepSums

logger = logging.getLogger("brine.pace")


class Throughput:
    """Tokens and FLOPs per second of one window of steps after another, and the time left."""

    def __init__(self, runtime: Runtime, *, num_steps: int, world: World, peak: PeakFlops | None = None):
        """peak: what MFU is quoted against; None: found at the first window; `NO_PEAK`: no MFU."""
        self.runtime, self.num_steps, self.world, self.peak = runtime, num_steps, world, peak
        self.flops_per_s = 0.0
        self.ranks: dict[str, list[float]] = {}
        """Of the last window, for each rank: seconds at work, seconds waiting for data, peak memory in GiB."""

    def begin(self, *, step: int, tokens: int, flops: int) -> None:
        """Start a window here."""
        if self.peak is None:
            self.peak = find_peak(self.runtime.device, self.runtime.dtype)
            logger.info("MFU is quoted against %s", self.peak)
        self.step, self.tokens, self.flops = step, tokens, flops
        self.data_s = self.busy_s = 0.0
        self.start = time.perf_counter()

    def add(self, *, data_s: float, busy_s: float) -> None:
        """Count a step's seconds of waiting for data, and of work before this rank waits for the others."""
        self.data_s += data_s
        self.busy_s += busy_s

    def pause(self, seconds: float) -> None:
        """Leave out time that was not training."""
        self.start += seconds

    def status(
        self, *, step: int, tokens: int, flops: int, loss: float, grad_norm: float, learning_rate: float
    ) -> StatusLine:
        """The console's numbers for the window that ends here. All ranks call it."""
        seconds = max(1e-9, time.perf_counter() - self.start)
        self.flops_per_s = (flops - self.flops) / seconds / self.world.size
        peak = self.peak or NO_PEAK
        if self.runtime.device == "cpu" and peak.source == MEASURED and peak.flops_per_s < self.flops_per_s:
            # it was measured while something else had the processor
            again = find_peak(self.runtime.device, self.runtime.dtype)
            self.peak = peak = PeakFlops(max(self.flops_per_s, again.flops_per_s), MEASURED)
        mine = {"busy_s": self.busy_s, "data_s": self.data_s, "memory_gib": peak_memory_gib(self.runtime.device)}
        every = self.world.gather({name: round(value, 3) for name, value in mine.items()})
        self.ranks = {name: [each[name] for each in every] for name in mine}
        busy = self.ranks["busy_s"]
        return StatusLine(
            step=step, num_steps=self.num_steps, tokens=tokens, loss=loss, grad_norm=grad_norm,
            learning_rate=learning_rate, tokens_per_s=(tokens - self.tokens) / seconds,
            mfu=self.flops_per_s / peak.flops_per_s if peak.flops_per_s else 0.0,
            memory_gib=max(self.ranks["memory_gib"]), data_wait_fraction=self.data_s / seconds,
            skew=max(busy) * len(busy) / max(1e-9, sum(busy)) - 1.0 if len(busy) > 1 else None,
            eta_s=(self.num_steps - step) * seconds / max(1, step - self.step),
        )  # fmt: skip


class Progress:
    """Record, console, pace and window of one training run."""

    def __init__(
        self, name: str, *, folder: Path, config: TrainConfig, runtime: Runtime, world: World, kinds: tuple[str, ...],
        sinks: tuple[MetricsSink, ...] = (), quiet: bool = False,
    ):  # fmt: skip
        self.world, self.kinds, self.folder = world, kinds, folder
        self._has_load_failures = False
        self.record = RunLog(folder if world.is_main else None, sinks=sinks)
        self.console = Console(name, num_steps=config.num_steps, quiet=quiet or not world.is_main)
        self.pace = Throughput(
            runtime, num_steps=config.num_steps, world=world, peak=NO_PEAK if self.console.quiet else None
        )
        self.window, self.last_loss = StepSums(kinds), float("nan")

    def log(
        self, *, step: int, sequence_index: int, tokens: int, grad_norm: float, rate: float, distill_weight: float,
        compute_cost: CostAccounting,
    ) -> None:  # fmt: skip
        """Write a line about the window that ends here, and begin the next. All ranks."""
        flops, numbers = compute_cost.total_flops(), self.window.to_dict()
        self.last_loss = numbers["loss"]
        status = self.pace.status(
            step=step, tokens=tokens, flops=flops, loss=self.last_loss, grad_norm=grad_norm, learning_rate=rate
        )
        clock: dict[str, Any] = {
            "tokens_per_s": status.tokens_per_s,
            "flops_per_s": self.pace.flops_per_s,
            "mfu": status.mfu,
            "peak": self.pace.peak,
            "memory_gib": status.memory_gib,
            "data_wait_fraction": status.data_wait_fraction,
            "seconds": compute_cost.total_seconds(),
        }
        if self.world.size > 1:
            clock |= {"skew": status.skew, "ranks": self.pace.ranks}
        self.record.metrics({
            "step": step,
            "sequence_index": sequence_index,
            "tokens": tokens,
            **numbers,
            "grad_norm": grad_norm,
            "learning_rate": rate,
            "distill_weight": distill_weight,
            "flops": {**compute_cost.flops, "total": flops},
            "time": clock,
        })  # fmt: skip
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
                message = f"document {document} cannot be loaded and is left out ({why}); all are in events.jsonl"
                self.console.say(f"step {step}: {message}")
            self._has_load_failures = True

    def state(self) -> dict[str, Any]:
        """Plain JSON for the checkpoint."""
        loss = self.last_loss if self.last_loss == self.last_loss else None
        return {"last_loss": loss, "window": self.window.sums.tolist()}

    def take(self, state: dict[str, Any]) -> None:
        """Become what `state` gave."""
        self.last_loss = float("nan") if state["last_loss"] is None else state["last_loss"]
        self.window = StepSums(self.kinds, torch.tensor(state["window"], dtype=torch.float64))

    def close(self) -> None:
        """Finish the files and remove the progress bar."""
        self.record.finish()
        self.console.close()
