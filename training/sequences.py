"""Training sequences for the loop: a source that can begin anywhere, and a stream that handles wrap-around and skips.

The loop counts global sequences from 0, in multiples of `global_batch_size`. Global sequence g is sequence g modulo
the usable ones of the plan: a run longer than its plan begins it again, at a step boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from brine.data.batch import Batch
    from brine.training.micro_batch import MicroBatch


@dataclass(frozen=True)
class SequenceSource:
    """A plan's rows as batches.

    Raises ValueError for an empty source.
    """

    open: Callable[[int], Iterable[Batch]]
    """Given a plan row, the batches of this rank from there on. The k-th batches of all ranks together must be the
    next micro_batch_size * ranks rows: what `data.Loader` gives with `start_sequence`, `rank` and `world_size`."""
    num_sequences: int
    """Rows of the plan."""

    def __post_init__(self):
        if self.num_sequences < 1:
            raise ValueError("the row plan is empty: the corpus has no documents in this split that fit a row")


class MicroBatchStream:
    """Micro-batches of one step after another, for one rank."""

    def __init__(
        self,
        source: SequenceSource,
        *,
        global_batch_size: int,
        batches_per_step: int,
        ready: Callable[[Iterable[Batch]], Iterable[MicroBatch]],
    ):
        """ready: makes what the source opens ready for the device (`brine.training.micro_batch`)."""
        if source.num_sequences < global_batch_size:
            raise ValueError(
                f"the plan has {source.num_sequences} sequences and one step takes {global_batch_size}: use a larger "
                "corpus, more epochs in the plan, or a smaller global_batch_size"
            )
        self.source = source
        self.global_batch_size = global_batch_size
        self.batches_per_step = batches_per_step
        self.usable = source.num_sequences // global_batch_size * global_batch_size
        self._ready = ready
        self._at: int | None = None
        self._batches: Iterator[MicroBatch] | None = None

    def step(self, sequence_index: int) -> Iterator[MicroBatch]:
        """The micro-batches of the step that begins at global row `sequence_index`. Take all of them before asking
        again."""
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
        """Let go of the open loader and its workers."""
        self._batches = None
        self._at = None
