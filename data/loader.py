"""Batches in the plan's order; the state is one integer.

A global step takes `rows_per_batch * world_size` rows; rank r takes the r-th stretch of `rows_per_batch` of them. So
the rows of a step, and with them everything that is learnt, do not depend on how many ranks share it, and a run
that was stopped goes on from `loader.state`, the next global row, at any other number of ranks.

A document that cannot be loaded (a damaged cache, a file that changed) is padding of its planned length in its row,
and is in `loader.failures` before the step is returned.

Workers are torch's own, spawned, never forked, and off by default: a cached corpus collates 16 rows of 512 tokens in
15 ms, and on a CPU whatever a worker does is taken from training. Turn them on for a GPU (`default_workers`), and for a
`DecodingCorpus`, each worker of which has decoding servers of its own. At most `prefetch_batches` per worker are made
ahead, so memory is bounded by (num_workers * prefetch_batches + 1) batches. They come through shared memory, of which a
container may have next to none: workers that it has no room for are left out, with a warning. Workers ignore Ctrl-C, so
that a run can finish its step, and end within seconds of their parent however it ends; their servers end with them.
What this does not do: replace a worker that is killed. torch raises RuntimeError then, and the run goes on from its
last checkpoint.
"""

import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import torch

from data.batch import Batch, Transform, make_batch
from data.document import MODALITIES
from data.plan import Plan
from data.sequence import FIELDS

logger = logging.getLogger("brine.loader")

SHARED_MEMORY = "/dev/shm"
"""Where torch's workers leave batches for the training process, on Linux."""
TOKEN_BYTES = 8 + 12 + 4 + 4 + 4 + 8 + 2 + 1 + 8
"""Of a token in a batch, its place among the targets included."""
MOST_WORKERS = 4
"""More than a GPU of any speed has needed: a core collates a few hundred thousand tokens a second."""


