"""A micro-batch prepared for its device: masks, FLOPs and this rank's share are computed on the host from the loaded
batch.

    for micro_batch in micro_batches(loader, device="cuda", model=student, teacher=teacher, world=world):
        ...

On a GPU this, and the copy, happen while the step before is being computed (`brine.data.prefetch`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from brine.data.prefetch import DevicePrefetch
from brine.salt.cost import TRAINING_PASSES, batch_flops
from brine.training.parallel.context_parallel import shard_sequences
from brine.training.parallel.distributed import World

if TYPE_CHECKING:
    from brine.data.batch import Batch


@dataclass(frozen=True)
class MicroBatch:
    """What one rank sends through the model at once."""

    batch: Batch
    """This rank's tokens and patches, with their masks for student and teacher."""
    tokens: int
    """Tokens of the rows, padding included, other ranks' shares too."""
    student_flops: int
    """Of forward and backward, billed by one of the ranks that share rows."""
    teacher_flops: int
    """Of the teacher's forward pass; 0 without one."""
    failures: tuple[tuple[int, str], ...] = ()
    """(document, reason) of documents that could not be loaded and became padding."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> MicroBatch:
        """The same on a device."""
        return replace(self, batch=self.batch.to(device, non_blocking=non_blocking))


def make_micro_batch(batch: Batch, *, model: nn.Module, teacher: nn.Module | None, world: World) -> MicroBatch:
    """From a batch on the host; nothing is computed on a device."""
    models = [each for each in (model, teacher) if hasattr(each, "rotary")]
    inputs = batch.inputs.make_masks(*(each.config for each in models))
    tokens, student_flops, teacher_flops, failures = inputs.token_ids.numel(), 0, 0, ()
    # of context-parallel ranks the first one counts them
    if world.rank % world.context_parallel == 0:
        student_flops = TRAINING_PASSES * batch_flops(model, inputs)
        teacher_flops = batch_flops(teacher, inputs) if teacher is not None else 0
        failures = getattr(batch, "failures", ())
    if world.context_parallel > 1:
        batch = shard_sequences(batch, world, model).batch
    return MicroBatch(batch, tokens, student_flops, teacher_flops, failures)


def micro_batches(
    batches: Iterable[Batch],
    *,
    device: torch.device | str,
    model: nn.Module,
    teacher: nn.Module | None = None,
    world: World | None = None,
) -> Iterable[MicroBatch]:
    """Batches as they come from a loader, each made ready and on the device."""
    world = world or World()
    return DevicePrefetch(
        batches, device, prepare=lambda batch: make_micro_batch(batch, model=model, teacher=teacher, world=world)
    )
