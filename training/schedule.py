"""The learning rate of a step: linear warm-up, then a linear or cosine decay, or a stable stretch and a short decay.

A pure function of the step, so there is no state to save, and a resumed run cannot disagree with itself. The decay
always reaches its end at the last step: comparisons between runs of different length are fair only when each has
decayed fully.

"linear" and "cosine" depend on the number of steps from the warm-up on, so a run of more steps is another run from
there. "wsd" (warm-up, stable, decay; MiniCPM, Hu et al. 2024, section 4) does not before its decay begins, and a run
goes on with more steps from there. The decay is 1 - sqrt(progress), which ends lowest of those compared by Haegele et
al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", section 4; there a fifth of the
steps does as well as a cosine over all.
"""

from __future__ import annotations

import math

from training.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of `step`, counted from 0.

    Steps 0 .. warmup_steps - 1 rise as (step + 1) / warmup_steps. The decay runs from the peak at step `warmup_steps`
    ("wsd": at the step before `decay_start`) to `final_lr_fraction` of it at step `num_steps - 1`.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.decay_start is not None:
        if step < config.decay_start:
            return config.learning_rate
        left = 1.0 - math.sqrt(min(1.0, (step - config.decay_start + 1) / (config.num_steps - config.decay_start)))
    else:
        span = config.num_steps - 1 - config.warmup_steps
        progress = min(1.0, (step - config.warmup_steps) / span) if span > 0 else 0.0
        left = 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.learning_rate * (config.final_lr_fraction + (1.0 - config.final_lr_fraction) * left)