def default_workers(device: torch.device | str, *, ranks_here: int = 1) -> int:
    """Processes that make batches for one rank: none for a CPU, where they would take from training; for a device, of
    the cores that are this rank's share (`ranks_here` ranks on this machine) all but one, at most a few."""
    if torch.device(device).type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, max(0, cores // ranks_here - 1))


def batch_bytes(plan: Plan, dims: dict[str, int], rows: int) -> int:
    """Bytes of the tensors of a batch of so many rows; dims: length of a patch by modality."""
    media = sum(plan.media_budget[name] * (dims[name] * FIELDS[name].itemsize + 8) for name in MODALITIES)
    return rows * (plan.row_tokens * TOKEN_BYTES + media)


class _Steps(torch.utils.data.Dataset):
    """Step number to this rank's batch; spawned workers get a copy that opens the corpus for itself."""

    def __init__(self, corpus, plan: Plan, rows_per_batch: int, first: int, stride: int, options: dict):
        self.corpus, self.plan, self.options = corpus, plan, options
        self.rows_per_batch, self.first, self.stride = rows_per_batch, first, stride

    def __getitem__(self, step: int) -> Batch:
        first = self.first + step * self.stride
        return make_batch(self.corpus, self.plan, range(first, first + self.rows_per_batch), **self.options)


def _begin_worker(_: int) -> None:
    """In a new worker: leave Ctrl-C to the parent, and end when it does.

    torch's workers look after their parent only while they wait for work, and never while a decoder keeps them waiting.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process().pid

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Loader:
    """Iterates `Batch`es of a plan from a global row on. See the module for ranks, state and failures."""

    def __init__(
        self,
        corpus,
        plan: Plan,
        *,
        rows_per_batch: int,
        start_row: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        prefetch_batches: int = 2,
        drop_last: bool = True,
        blank_modalities: Iterable[str] = MODALITIES,
        transform: Transform | None = None,
        on_failure: Callable[[int, str], None] | None = None,
        pin_memory: bool = False,
    ):
        """rows_per_batch: rows of this rank in a step. start_row: next global row, as `state` gave it.

        num_workers: processes that make batches; 0 makes them in this one, when asked. prefetch_batches: batches that
        each worker may be ahead. pin_memory: page-locked batches, for copies to a GPU that do not wait.
        drop_last: leave out a last step that the plan cannot fill; otherwise its missing rows are padding.
        on_failure(document, reason) is called before the step's batch is returned. Raises ValueError when the
        plan belongs to another corpus or the numbers cannot work.
        """
        if plan.fingerprint != corpus.fingerprint:
            raise ValueError("this row plan was made for another corpus (or another encoding): build the plan again")
        if num_workers < 0 or prefetch_batches < 1:
            raise ValueError(
                f"num_workers={num_workers} must be 0 or more, prefetch_batches={prefetch_batches} at least 1"
            )
        if rows_per_batch < 1 or not 0 <= rank < world_size or not 0 <= start_row <= len(plan):
            raise ValueError(
                f"rows_per_batch={rows_per_batch} must be at least 1, rank={rank} in 0..{world_size - 1} and "
                f"start_row={start_row} in 0..{len(plan)}"
            )
        self.corpus, self.plan = corpus, plan
        self.rows_per_batch, self.rank, self.world_size = rows_per_batch, rank, world_size
        self.num_workers, self.prefetch_batches = num_workers, prefetch_batches
        self.drop_last, self.pin_memory = drop_last, pin_memory
        self.state = start_row
        self.failures: list[tuple[int, str]] = []
        self._on_failure = on_failure
        self._options = {"blank_modalities": tuple(blank_modalities), "transform": transform}

    @property
    def rows_per_step(self) -> int:
        """Rows of a global step, over all ranks."""
        return self.rows_per_batch * self.world_size

    def __len__(self) -> int:
        """Steps left from the current state."""
        left = len(self.plan) - self.state
        return left // self.rows_per_step if self.drop_last else -(-left // self.rows_per_step)

    def __iter__(self) -> Iterator[Batch]:
        first = self.state
        steps = _Steps(
            self.corpus,
            self.plan,
            self.rows_per_batch,
            first + self.rank * self.rows_per_batch,
            self.rows_per_step,
            self._options,
        )
        num_workers = self._workers_with_room()
        batches = torch.utils.data.DataLoader(
            steps,
            batch_size=None,
            sampler=range(len(self)),
            num_workers=num_workers,
            prefetch_factor=self.prefetch_batches if num_workers else None,
            worker_init_fn=_begin_worker,
            multiprocessing_context="spawn" if num_workers else None,
            pin_memory=self.pin_memory,
            # without one of its own it would draw from torch's global generator, and shift what a resumed run draws
            generator=torch.Generator(),
        )
        for number, batch in enumerate(batches):
            for document, reason in batch.failures:
                self.failures.append((document, reason))
                if self._on_failure is not None:
                    self._on_failure(document, reason)
            # counted before it is handed out: once the caller holds a batch, resuming means the one after it
            self.state = min(first + (number + 1) * self.rows_per_step, len(self.plan))
            yield batch

    def _workers_with_room(self) -> int:
        """As many of the workers asked for as shared memory has room for; a batch that finds none kills its worker."""
        if not self.num_workers or not os.path.isdir(SHARED_MEMORY):
            return self.num_workers
        size = batch_bytes(self.plan, self.corpus.config.dims, self.rows_per_batch)
        # of all ranks on this machine, and not to the last page
        ranks_here = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        room = 0.9 * shutil.disk_usage(SHARED_MEMORY).free / ranks_here
        fitting = max(0, int((room / max(1, size) - 1) // self.prefetch_batches))
        if fitting < self.num_workers:
            logger.warning(
                "%d of %d loader workers: %s has room for %.1f GiB of this rank's batches, each of %.2f GiB, and each "
                "worker is %d ahead. Batches stay the same, loading them is slower. Give a container more "
                "(docker run --shm-size=16g or --ipc=host).",
                fitting, self.num_workers, SHARED_MEMORY, room / 2**30, size / 2**30, self.prefetch_batches,
            )  # fmt: skip
        return min(fitting, self.num_workers)
