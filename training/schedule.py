"""The learning rate of a step: linear warm-up, then a linear or cosine decay that has ended at the last step.

A pure function of the step, so there is no state to save, and a resumed run cannot disagree with itself. The decay
always reaches its end: comparisons between runs of different length are fair only when each has decayed fully.
"""

from __future__ import annotations

import math

from training.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of `step`, counted from 0.

    Steps 0 .. warmup_steps - 1 rise as (step + 1) / warmup_steps; the decay runs from the peak at step
    `warmup_steps` to `final_lr_fraction` of it at step `num_steps - 1`.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    span = config.num_steps - 1 - config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / span) if span > 0 else 0.0
    left = 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.learning_rate * (config.final_lr_fraction + (1.0 - config.final_lr_fraction) * left)
