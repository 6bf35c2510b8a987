"""Out of memory, explained: what was asked for, what there is, and which options make how much memory free.

    with explain_out_of_memory(config=config, runtime=runtime, world=world, folder=folder, seq_len=32768):
        Trainer(...).run()                                    raises InsufficientMemoryError in place of torch's error

Remedies are those of the planner, each with its estimated peak. An option of the runtime lets the same command
resume; a smaller micro-batch is another configuration, which begins its stage again, and comes first only before the
first checkpoint.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from brine.planner.memory import RunSettings, memory
from brine.training.checkpoint.checkpoint import list_checkpoints
from brine.training.config import ACTIVATION_CHECKPOINTING_MODES, TrainConfig
from brine.training.parallel.distributed import World
from brine.training.runtime import Runtime, peak_resident_gib

GIB = 2**30
RESERVE = 0.06
"""Share of a device that no plan may fill, as in `brine.training.logging.device_specs`."""
TILE = 4096
"""Tokens of the MLP tile that is proposed."""
HOST_SIGNS = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory")
DEVICE_SIGNS = ("CUDA out of memory", "CUDA error: out of memory")
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


class InsufficientMemoryError(ValueError):
    """A run does not fit into memory; the message says what would serve."""


@dataclass(frozen=True)
class MemoryInfo:
    """Memory of a device or of a host, in bytes."""

    total: float
    free: float
    peak: float
    """Most that this process held so far."""


@contextmanager
def explain_out_of_memory(
    *, config: TrainConfig, runtime: Runtime, world: World, folder: Path, seq_len: int, arm: str = "large",
    patches: tuple[tuple[str, int], ...] = (),
) -> Iterator[None]:  # fmt: skip
    """Context of a training run that turns running out of memory into a InsufficientMemoryError. See `explain`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise InsufficientMemoryError(
            explain(
                error, config=config, runtime=runtime, world=world, folder=folder, seq_len=seq_len, arm=arm,
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
    seq_len: int,
    arm: str = "large",
    patches: tuple[tuple[str, int], ...] = (),
    room: MemoryInfo | None = None,
) -> str:
    """What to tell the user.

    config: of the model that was trained. folder: its stage's. arm: "small" or "large", as the command line names it.
    patches: (modality, most patches of a row). room: of what ran out; by default it is asked for.
    """
    on_host = runtime.device == "cpu" or not _is_device(error)
    room = room or (_host_room() if on_host else _device_room())
    asked = asked_bytes(error)
    case = current_settings(config, runtime=runtime, world=world, seq_len=seq_len, patches=patches)
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

    def fits(each: RunSettings) -> bool:
        return counted(each) <= usable

    options = suggestions(case, config=config, world=world, arm=arm, restart_first=not kept, fits=fits)
    useful = [(option, each) for option, each in options if counted(each) < 0.98 * counted(case)]
    if useful:
        lines.append("What makes room, with the estimated peak (not validated on this device):")
    for option, each in useful:
        restart_note = f"; begins {Path(folder).name} again" if "micro-batch-size" in option and kept else ""
        fit_note = "fits" if fits(each) else "not enough alone"
        lines.append(f"  {option:<44}{counted(each) / GIB:>8.1f} GiB  ({fit_note}{restart_note})")
    if not useful:
        lines.append("No setting makes room by the planner's estimate: choose shorter rows or a smaller model")
    elif not any(fits(each) for _, each in useful):
        lines.append("Together they may fit: `python -m brine.planner` searches, and names the longest row")
    lines.append(
        f"The checkpoint of step {kept} stands: the same command with an option of the runtime goes on from there"
        if steps
        else "No checkpoint was written yet; the same command begins again"
    )
    return "\n".join(lines)


def current_settings(
    config: TrainConfig, *, runtime: Runtime, world: World, seq_len: int, patches: tuple[tuple[str, int], ...] = ()
) -> RunSettings:
    """The settings that a run has, as the planner takes them."""
    rows = config.micro_batch_size_on(world.dp_size)
    return RunSettings(
        config.model, seq_len, micro_batch_size=rows, ranks=world.size, context_parallel=world.context_parallel,
        dp_shard=world.dp_shard, activation_checkpointing=runtime.activation_checkpointing,
        ac_group_size=runtime.ac_group_size, mlp_tile_tokens=runtime.mlp_tile_tokens,
        dtype="bfloat16" if runtime.dtype == "bfloat16" else "float32", device=runtime.device, compiled=runtime.compile,
        attention_backend=runtime.attention_backend, optimizer=config.optimizer, patches=patches,
        accumulates_gradients=config.global_batch_size > rows * world.dp_size,
    )  # fmt: skip


def suggestions(
    case: RunSettings,
    *,
    config: TrainConfig,
    world: World,
    arm: str,
    restart_first: bool,
    fits: Callable[[RunSettings], bool],
) -> list[tuple[str, RunSettings]]:
    """(option, settings with it), each by itself, in the order to try. restart_first: begin with a smaller micro
    batch."""
    found: list[tuple[str, RunSettings]] = []
    share = config.global_batch_size // world.dp_size
    fewer = [rows for rows in range(case.micro_batch_size - 1, 0, -1) if share % rows == 0]
    if fewer:
        smaller = [replace(case, micro_batch_size=rows, accumulates_gradients=True) for rows in fewer]
        best = next((each for each in smaller if fits(each)), smaller[-1])
        found.append((f"--{arm}.micro-batch-size {best.micro_batch_size}", best))
    modes = ACTIVATION_CHECKPOINTING_MODES if case.device == "cuda" else ACTIVATION_CHECKPOINTING_MODES[:3]
    for mode in modes:
        if mode not in ("none", case.activation_checkpointing):
            found.append((f"--runtime.activation-checkpointing {mode}", replace(case, activation_checkpointing=mode)))
    if case.seq_len // case.context_parallel > TILE and not 0 < case.mlp_tile_tokens <= TILE:
        found.append((f"--runtime.mlp-tile-tokens {TILE}", replace(case, mlp_tile_tokens=TILE)))
    more = 2 * case.context_parallel
    if world.size == 1:
        found.append(
            ("torchrun --nproc-per-node 2 ... --runtime.context-parallel 2", replace(case, ranks=2, context_parallel=2))
        )
        found.append(("torchrun --nproc-per-node 2 ... --runtime.dp-shard 2", replace(case, ranks=2, dp_shard=2)))
    elif world.size % more == 0:
        found.append((f"--runtime.context-parallel {more}", replace(case, context_parallel=more)))
    if world.size > 1 and case.dp_shard < world.size:
        found.append((f"--runtime.dp-shard {world.size}", replace(case, dp_shard=world.size)))
    if not restart_first:
        found.sort(key=lambda each: "micro-batch-size" in each[0])
    return found


def _counting(case: RunSettings, on_host: bool) -> Callable[[RunSettings], float]:
    """What is counted of a case: what ran out."""
    if on_host and case.device != "cpu":
        return lambda each: sum(memory(each).host.values())
    return lambda each: memory(each).peak_bytes


def _is_device(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in DEVICE_SIGNS)


def _device_room() -> MemoryInfo:
    free, total = torch.cuda.mem_get_info()
    return MemoryInfo(total, free, torch.cuda.max_memory_allocated())


def _host_room() -> MemoryInfo:
    page = os.sysconf("SC_PAGE_SIZE")
    return MemoryInfo(
        page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES"), peak_resident_gib() * GIB
    )
