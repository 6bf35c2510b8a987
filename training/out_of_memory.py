"""Out of memory, told with what would help: what was asked, what there is, and which options make how much room.

    with out_of_memory.told(config=config, runtime=runtime, world=world, folder=folder, row_tokens=32768):
        train(...)                                            raises NoRoomError in place of torch's error

Remedies are those that the planner knows (`training.plan_memory`), each by itself, with the peak that it estimates, and
all together where none is enough. An option of the runtime changes nothing that is learned, so the same command with it
goes on from the last checkpoint; a smaller micro batch is another configuration, and its stage is begun again. That one
is named first only where there is nothing to lose.

Estimates count tensors; on no GPU have they been held against what is really taken. What they leave out (fragments,
buffers of communication) is the share `RESERVE` of a device's memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from training.checkpoint import list_checkpoints
from training.config import CHECKPOINTING, TrainConfig
from training.distributed import World
from training.plan_memory import Case, memory
from training.runtime import Runtime, peak_memory_gib

GIB = 2**30
RESERVE = 0.06
"""Share of a device that no plan may fill, as in `training.gpus`."""
TILE = 4096
"""Tokens of the MLP tile that is proposed."""
HOST_SIGNS = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory")
DEVICE_SIGNS = ("CUDA out of memory", "CUDA error: out of memory")
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


class NoRoomError(ValueError):
    """A run does not fit into memory; the message says what would serve."""


@dataclass(frozen=True)
class Room:
    """Memory of a device or of a host, in bytes."""

    total: float
    free: float
    peak: float
    """Most that this process held so far."""


@contextmanager
def told(
    *, config: TrainConfig, runtime: Runtime, world: World, folder: Path, row_tokens: int, arm: str = "large",
    patches: tuple[tuple[str, int], ...] = (),
) -> Iterator[None]:  # fmt: skip
    """Context of a training run that turns running out of memory into a NoRoomError. See `explain`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise NoRoomError(
            explain(
                error, config=config, runtime=runtime, world=world, folder=folder, row_tokens=row_tokens, arm=arm,
                patches=patches,
            )
        ) from error  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Did an allocation fail, on a device or on the host?"""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in HOST_SIGNS + DEVICE_SIGNS)


def asked_bytes(error: BaseException) -> float | None:
    """Bytes of the allocation that failed, where the message says."""
    found = re.search(r"allocate ([\d.]+) ?(bytes|[KMGT]iB)", str(error))
    return float(found[1]) * UNITS[found[2]] if found else None


def explain(
    error: BaseException,
    *,
    config: TrainConfig,
    runtime: Runtime,
    world: World,
    folder: Path,
    row_tokens: int,
    arm: str = "large",
    patches: tuple[tuple[str, int], ...] = (),
    room: Room | None = None,
) -> str:
    """What to tell the user.

    config: of the model that was trained. folder: its stage's. arm: "small" or "large", as the command line names it.
    patches: (modality, most patches of a row). room: of what ran out; by default it is asked for.
    """
    on_host = runtime.device == "cpu" or not _is_device(error)
    room = room or (_host_room() if on_host else _device_room())
    asked = asked_bytes(error)
    case = present(config, runtime=runtime, world=world, row_tokens=row_tokens, patches=patches)
    counted = _counting(case, on_host)
    usable = room.total * (1 - RESERVE)
    where = "the host" if on_host else "the GPU" if world.size == 1 else f"rank {world.rank}'s GPU"
    want = f"{asked / GIB:.2f} GiB more" if asked else "more"
    free = f"{room.free / GIB:.1f} of {room.total / GIB:.1f} GiB are free"
    lines = [
        f"out of memory on {where}: {want} was asked for; {free}, {room.peak / GIB:.1f} was the most held so far. "
        f"Estimated for these settings: {counted(case) / GIB:.1f} GiB"
    ]
    steps = [one.step for one in list_checkpoints(Path(folder) / "checkpoints")]
    kept = max(steps, default=0)

    def fits(each: Case) -> bool:
        return counted(each) <= usable

    options = remedies(case, config=config, world=world, arm=arm, anew_first=not kept, fits=fits)
    useful = [(option, each) for option, each in options if counted(each) < 0.98 * counted(case)]
    if useful:
        lines.append("What makes room, with the estimated peak (not validated on this device):")
    for option, each in useful:
        anew = f"; begins {Path(folder).name} again" if "micro-rows" in option and kept else ""
        verdict = "fits" if fits(each) else "not enough alone"
        lines.append(f"  {option:<44}{counted(each) / GIB:>8.1f} GiB  ({verdict}{anew})")
    if not useful:
        lines.append("No setting makes room by the planner's estimate: choose shorter rows or a smaller model")
    elif not any(fits(each) for _, each in useful):
        lines.append("Together they may fit: `python -m training.planner` searches, and names the longest row")
    lines.append(
        f"The checkpoint of step {kept} stands: the same command with an option of the runtime goes on from there"
        if steps
        else "No checkpoint was written yet; the same command begins again"
    )
    return "\n".join(lines)


def present(
    config: TrainConfig, *, runtime: Runtime, world: World, row_tokens: int, patches: tuple[tuple[str, int], ...] = ()
) -> Case:
    """The settings that a run has, as the planner takes them."""
    rows = config.micro_rows_on(world.replicas)
    return Case(
        config.model, row_tokens, micro_rows=rows, ranks=world.size, context=world.context, shard=world.shard,
        checkpointing=runtime.checkpointing, checkpoint_layers=runtime.checkpoint_layers, mlp_tile=runtime.mlp_tile,
        dtype="bfloat16" if runtime.dtype == "bfloat16" else "float32", device=runtime.device, compiled=runtime.compile,
        attention_backend=runtime.attention_backend, optimizer=config.optimizer, patches=patches,
        accumulated=config.rows_per_step > rows * world.replicas,
    )  # fmt: skip


def remedies(
    case: Case, *, config: TrainConfig, world: World, arm: str, anew_first: bool, fits: Callable[[Case], bool]
) -> list[tuple[str, Case]]:
    """(option, settings with it), each by itself, in the order to try. anew_first: begin with a smaller micro batch."""
    found: list[tuple[str, Case]] = []
    share = config.rows_per_step // world.replicas
    fewer = [rows for rows in range(case.micro_rows - 1, 0, -1) if share % rows == 0]
    if fewer:
        smaller = [replace(case, micro_rows=rows, accumulated=True) for rows in fewer]
        best = next((each for each in smaller if fits(each)), smaller[-1])
        found.append((f"--{arm}.micro-rows {best.micro_rows}", best))
    modes = CHECKPOINTING if case.device == "cuda" else CHECKPOINTING[:3]
    for mode in modes:
        if mode not in ("none", case.checkpointing):
            found.append((f"--runtime.checkpointing {mode}", replace(case, checkpointing=mode)))
    if case.row_tokens // case.context > TILE and not 0 < case.mlp_tile <= TILE:
        found.append((f"--runtime.mlp-tile {TILE}", replace(case, mlp_tile=TILE)))
    more = 2 * case.context
    if world.size == 1:
        found.append(("torchrun --nproc-per-node 2 ... --runtime.context 2", replace(case, ranks=2, context=2)))
        found.append(("torchrun --nproc-per-node 2 ... --runtime.shard 2", replace(case, ranks=2, shard=2)))
    elif world.size % more == 0:
        found.append((f"--runtime.context {more}", replace(case, context=more)))
    if world.size > 1 and case.shard < world.size:
        found.append((f"--runtime.shard {world.size}", replace(case, shard=world.size)))
    if not anew_first:
        found.sort(key=lambda each: "micro-rows" in each[0])
    return found


def _counting(case: Case, on_host: bool) -> Callable[[Case], float]:
    """What is counted of a case: what ran out."""
    if on_host and case.device != "cpu":
        return lambda each: sum(memory(each).host.values())
    return lambda each: memory(each).peak_bytes


def _is_device(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in DEVICE_SIGNS)


def _device_room() -> Room:
    free, total = torch.cuda.mem_get_info()
    return Room(total, free, torch.cuda.max_memory_allocated())


def _host_room() -> Room:
    page = os.sysconf("SC_PAGE_SIZE")
    return Room(page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES"), peak_memory_gib("cpu") * GIB)
