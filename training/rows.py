"""Rows for the loop: a source that can begin anywhere, and a stream that survives wrap-around and skipped windows.

The row plan makes data order one integer. The loop counts *global rows* from 0 and never back; step boundaries lie at
multiples of `rows_per_step` (skipped windows are whole steps, so they stay there). Global row g is row
g modulo the usable rows of the plan: a run longer than its plan begins it again, at a step boundary, and the remainder
of a plan that is no multiple of a step is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data.batch import Batch
    from training.micro_batch import MicroBatch


@dataclass(frozen=True)
class RowSource:
    """A plan's rows as batches.

    Raises ValueError for an empty source.
    """

    open: Callable[[int], Iterable[Batch]]
    """Given a plan row, the batches of this rank from there on. The k-th batches of all ranks together must be the
    next micro_rows * ranks rows: what `data.Loader` gives with `start_row`, `rank` and `world_size`."""
    num_rows: int
    """Rows of the plan."""

    def __post_init__(self):
        if self.num_rows < 1:
            raise ValueError("the row plan is empty: the corpus has no documents in this split that fit a row")


class RowStream:
    """Micro-batches of one step after another, for one rank."""

    def __init__(
        self,
        source: RowSource,
        *,
        rows_per_step: int,
        batches_per_step: int,
        ready: Callable[[Iterable[Batch]], Iterable[MicroBatch]],
    ):
        """ready: makes what the source opens ready for the device (`training.micro_batch`)."""
        if source.num_rows < rows_per_step:
            raise ValueError(
                f"the row plan has {source.num_rows} rows and one step takes {rows_per_step}: use a larger corpus, "
                "more epochs in the plan, or a smaller rows_per_step"
            )
        self.source = source
        self.rows_per_step = rows_per_step
        self.batches_per_step = batches_per_step
        self.usable = source.num_rows // rows_per_step * rows_per_step
        self._ready = ready
        self._at: int | None = None
        self._batches: Iterator[MicroBatch] | None = None

    def step(self, row: int) -> Iterator[MicroBatch]:
        """The micro-batches of the step that begins at global row `row`. Take all of them before asking again."""
        if self._batches is None or self._at != row or row % self.usable == 0:
            self.close()
            self._batches = iter(self._ready(self.source.open(row % self.usable)))
        self._at = None
        for _ in range(self.batches_per_step):
            try:
                yield next(self._batches)
            except StopIteration:
                raise ValueError(
                    f"the loader ended inside the step at row {row}, though its plan has {self.source.num_rows} rows: "
                    "plan and encoded corpus do not belong together; build the plan again"
                ) from None
        self._at = row + self.rows_per_step

    def close(self) -> None:
        """Let go of the open loader and its workers."""
        self._batches = None
        self._at = None
