"""Batches of a plan for one rank, from any row on.

The loader's whole state is the next global row: batch k of rank r out of w holds the rows

    start_row + (k * w + r) * rows_per_batch  ...  + rows_per_batch - 1

so all ranks' k-th batches together are the next w * rows_per_batch rows, at any number of ranks. A document that
cannot be loaded (its cache is damaged, its file is gone) becomes padding of its planned length; it is appended to
`failures` and handed to `on_failure` before its batch is given out, and training goes on.

With a cache of patches a batch costs milliseconds, so rows are read in this process by default; `num_workers` spawns
processes of torch's DataLoader instead. What this file does not do: wrap around at the end of a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from data.batch import Batch, Piece, make_batch
from data.plan import Plan


@dataclass(frozen=True)
class Failure:
    """A document that was replaced by padding."""

    row: int
    """Global row."""
    document: int
    """Index in the corpus."""
    reason: str
    """Why."""


class Loader:
    """Iterates over `Batch`es of this rank; ends with the last whole batch of the plan."""

    def __init__(
        self,
        corpus: Any,
        plan: Plan,
        *,
        rows_per_batch: int,
        start_row: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        on_failure: Callable[[Failure], None] | None = None,
    ):
        """corpus: anything with `sequence(i)`, `kind`, `config`. Raises ValueError for a rank outside the world."""
        if rows_per_batch < 1 or start_row < 0:
            raise ValueError(f"rows_per_batch = {rows_per_batch} and start_row = {start_row}: give 1, and 0, or more")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is none of {world_size}")
        self.rows = _Rows(corpus, plan, rows_per_batch, start_row, rank, world_size)
        self.num_workers, self.on_failure = num_workers, on_failure
        self.failures: list[Failure] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Batch]:
        batches = torch.utils.data.DataLoader(
            self.rows,
            batch_size=None,
            num_workers=self.num_workers,
            multiprocessing_context="spawn" if self.num_workers else None,
        )
        for batch, failures in batches:
            for failure in failures:
                self.failures.append(failure)
                if self.on_failure is not None:
                    self.on_failure(failure)
            yield batch


class _Rows(torch.utils.data.Dataset):
    """Batch k as a map-style data set, so that torch's workers keep order and each item is a pure function of k."""

    def __init__(self, corpus: Any, plan: Plan, rows_per_batch: int, start_row: int, rank: int, world_size: int):
        self.corpus, self.plan, self.rows_per_batch = corpus, plan, rows_per_batch
        self.start, self.stride = start_row + rank * rows_per_batch, world_size * rows_per_batch
        # every rank has as many batches as the others
        self.length = max(0, len(plan) - start_row) // self.stride

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Batch, list[Failure]]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        first = self.start + index * self.stride
        failures: list[Failure] = []
        rows = [self._row(row, failures) for row in range(first, first + self.rows_per_batch)]
        batch = make_batch(
            rows,
            row_tokens=self.plan.row_tokens,
            media_budget=self.plan.media_budget,
            dims=self.corpus.config.dims,
        )
        return batch, failures

    def _row(self, row: int, failures: list[Failure]) -> list[Piece]:
        pieces = []
        for document, start, stop, blank in self.plan.row(row):
            found = None
            try:
                found = self.corpus.sequence(document)
                if stop > len(found):
                    raise ValueError(f"it has {len(found)} tokens and the plan expects {stop} or more")
                found = found.slice(start, stop)
                found = found.blanked() if blank else found
            except (OSError, ValueError) as error:
                found = None
                failures.append(Failure(row, document, str(error)))
            pieces.append(Piece(found, stop - start, int(self.corpus.kind[document])))
        return pieces
