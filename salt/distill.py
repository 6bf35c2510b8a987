"""Soft labels from an online teacher: stage 1 has them, stage 2 has none, and the switch is hard.

For the first `kd_steps` steps the loss of a target token is

    (1 - distill_weight) CE(hard label) + distill_weight T^2 CE(teacher softened by T || student softened by T)

and from then on the plain cross-entropy (SALT, section 4 of 2410.18779). The teacher is the small model, frozen, run on
the same batch just before the student; soft labels exist for a few tokens at a time, and nothing is truncated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from brine.model.inputs import Inputs
    from brine.model.transformer import Transformer


@dataclass(frozen=True, eq=False)
class Distillation:
    """A frozen teacher and its schedule. Raises ValueError for a setting out of range."""

    teacher: Transformer
    """A model with the student's vocabulary; its parameters are frozen here."""
    kd_steps: int
    """Steps of stage 1, counted from the run's first."""
    distill_weight: float
    """Weight of the soft labels in stage 1."""
    temperature: float = 1.0
    """Divides the logits of both models."""

    def __post_init__(self):
        if self.kd_steps < 0 or not 0 <= self.distill_weight <= 1 or not self.temperature > 0:
            raise ValueError(
                f"distillation with kd_steps = {self.kd_steps}, distill_weight = {self.distill_weight}, temperature = "
                f"{self.temperature}: give steps >= 0, a weight in [0, 1] and a temperature above 0"
            )
        self.teacher.requires_grad_(False)
        self.teacher.eval()

    def distill_weight_at(self, step: int) -> float:
        """Weight of the soft labels at `step`, counted from 0: `distill_weight` in stage 1, exactly 0 after."""
        return self.distill_weight if step < self.kd_steps else 0.0

    @torch.no_grad()
    def hidden(self, inputs: Inputs) -> Tensor:
        """The teacher's hidden states (B * T, Et), without gradient. Call it under the run's autocast."""
        return self.teacher(inputs).flatten(0, 1)

    @property
    def head_weight(self) -> Tensor:
        """The teacher's head (V, Et), without gradient."""
        return self.teacher.head_weight.detach()

    def check(self, student: Transformer) -> None:
        """Raises ValueError where teacher and student do not share a vocabulary."""
        teacher_size, student_size = len(self.teacher.head_weight), len(student.head_weight)
        if teacher_size != student_size:
            raise ValueError(
                f"the teacher's vocabulary has {teacher_size} tokens and the student's {student_size}: "
                "train both with one tokenizer"
            )
