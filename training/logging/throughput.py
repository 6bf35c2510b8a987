"""Tokens and FLOPs per second since the last line of metrics, and the time left; validation is not counted."""

from __future__ import annotations

import logging
import time

from brine.common.formatting import StatusLine
from brine.training.logging.peak_flops import MEASURED, PeakFlops, find_peak
from brine.training.parallel.distributed import World
from brine.training.runtime import Runtime, peak_memory_gib

logger = logging.getLogger("brine.pace")


class Throughput:
    """Measures one window of steps after another."""

    def __init__(self, runtime: Runtime, *, num_steps: int, world: World, peak: PeakFlops | None = None):
        """peak: what MFU is quoted against; found at the first window if None, `brine.training.logging.peak_flops.NONE`
        for no MFU."""
        self.runtime, self.num_steps, self.world = runtime, num_steps, world
        self.peak = peak
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
        if self.runtime.device == "cpu" and self.peak.source == MEASURED and self.peak.flops_per_s < self.flops_per_s:
            # it was measured while something else had the processor
            again = find_peak(self.runtime.device, self.runtime.dtype)
            self.peak = PeakFlops(max(self.flops_per_s, again.flops_per_s), MEASURED)
        own = (round(self.busy_s, 3), round(self.data_s, 3), round(peak_memory_gib(self.runtime.device), 3))
        self.ranks = dict(
            zip(("busy_s", "data_s", "memory_gib"), zip(*self.world.gather(own), strict=True), strict=True)
        )
        busy = self.ranks["busy_s"]
        return StatusLine(
            step=step,
            num_steps=self.num_steps,
            tokens=tokens,
            loss=loss,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            tokens_per_s=(tokens - self.tokens) / seconds,
            mfu=self.flops_per_s / self.peak.flops_per_s if self.peak.flops_per_s else 0.0,
            memory_gib=max(self.ranks["memory_gib"]),
            skew=max(busy) * len(busy) / max(1e-9, sum(busy)) - 1.0 if len(busy) > 1 else None,
            data_wait_fraction=self.data_s / seconds,
            eta_s=(self.num_steps - step) * seconds / max(1, step - self.step),
        )
