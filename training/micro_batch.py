"""Micro-batches for the loop: from a source that can begin anywhere, past what is skipped, ready on the device.

The loop counts global sequences from 0, in multiples of `global_batch_size`. Global sequence g is sequence g modulo
the usable ones of the plan: a run longer than its plan begins it again, at a step boundary. Masks, FLOPs and this
rank's share are computed on the host; on a GPU this, and the copy, happen while the step before is being computed.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from brine.data.batch import Batch
from brine.data.prefetch import DevicePrefetch
from brine.salt.cost import TRAINING_PASSES, batch_flops
from brine.training.parallel.context_parallel import shard_sequences
from brine.training.parallel.distributed import World


@dataclass(frozen=True)
class PackedSequenceSource:
    """A plan's packed sequences as batches. Raises ValueError for an empty plan."""

    open: Callable[[int], Iterable[Batch]]
    """Given a sequence of the plan, the batches of this rank from there on. The k-th batches of all ranks together are
    the next micro_batch_size * ranks sequences, as `Loader` gives with `start_sequence`, `rank`, `world_size`."""
    num_sequences: int
    """Sequences of the plan."""

    def __post_init__(self):
        if self.num_sequences < 1:
            raise ValueError("the packing plan is empty: no document of this split fits a sequence")


@dataclass(frozen=True)
class MicroBatch:
    """The batch of one forward pass on one rank, with its masks for student and teacher.

    tokens: of the sequences, padding and other ranks' shares included. student_flops: of forward and backward, counted
    by one of the ranks that share sequences. failures: (document, reason) of documents that became padding."""

    batch: Batch
    tokens: int
    student_flops: int
    teacher_flops: int
    failures: tuple[tuple[int, str], ...] = ()

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "MicroBatch":
        """The same on a device."""
        return replace(self, batch=self.batch.to(device, non_blocking=non_blocking))


def make_micro_batch(batch: Batch, *, model: Any, teacher: Any, world: World) -> MicroBatch:
    """From a batch on the host; nothing is computed on a device."""
    inputs = batch.inputs.make_masks(*(each.config for each in (model, teacher) if each is not None))
    tokens, student_flops, teacher_flops, failures = inputs.token_ids.numel(), 0, 0, ()
    # of context-parallel ranks the first one counts them
    if world.rank % world.context_parallel == 0:
        student_flops = TRAINING_PASSES * batch_flops(model, inputs)
        teacher_flops = batch_flops(teacher, inputs) if teacher is not None else 0
        failures = getattr(batch, "failures", ())
    if world.context_parallel > 1:
        batch = shard_sequences(batch, world, model)
    return MicroBatch(batch, tokens, student_flops, teacher_flops, failures)


def micro_batches(
    batches: Iterable[Batch], *, device: torch.device | str, model: nn.Module, teacher: nn.Module | None = None,
    world: World | None = None,
) -> Iterable[MicroBatch]:  # fmt: skip
    """Batches as they come from a loader, each made ready and on the device."""
    world = world or World()
    return DevicePrefetch(
        batches, device, prepare=lambda batch: make_micro_batch(batch, model=model, teacher=teacher, world=world)
    )


class MicroBatchStream:
    """Micro-batches of one step after another, for one rank."""

    def __init__(
        self, source: PackedSequenceSource, *, global_batch_size: int, batches_per_step: int,
        ready: Callable[[Iterable[Batch]], Iterable[MicroBatch]],
    ):  # fmt: skip
        """ready: makes what the source opens ready for the device (`micro_batches`)."""
        if source.num_sequences < global_batch_size:
            raise ValueError(
                f"the plan has {source.num_sequences} sequences and one step takes {global_batch_size}: use a larger "
                "corpus, more epochs in the plan, or a smaller global_batch_size"
            )
        self.source, self.global_batch_size, self.batches_per_step = source, global_batch_size, batches_per_step
        self.usable = source.num_sequences // global_batch_size * global_batch_size
        self._ready = ready
        self._batches: Iterator[MicroBatch] | None = None
        self._at: int | None = None

    def step(self, sequence_index: int) -> Iterator[MicroBatch]:
        """The micro-batches of the step that begins at this global sequence. Take all of them before asking again."""
        if self._batches is None or self._at != sequence_index or sequence_index % self.usable == 0:
            self.close()
            self._batches = iter(self._ready(self.source.open(sequence_index % self.usable)))
        self._at = None
        for _ in range(self.batches_per_step):
            try:
                yield next(self._batches)
            except StopIteration:
                raise ValueError(
                    f"the loader ended inside the step at sequence {sequence_index}, though its plan has "
                    f"{self.source.num_sequences}: plan and encoded corpus do not belong together; build the plan again"
                ) from None
        self._at = sequence_index + self.global_batch_size

    def close(self) -> None:
        """Close the open loader and its workers."""
        self._batches = self._at = None
