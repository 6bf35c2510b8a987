"""How the small model helps: one frozen dataclass for soft labels and selection.

The defaults for weight, temperature and length of the first stage come from a quick trial of our own on two
processor cores, in which a longer first stage did better than SALT's 17 % of the run; they are a starting point and
not a result. What is asked of a comparison is the same as ever: equal steps, equal cost, and the
baseline's learning rate tuned as hard.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from data.deciding import aside, where


def _selects(salt: SaltConfig) -> bool:
    return salt.selection


@dataclass(frozen=True)
class SaltConfig:
    """Soft labels in stage 1, and which documents it learns from.

    Raises ValueError, telling the remedy, for settings that mean nothing.
    """

    kd_fraction: float = where(lambda salt: salt.kd_steps is None, 0.3)
    """Length of stage 1 as a fraction of all steps; ignored where `kd_steps` is given."""
    kd_steps: int | None = None
    """Length of stage 1 in steps."""
    weight: float = 0.667
    """Share of the soft labels in the loss of stage 1; the rest is the hard label's. Stage 2 has none."""
    temperature: float = 1.0
    """Both models' logits are divided by it; above 1 softens, below 1 sharpens."""
    selection: bool = False
    """Learn in stage 1 from the documents that the early small model's losses choose, not from all."""
    selection_keep: float = where(_selects, 0.5)
    """Share of the pool's tokens that selection keeps, per kind of document."""
    selection_per_kind: bool = where(_selects, True)
    """Choose within each kind, so that selection changes which documents are seen but not the mix of media, whose
    losses cannot be compared. SALT itself, on text alone, chooses over all."""
    top_k: int = where(_selects, 10)
    """A token is learnable if its target is among the small model's so many likeliest."""
    min_learnable: int = where(_selects, 4)
    """A document with fewer learnable tokens scores -inf: the median of so few says little."""
    early_fraction: float = where(_selects, 0.1)
    """Which small checkpoint scores: the one after this fraction of the small model's steps."""

    def __post_init__(self):
        if self.kd_steps is not None and self.kd_steps < 0:
            raise ValueError(f"kd_steps = {self.kd_steps}: give 0 or more, or None to use kd_fraction")
        for name in ("kd_fraction", "weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)} must lie in [0, 1]")
        for name in ("selection_keep", "early_fraction"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)} must lie in (0, 1]")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature = {self.temperature} must be positive")
        for name in ("top_k", "min_learnable"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: give at least 1")

    def kd_steps_of(self, num_steps: int) -> int:
        """Steps of stage 1 in a run of `num_steps`."""
        steps = round(self.kd_fraction * num_steps) if self.kd_steps is None else self.kd_steps
        return min(steps, num_steps)

    def early_step_of(self, small_steps: int) -> int:
        """Step of the small model's run whose checkpoint scores documents, at least 1."""
        return max(1, round(self.early_fraction * small_steps))


@dataclass(frozen=True)
class SelectionConfig(SaltConfig):
    """The same settings as selection sees them: it chooses documents before soft labels are used, in whatever way."""

    kd_fraction: float = aside(0.3)
    kd_steps: int | None = aside(None)
    weight: float = aside(0.667)
    temperature: float = aside(1.0)

    @classmethod
    def of(cls, salt: SaltConfig) -> SelectionConfig:
        """Those of a run."""
        return cls(**{each.name: getattr(salt, each.name) for each in fields(salt)})
