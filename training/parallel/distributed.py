"""Ranks: their identity, their sums, and how they notice that one of them failed.

`torchrun` starts the ranks; on CPUs they use gloo, on GPUs NCCL, and gloo for small values. A rank that dies closes its
connections, and the others fail immediately; for one that hangs, every rank leaves a mark in torchrun's store
(`World.mark`), and the error says where each was last seen. No elasticity: `torchrun --max-restarts` starts all ranks
again, which resume from the last checkpoint.
"""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from brine.common.processes import die_with_parent

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

COLLECTIVE_TIMEOUT_S = 1800.0
BUCKET_NUMBERS = 2**23
T = TypeVar("T")


class RankFailedError(RuntimeError):
    """Another rank has ended; this one cannot continue alone."""


@dataclass(frozen=True)
class World:
    """This process among the ranks of a run.

    local_size: ranks on this machine, which share its threads. context_parallel, dp_shard: consecutive ranks that split
    each sequence, and that hold one copy of the model between them. context_parallel_group: name of a process group, ""
    where sequences are not shared. mesh: ranks as replicate x shard; None where every rank has the whole model. store:
    where ranks leave marks; None for a single rank."""

    rank: int = 0
    size: int = 1
    local_size: int = 1
    context_parallel: int = 1
    context_parallel_group: str = ""
    dp_shard: int = 1
    mesh: DeviceMesh | None = field(default=None, compare=False)
    timeout_s: float = COLLECTIVE_TIMEOUT_S
    store: dist.Store | None = field(default=None, compare=False)

    @property
    def dp_rank(self) -> int:
        """Number of this rank's group among those that read different sequences."""
        return self.rank // self.context_parallel

    @property
    def dp_size(self) -> int:
        """Number of such groups."""
        return self.size // self.context_parallel

    @property
    def is_main(self) -> bool:
        """Rank 0 writes files and prints; the others are silent."""
        return self.rank == 0

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over ranks, in place, in buckets of at most 2**23 numbers.

        Raises RankFailedError when another rank has ended, as all collectives here do.
        """
        if self.size > 1:
            for tensor in tensors:
                flat = tensor.view(-1)
                for start in range(0, flat.numel(), BUCKET_NUMBERS):
                    bucket = flat[start : start + BUCKET_NUMBERS]
                    self._collective(partial(dist.all_reduce, bucket, op=dist.ReduceOp.SUM))

    def warm_up_group(self, group: dist.ProcessGroup | None, *, device: str) -> None:
        """The first collective of a new group, in which all of its ranks take part; None is the group of all.

        NCCL connects a group's ranks in its first collective, and where only some of them come to that one, as may
        happen between ranks that exchange keys, what follows is undefined: usually all wait for ever. So every group is
        connected where it is made. (Binding the device in `init_process_group` would connect groups early too, by
        splitting communicators, which not every backend can.)
        """
        met = torch.ones(1, device=device)

        def count_ranks() -> int:
            dist.all_reduce(met, group=group)
            return int(met)

        came, size = self._collective(count_ranks), dist.get_world_size(group)
        if came != size:
            raise self.rank_failed_error(RuntimeError(f"{came} of {size} ranks of a group met"))

    def mark(self, what: str) -> None:
        """Record what this rank is about to do, for others to read if it does not come back from it."""
        if self.store is not None:
            self.store.set(f"at/{self.rank}", json.dumps([what, time.time()]))

    def last_seen(self) -> str:
        """Where every rank was last seen, as a sentence; those at the same point together. Waits for no rank."""
        seen: dict[str, list[int]] = {}
        for rank in range(self.size):
            what, when = "nowhere yet", None
            try:
                # a store that is gone with its rank must not be waited for
                if self.store is not None and self.store.check([f"at/{rank}"]):
                    what, when = json.loads(self.store.get(f"at/{rank}"))
            except (RuntimeError, ValueError):
                what = "nowhere, since the store is gone"
            ago = "" if when is None else f" {max(0.0, time.time() - when):.0f} s ago"
            seen.setdefault(f"last seen{ago}: {what}", []).append(rank)
        return "; ".join(
            f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} {words}"
            for words, ranks in sorted(seen.items(), key=lambda item: len(item[1]))
        )

    def rank_failed_error(self, error: BaseException) -> RankFailedError:
        """The error to raise when a collective failed: names where every rank was last seen."""
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        return RankFailedError(
            f"rank {self.rank} lost contact with another rank (it exited or hangs). {self.last_seen()}. "
            f"The same command resumes from the last checkpoint ({reason})"
        )

    def gather(self, value: Any) -> list[Any]:
        """Every rank's plain value, in order of ranks."""
        values = [value] * self.size
        if self.size > 1:
            self._collective(lambda: dist.all_gather_object(values, value))
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's plain value, on every rank."""
        values = [value]
        if self.size > 1:
            self._collective(lambda: dist.broadcast_object_list(values))
        return values[0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            self._collective(dist.barrier)

    def _collective(self, run: Callable[[], T]) -> T:
        try:
            return run()
        except RuntimeError as error:
            raise self.rank_failed_error(error) from error


def init_distributed(*, device: str = "cpu", timeout_s: float = COLLECTIVE_TIMEOUT_S) -> World:
    """Join the ranks that torchrun started; a single rank where it did not.

    Raises ValueError for an environment that is not whole.
    """
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return World()
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(f"WORLD_SIZE is set, but {', '.join(missing)} is not: start with torchrun")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # torchrun starts each rank in its own session: killed, it would leave them behind, holding the run folder
        die_with_parent()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    timeout = datetime.timedelta(seconds=timeout_s)
    store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=timeout))
    # torchrun's store outlives the ranks that it starts again, and gloo would find the addresses of the dead there
    store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    if not dist.is_initialized():
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", store=dist.PrefixStore("groups", store),
            rank=rank, world_size=size, timeout=timeout,
        )  # fmt: skip
    world = World(
        rank=rank, size=size, local_size=int(os.environ.get("LOCAL_WORLD_SIZE", size)),
        timeout_s=timeout_s, store=dist.PrefixStore("marks", store),
    )  # fmt: skip
    world.mark("init_process_group (rendezvous)")
    for kind in ("cpu", "cuda") if device == "cuda" else ("cpu",):
        world.warm_up_group(None, device=kind)
    return world


def destroy_distributed() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_rank_failure(error: BaseException) -> bool:
    """Did a collective fail because another rank has ended or hangs?"""
    if isinstance(error, RankFailedError):
        return False
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
