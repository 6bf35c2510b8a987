"""Soft labels from an online teacher: stage 1 has them, stage 2 has none, and the switch is hard.

For the first `kd_steps` steps the loss of a target token is

    (1 - weight) CE(hard label) + weight T^2 CE(teacher softened by T || student softened by T)

and from then on the plain cross-entropy, the same as if there had never been a teacher: SALT, section 4 of 2410.18779
(the schedule is that of Knowledge Inheritance, NAACL 2022). The teacher is the small model, frozen, run on the same
batch just before the student. What it hands over is its hidden states and its head: `kernels.linear_cross_entropy`
turns both models' states into probabilities chunk by chunk, so dense soft labels over the whole vocabulary never
exist for more than a few rows at a time, and nothing is truncated to a top-k.

Teacher and student share tokenizer and vocabulary, and see the same row in the same layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from data.batch import Batch
    from model.geometry import Geometry
    from model.transformer import Media


@dataclass(frozen=True, eq=False)
class Distillation:
    """A frozen teacher and when to listen to it.

    Raises ValueError for a weight, temperature or number of steps that means nothing.
    """

    teacher: nn.Module
    """A model with the student's vocabulary; its parameters are frozen here."""
    kd_steps: int
    """Steps of stage 1, counted from the run's first."""
    weight: float
    """Share of the soft labels in stage 1."""
    temperature: float = 1.0
    """Softens both distributions."""

    def __post_init__(self):
        if self.kd_steps < 0 or not 0 <= self.weight <= 1 or not self.temperature > 0:
            raise ValueError(
                f"distillation with kd_steps = {self.kd_steps}, weight = {self.weight}, temperature = "
                f"{self.temperature}: give steps >= 0, a weight in [0, 1] and a temperature above 0"
            )
        self.teacher.requires_grad_(False)
        self.teacher.eval()

    def weight_at(self, step: int) -> float:
        """Share of the soft labels at `step`, counted from 0: `weight` in stage 1, exactly 0 after."""
        return self.weight if step < self.kd_steps else 0.0

    @torch.no_grad()
    def hidden(self, batch: Batch, geometry: Geometry | None = None, media: Media | None = None) -> Tensor:
        """The teacher's hidden states (B * T, Et) for a batch, without gradient. Call it under the run's autocast.

        geometry, media: the batch's, where they were made ready for the student too.
        """
        hidden = self.teacher(
            batch.token_ids,
            batch.position,
            batch.segment,
            batch.block,
            batch.media if media is None else media,
            geometry=geometry,
        )
        return hidden.flatten(0, 1)

    @property
    def head_weight(self) -> Tensor:
        """The teacher's head (V, Et), without gradient."""
        return self.teacher.head_weight.detach()

    def check(self, student: nn.Module) -> None:
        """Raises ValueError where teacher and student do not share a vocabulary."""
        teacher_size, student_size = len(self.teacher.head_weight), len(student.head_weight)
        if teacher_size != student_size:
            raise ValueError(
                f"the teacher's vocabulary has {teacher_size} tokens and the student's {student_size}: "
                "train both with one tokenizer"
            )
