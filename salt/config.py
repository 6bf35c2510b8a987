"""How the small model helps: one frozen dataclass for soft labels and selection.

The defaults of weight, temperature and length of stage 1 come from a short trial on two CPU cores, in which a longer
stage 1 did better than SALT's 17 % of the run; they are a starting point and not a result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from brine.common.config_fields import affects_result_if, operational


def _uses_selection(salt: SaltConfig) -> bool:
    return salt.selection


@dataclass(frozen=True)
class SaltConfig:
    """Soft labels in stage 1, and which documents it trains on. Raises ValueError for a setting out of range."""

    kd_fraction: float = affects_result_if(lambda salt: salt.kd_steps is None, 0.3)
    """Length of stage 1 as a fraction of all steps; ignored if `kd_steps` is given."""
    kd_steps: int | None = None
    """Length of stage 1 in steps."""
    distill_weight: float = 0.667
    """Weight of the soft labels in the loss of stage 1; the rest is the hard label's. Stage 2 has none."""
    temperature: float = 1.0
    """Temperature that divides both models' logits; above 1 softens, below 1 sharpens."""
    selection: bool = False
    """Train in stage 1 on the documents that the early small model's losses select, not on all."""
    selection_fraction: float = affects_result_if(_uses_selection, 0.5)
    """Fraction of the training tokens that selection keeps, per kind of document."""
    selection_per_kind: bool = affects_result_if(_uses_selection, True)
    """Select within each kind of document, so that the modality mix is preserved; SALT itself, on text alone, selects
    globally."""
    top_k: int = affects_result_if(_uses_selection, 10)
    """A token is learnable if its target is among the small model's `top_k` most likely tokens."""
    min_learnable_tokens: int = affects_result_if(_uses_selection, 4)
    """A document with fewer learnable tokens scores -inf: the median of so few says little."""
    scoring_checkpoint_fraction: float = affects_result_if(_uses_selection, 0.1)
    """Which small checkpoint scores: the one after this fraction of the small model's steps."""

    def __post_init__(self):
        if self.kd_steps is not None and self.kd_steps < 0:
            raise ValueError(f"kd_steps = {self.kd_steps}: give 0 or more, or None to use kd_fraction")
        for name in ("kd_fraction", "distill_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)} must lie in [0, 1]")
        for name in ("selection_fraction", "scoring_checkpoint_fraction"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)} must lie in (0, 1]")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature = {self.temperature} must be positive")
        for name in ("top_k", "min_learnable_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: give at least 1")

    def num_kd_steps(self, num_steps: int) -> int:
        """Steps of stage 1 in a run of `num_steps`."""
        return min(num_steps, round(self.kd_fraction * num_steps) if self.kd_steps is None else self.kd_steps)

    def scoring_step(self, small_steps: int) -> int:
        """Step of the small model's run whose checkpoint scores documents, at least 1."""
        return max(1, round(self.scoring_checkpoint_fraction * small_steps))


@dataclass(frozen=True)
class SelectionConfig(SaltConfig):
    """The same settings for selection, which soft labels do not affect."""

    kd_fraction: float = operational(0.3)
    kd_steps: int | None = operational(None)
    distill_weight: float = operational(0.667)
    temperature: float = operational(1.0)

    @classmethod
    def of(cls, salt: SaltConfig) -> SelectionConfig:
        return cls(**{each.name: getattr(salt, each.name) for each in fields(salt)})
