"""A micro-batch made ready for its device: what the host works out of it goes along, so that nothing there waits.

    for micro_batch in micro_batches(loader, device="cuda", model=student, teacher=teacher, world=world):
        ...

From the batch as it was loaded, on the host: masks (`model.geometry`), this rank's share where ranks hold parts of a
row (`training.context`), what the forward passes cost. On a card this is done, and the copy begun, while the step
before is still being computed (`data.prefetch`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from data.prefetch import DevicePrefetch
from model.geometry import Geometry
from salt.cost import TRAINING_PASSES, batch_flops
from training.context import share_rows
from training.distributed import World

if TYPE_CHECKING:
    from data.batch import Batch


@dataclass(frozen=True)
class MicroBatch:
    """What one rank sends through the model at once."""

    batch: Batch
    """This rank's tokens, and patches."""
    geometry: Geometry
    """Their masks and rotary tables, for student and teacher."""
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
        batch = self.batch.to(device, non_blocking=non_blocking)
        # its ids and places are copied once
        geometry = self.geometry.at(
            batch.segment, batch.block, batch.position, lambda spans: spans.to(device, non_blocking=non_blocking)
        )
        return replace(self, batch=batch, geometry=geometry)


def make_micro_batch(batch: Batch, *, model: nn.Module, teacher: nn.Module | None, world: World) -> MicroBatch:
    """From a batch on the host; nothing is computed on a device."""
    geometry = Geometry.of(batch, model, *(() if teacher is None else (teacher,)))
    tokens, student_flops, teacher_flops, failures = batch.token_ids.numel(), 0, 0, ()
    # of ranks that share rows the first bills them
    if world.rank % world.context == 0:
        student_flops = TRAINING_PASSES * batch_flops(model, batch, geometry)
        teacher_flops = batch_flops(teacher, batch, geometry) if teacher is not None else 0
        failures = getattr(batch, "failures", ())
    if world.context > 1:
        share = share_rows(batch, geometry, world, model)
        batch, geometry = share.batch, share.geometry
    return MicroBatch(batch, geometry, tokens, student_flops, teacher_flops, failures)


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
