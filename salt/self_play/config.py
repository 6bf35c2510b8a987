"""Settings of self-play."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from brine.common.files import to_plain
from brine.inference.options import Names
from brine.salt.collapse import CollapseConfig
from brine.salt.self_play.families import FAMILIES


@dataclass(frozen=True)
class SelfPlayConfig:
    """What is asked and what is kept. Raises ValueError for a setting that cannot work."""

    families: Names = ("needle", "definition", "table", "table_image", "read_image")
    """Families: needle, needle_image, definition, table, table_image, read_image, read_audio."""
    num_cases: int = 256
    """Scenes of each family."""
    num_answers: int = 4
    """Answers sampled for each question."""
    temperature: float = 1.0
    """Of answers and of texts that the model writes."""
    num_candidates: int = 6
    """Questions of a scene among which the model chooses, by its uncertainty."""
    certain_agreement: float = 1.0
    """A question is certain when this share of the answers is right and `certain_confidence` is reached too."""
    certain_confidence: float = -0.1
    """Mean log-probability of the right answer, nats per token, from which on the model is certain of it."""
    max_tokens: int = 48
    """Longest answer."""
    max_targets: int | None = None
    """Most target tokens to keep; no limit if not given. The share of a round is capped when its sources are put
    together."""
    block_size: int = 16
    """Scenes that are asked together, and kept together should the process be killed."""
    round_number: int = 0
    """Number of the round that these documents are made in."""
    seed: int = 0
    """Equal seeds give equal documents."""
    collapse: Annotated[CollapseConfig, tyro.conf.Suppress] = field(default_factory=CollapseConfig)
    """Thresholds of the collapse watch."""

    def __post_init__(self):
        object.__setattr__(self, "families", tuple(self.families))
        unknown = [name for name in self.families if name not in FAMILIES]
        if unknown or not self.families or len(set(self.families)) < len(self.families):
            raise ValueError(
                f"families = {', '.join(self.families) or '(none)'}: choose from {', '.join(FAMILIES)}, each once"
            )
        for name in ("num_cases", "num_answers", "num_candidates", "max_tokens", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: give at least 1")
        if self.temperature <= 0:
            raise ValueError(f"temperature = {self.temperature}: give a positive number, or all answers are one")
        if not 0 < self.certain_agreement <= 1 or not self.certain_confidence <= 0:
            raise ValueError("certain_agreement must lie in (0, 1], and certain_confidence must be at most 0")
        if (self.max_targets is not None and self.max_targets < 0) or self.round_number < 0:
            raise ValueError("max_targets and round_number must be at least 0")

    def settings(self) -> dict:
        """As plain JSON."""
        return to_plain(self)
