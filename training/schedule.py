"""The learning rate of a step: linear warmup, then linear or cosine decay, or a constant rate and a short decay
("wsd").

A pure function of the step. The decay always ends at the last step. Under "wsd" (MiniCPM, Hu et al. 2024, section 4)
a run can be extended from before its decay; the decay is 1 - sqrt(progress) (Haegele et al. 2024, section 4).
"""

import math

from brine.training.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of `step`, counted from 0.
    Steps 0 .. warmup_steps - 1 rise as (step + 1) / warmup_steps. The decay runs from the peak at step `warmup_steps`
    ("wsd": at the step before `decay_start`) to `final_lr_fraction` of it at step `num_steps - 1`."""
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
