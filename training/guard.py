"""Decides whether a step diverged, and tracks the sequences to skip after a rollback.

A loss or gradient that is not finite always counts; a loss spike or a gradient norm spike only where the recipe asks
for it. The remedy follows PaLM (Chowdhery et al. 2022, section 5.1): load a checkpoint that enough good steps followed
(`rollback_margin_steps`), and skip the sequences around the failing step. MAX_EMPTY_STEPS steps in a row without a
target end the run. All of this is part of the checkpoint.
"""

import math
import statistics
from collections import deque
from typing import Any

from brine.training.config import TrainConfig

MAX_EMPTY_STEPS = 5


class TrainingDivergedError(ValueError):
    """Training went wrong more often than `max_rollbacks` allows."""


class NoTargetsError(TrainingDivergedError):
    """There was nothing to learn, which is a fault of the data and no divergence."""


class DivergenceGuard:
    """Checks steps and keeps the windows of sequences that are skipped."""

    def __init__(self, config: TrainConfig):
        self.config = config
        self.losses: deque[float] = deque(maxlen=config.spike_window)
        self.norms: deque[float] = deque(maxlen=config.spike_window)
        self.skipped: list[tuple[int, int]] = []
        self.empty = 0
        """Steps without a target, up to the last one."""

    def divergence_reason(self, *, loss: float, objective: float, grad_norm: float) -> str | None:
        """Why this step must not count, or None; all ranks give the same numbers.

        loss: plain cross-entropy, mean over targets, which does not jump where soft labels end. objective: what was
        differentiated.
        """
        for name, value in (("loss", loss), ("objective", objective), ("gradient's norm", grad_norm)):
            if not math.isfinite(value):
                return f"the {name} is {value}"
        count, config = len(self.losses), self.config
        if count == self.losses.maxlen and config.loss_spike_sigma:
            mean = sum(self.losses) / count
            deviation = math.sqrt(sum((value - mean) ** 2 for value in self.losses) / count)
            if loss > mean + config.loss_spike_sigma * deviation:
                return (
                    f"the loss {loss:.4f} is a spike: the last {count} are {mean:.4f} +- {deviation:.4f}, and "
                    f"{config.loss_spike_sigma:g} deviations are allowed"
                )
        if count == self.losses.maxlen and config.grad_norm_spike_factor:
            usual = statistics.median(self.norms)
            if grad_norm > config.grad_norm_spike_factor * usual:
                return (
                    f"gradient norm spike: {grad_norm:.4g}, where the median of the last {count} is "
                    f"{usual:.4g}, and {config.grad_norm_spike_factor:g} times that is allowed"
                )
        return None

    def accept(self, *, loss: float, grad_norm: float, targets: int) -> None:
        """Remember a good step. Raises NoTargetsError where too many in a row had no target."""
        self.empty = 0 if targets else self.empty + 1
        if self.empty >= MAX_EMPTY_STEPS:
            raise NoTargetsError(
                f"{self.empty} steps in a row had no target, so there was nothing to learn: documents that could not "
                "be loaded are named in `events.jsonl` (document_load_failed), with the reason; rebuild the corpus"
            )
        self.losses.append(loss)
        self.norms.append(grad_norm)

    def trusted_until(self, step: int) -> int:
        """The last step whose checkpoint a failure of `step` may go back to; step 0, before any, always may."""
        return max(0, step - self.config.rollback_margin_steps)

    def skip(self, *, checkpoint_sequence: int, first_sequence: int, reason: str) -> tuple[int, int]:
        """Choose the sequences to skip after the step that began at `first_sequence` failed: [start, stop).

        Raises TrainingDivergedError when that has happened too often.
        """
        if len(self.skipped) >= self.config.max_rollbacks:
            windows = ", ".join(f"{start} to {stop}" for start, stop in self.skipped)
            raise TrainingDivergedError(
                f"{reason}, and training was already rolled back {len(self.skipped)} times (max_rollbacks), skipping "
                f"sequences {windows or 'none'}: lower the learning rate, lengthen the warmup, or look at those and "
                f"at sequence {first_sequence} (`events.jsonl` has the reasons); the last good checkpoint is kept"
            )
        size = self.config.global_batch_size
        start = max(checkpoint_sequence, first_sequence - (self.config.rollback_skip_steps - 1) * size)
        self.skipped.append((start, first_sequence + size))
        return self.skipped[-1]

    def next_sequence(self, sequence_index: int) -> int:
        """The first sequence at or after `sequence_index` that is not skipped."""
        for start, stop in sorted(self.skipped):
            if start <= sequence_index < stop:
                sequence_index = stop
        return sequence_index

    def state(self) -> dict[str, Any]:
        """Plain JSON for the checkpoint."""
        skipped = [list(window) for window in self.skipped]
        return {"losses": list(self.losses), "norms": list(self.norms), "skipped": skipped, "empty": self.empty}

    def take(self, state: dict[str, Any]) -> None:
        """Become what `state` gave."""
        self.losses = deque(state["losses"], maxlen=self.config.spike_window)
        self.norms = deque(state["norms"], maxlen=self.config.spike_window)
        self.skipped = [(start, stop) for start, stop in state["skipped"]]
        self.empty = state["empty"]
