"""Batches in the plan's order; the state is one integer.

A global step takes `local_batch_size * world_size` packed sequences, and rank r the r-th part of them. So the sequences
of a step do not depend on how many ranks share it, and a stopped run resumes from `loader.state`, the next global
sequence, at any other number of ranks. A document that cannot be loaded becomes padding of its planned length.

Workers are torch's, spawned, at most `prefetch_batches` ahead each. Batches come through shared memory; workers that do
not fit there are not started, with a warning. Workers ignore Ctrl-C, so that a run can finish its step, and end within
seconds of their parent. A worker that is killed is not replaced: torch raises RuntimeError then.
"""

import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator

import torch

from brine.common.processes import exit_with_parent, usable_cores
from brine.data.batch import Batch, Transform, make_batch
from brine.data.document import MODALITIES
from brine.data.packing.plan import PackingPlan
from brine.data.sequence import FIELDS

logger = logging.getLogger("brine.loader")

SHARED_MEMORY = "/dev/shm"  # through which torch's workers hand over batches, on Linux
TOKEN_BYTES = 8 + 12 + 4 + 4 + 4 + 8 + 2 + 1 + 8  # bytes of a token in a batch, its index among the targets included
MAX_WORKERS = 4  # a core collates a few hundred thousand tokens per second


def default_loader_workers(device: torch.device | str, *, local_world_size: int = 1) -> int:
    """Processes that make batches for one rank: none on a CPU, where they would slow training.

    For a device all but one of this rank's share of the cores (`local_world_size` ranks here), at most MAX_WORKERS.
    """
    if torch.device(device).type == "cpu":
        return 0
    return min(MAX_WORKERS, max(0, usable_cores() // local_world_size - 1))


def batch_bytes(plan: PackingPlan, dims: dict[str, int], num_sequences: int) -> int:
    """Bytes of the tensors of a batch of so many sequences; dims: length of a patch by modality."""
    media = sum(plan.media_budget[name] * (dims[name] * FIELDS[name].itemsize + 8) for name in MODALITIES)
    return num_sequences * (plan.seq_len * TOKEN_BYTES + media)


class _StepDataset(torch.utils.data.Dataset):
    """Step number to this rank's batch; spawned workers get a copy that opens the corpus for itself."""

    def __init__(
        self, corpus, plan: PackingPlan, local_batch_size: int, first: int, stride: int, transform: Transform | None
    ):
        self.corpus, self.plan, self.transform = corpus, plan, transform
        self.local_batch_size, self.first, self.stride = local_batch_size, first, stride

    def __getitem__(self, step: int) -> Batch:
        first = self.first + step * self.stride
        indices = range(first, first + self.local_batch_size)
        return make_batch(self.corpus, self.plan, indices, transform=self.transform)


def _init_worker(_: int) -> None:
    """Ignore Ctrl-C, and end when the parent does: torch's workers look only while they wait for work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent(multiprocessing.parent_process().pid)


class Loader:
    """Iterates `Batch`es of a plan from a global sequence on; see the module."""

    def __init__(
        self,
        corpus,
        plan: PackingPlan,
        *,
        local_batch_size: int,
        start_sequence: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        prefetch_batches: int = 2,
        transform: Transform | None = None,
        pin_memory: bool = False,
    ):
        """local_batch_size: sequences of this rank in a step. start_sequence: next global sequence, as `state` gave it.

        num_workers: processes that make batches; 0 makes them in this one, when asked. A last step that the plan cannot
        fill is left out. Raises ValueError when the plan belongs to another corpus or the numbers cannot work.
        """
        if plan.fingerprint != corpus.fingerprint:
            raise ValueError("this plan was made for another corpus (or another encoding): build the plan again")
        if num_workers < 0 or prefetch_batches < 1:
            raise ValueError(
                f"num_workers={num_workers} must be 0 or more, prefetch_batches={prefetch_batches} at least 1"
            )
        if local_batch_size < 1 or not 0 <= rank < world_size or not 0 <= start_sequence <= len(plan):
            raise ValueError(
                f"local_batch_size={local_batch_size} must be at least 1, rank={rank} in 0..{world_size - 1} and "
                f"start_sequence={start_sequence} in 0..{len(plan)}"
            )
        self.corpus, self.plan = corpus, plan
        self.local_batch_size, self.rank, self.world_size = local_batch_size, rank, world_size
        self.num_workers, self.prefetch_batches = num_workers, prefetch_batches
        self.pin_memory, self.transform = pin_memory, transform
        self.state = start_sequence

    @property
    def global_batch_size(self) -> int:
        """Sequences of a global step, over all ranks."""
        return self.local_batch_size * self.world_size

    def __len__(self) -> int:
        """Steps left from the current state."""
        return (len(self.plan) - self.state) // self.global_batch_size

    def __iter__(self) -> Iterator[Batch]:
        first, size, stride = self.state, self.local_batch_size, self.global_batch_size
        steps = _StepDataset(self.corpus, self.plan, size, first + self.rank * size, stride, self.transform)
        num_workers = self._workers_that_fit()
        batches = torch.utils.data.DataLoader(
            steps,
            batch_size=None,
            sampler=range(len(self)),
            num_workers=num_workers,
            prefetch_factor=self.prefetch_batches if num_workers else None,
            worker_init_fn=_init_worker,
            multiprocessing_context="spawn" if num_workers else None,
            pin_memory=self.pin_memory,
            # else it would draw from torch's global generator, and shift what a resumed run draws
            generator=torch.Generator(),
        )
        for number, batch in enumerate(batches):
            # counted before it is handed out: once the caller holds a batch, resuming means the one after it
            self.state = first + (number + 1) * stride
            yield batch

    def _workers_that_fit(self) -> int:
        """As many workers as fit shared memory; a batch that does not fit kills its worker."""
        if not self.num_workers or not os.path.isdir(SHARED_MEMORY):
            return self.num_workers
        size = batch_bytes(self.plan, self.corpus.config.dims, self.local_batch_size)
        # of all ranks on this machine, and not to the last page
        local_world_size = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        free = 0.9 * shutil.disk_usage(SHARED_MEMORY).free / local_world_size
        fitting = max(0, int((free / max(1, size) - 1) // self.prefetch_batches))
        if fitting < self.num_workers:
            logger.warning(
                "%d of %d loader workers: %s has %.1f GiB free for this rank's batches of %.2f GiB, %d ahead in each. "
                "Batches stay the same, loading is slower; docker run --shm-size=16g or --ipc=host gives more.",
                fitting, self.num_workers, SHARED_MEMORY, free / 2**30, size / 2**30, self.prefetch_batches,
            )  # fmt: skip
        return min(fitting, self.num_workers)
