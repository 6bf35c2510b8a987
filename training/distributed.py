"""Plain data parallelism: every rank has the whole model, its share of each step's rows, and sums with the others.

Gradients of the *summed* loss are summed over ranks and divided once by the number of targets of the whole step, so
the update is the mean over all targets however rows and targets fall to ranks: two ranks equal one up to rounding.
Averaging each rank's mean instead, as is common, weighs a target by how few its rank has.

`torchrun` starts the ranks and tells them who they are through the environment. On CPUs they speak gloo. While
rank 0 alone builds a corpus the others wait for its `done` mark by looking at the disk, not inside a collective: the
wait has a time-out, and the lock that rank 0 holds on the run folder shows whether it still lives (the kernel
lets go of a dead process's lock). What this file does not do: sharding, elasticity, or rows that lie on several ranks
(`parallel.py`).
"""

from __future__ import annotations

import datetime
import fcntl
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

COLLECTIVE_TIMEOUT_S = 1800.0
BUCKET_NUMBERS = 2**23
LOCK_NAME = "lock"


class RankLostError(RuntimeError):
    """Another rank has ended; this one cannot go on alone."""


@dataclass(frozen=True)
class World:
    """Who this process is among the ranks of a run."""

    rank: int = 0
    """This process's number."""
    size: int = 1
    """Number of ranks."""
    local_size: int = 1
    """Number of ranks on this machine, which share its threads."""
    context: int = 1
    """Neighbouring ranks that share rows, each holding a part of every one (`training.parallel`)."""
    context_group: str = ""
    """Name of their process group; empty where rows are not shared."""

    @property
    def replica(self) -> int:
        """Number of this rank's group among those that read different rows."""
        return self.rank // self.context

    @property
    def replicas(self) -> int:
        """Number of such groups."""
        return self.size // self.context

    @property
    def is_main(self) -> bool:
        """Rank 0 writes files and speaks; the others are silent."""
        return self.rank == 0

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over ranks, in place, in buckets of at most 2**23 numbers.

        Raises RankLostError when another rank has ended.
        """
        if self.size == 1:
            return
        try:
            for tensor in tensors:
                flat = tensor.view(-1)
                for start in range(0, flat.numel(), BUCKET_NUMBERS):
                    dist.all_reduce(flat[start : start + BUCKET_NUMBERS], op=dist.ReduceOp.SUM)
        except RuntimeError as error:
            raise RankLostError(_lost(self.rank, error)) from error

    def barrier(self) -> None:
        """Wait until every rank is here. Raises RankLostError when one has ended."""
        if self.size == 1:
            return
        try:
            dist.barrier()
        except RuntimeError as error:
            raise RankLostError(_lost(self.rank, error)) from error


def start_world(*, device: str = "cpu", timeout_s: float = COLLECTIVE_TIMEOUT_S) -> World:
    """Join the ranks that torchrun started; a single rank where it did not.

    Raises ValueError for an environment that is not whole.
    """
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return World()
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(f"WORLD_SIZE is set, but {', '.join(missing)} is not: start with torchrun")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if not dist.is_initialized():
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            rank=rank,
            world_size=size,
            timeout=datetime.timedelta(seconds=timeout_s),
        )
    return World(rank=rank, size=size, local_size=int(os.environ.get("LOCAL_WORLD_SIZE", size)))


def close_world() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait_for(ready: Callable[[], bool], *, run_folder: Path, what: str, timeout_s: float, poll_s: float = 0.2) -> None:
    """Wait on the disk until `ready()`, while rank 0 works.

    Raises RankLostError when rank 0 has let go of the run folder's lock, TimeoutError after `timeout_s`.
    """
    start = time.monotonic()
    while not ready():
        if not lock_is_held(run_folder) and not ready():
            raise RankLostError(f"rank 0 ended before {what} was done: see its message; the same command goes on")
        if time.monotonic() - start > timeout_s:
            raise TimeoutError(
                f"waited {timeout_s:.0f} s for rank 0 to finish {what}: raise the time-out or look at it"
            )
        time.sleep(poll_s)


def lock_is_held(run_folder: Path) -> bool:
    """Does some living process hold the run folder's lock?"""
    try:
        with open(Path(run_folder) / LOCK_NAME, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            fcntl.flock(file, fcntl.LOCK_UN)
            return False
    except FileNotFoundError:
        return False


def _lost(rank: int, error: Exception) -> str:
    return f"rank {rank} lost touch with another rank, which has ended or hangs ({error}); the same command goes on"
