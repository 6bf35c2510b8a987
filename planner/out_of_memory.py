"""Out of memory, explained: what was asked for, what there is, and which options make how much memory free.

`with explain_out_of_memory(...)` around a training raises InsufficientMemoryError in place of torch's error. Remedies
are those of the planner, each with its estimated peak. With an option of the runtime the same command resumes; a
smaller micro-batch begins its stage again, and comes first only before the first checkpoint.
"""

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
from brine.training.logging.device_specs import DeviceSpec
from brine.training.parallel.distributed import World
from brine.training.runtime import Runtime, peak_resident_gib

GIB = 2**30
TILE = 4096
HOST_SIGNS = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory")
DEVICE_SIGNS = ("CUDA out of memory", "CUDA error: out of memory")
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


class InsufficientMemoryError(ValueError):
    """A run does not fit into memory; the message says what would help."""


@dataclass(frozen=True)
class MemoryInfo:
    """Memory of a device or of a host, and the most that this process has held so far, in bytes."""

    total: float
    free: float
    peak: float


@contextmanager
def explain_out_of_memory(**options) -> Iterator[None]:
    """Context of a training run that turns out of memory into InsufficientMemoryError. options: see `explain`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise InsufficientMemoryError(explain(error, **options)) from error


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
    error: BaseException, *, config: TrainConfig, runtime: Runtime, world: World, folder: Path, seq_len: int,
    model_name: str = "large", patches: tuple[tuple[str, int], ...] = (), info: MemoryInfo | None = None,
) -> str:  # fmt: skip
    """The message for the user.

    config: of the model that was trained. folder: its stage's. model_name: "small" or "large", as the command line
    names it. patches: (modality, maximum patches per sequence). info: of what ran out; None: as the system reports it.
    """
    on_device = isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in DEVICE_SIGNS)
    on_host = runtime.device == "cpu" or not on_device
    info = info or _memory_info(on_host)
    asked = asked_bytes(error)
    case = current_settings(config, runtime=runtime, world=world, seq_len=seq_len, patches=patches)
    counts_host = on_host and case.device != "cpu"

    def counted(each: RunSettings) -> float:
        found = memory(each)
        return sum(found.host.values()) if counts_host else found.peak_bytes

    def fits(each: RunSettings) -> bool:
        return counted(each) <= info.total * (1 - DeviceSpec.reserve)

    where = "the host" if on_host else "the GPU" if world.size == 1 else f"rank {world.rank}'s GPU"
    want = f"{asked / GIB:.2f} GiB" if asked else "more"
    lines = [
        f"out of memory on {where}: tried to allocate {want}; {info.free / GIB:.1f} of {info.total / GIB:.1f} GiB are "
        f"free, {info.peak / GIB:.1f} was the peak so far. Estimated for these settings: "
        f"{counted(case) / GIB:.1f} GiB"
    ]
    steps = [one.step for one in list_checkpoints(Path(folder) / "checkpoints")]
    last = max(steps, default=0)
    options = suggestions(case, config=config, world=world, model_name=model_name, restart_first=not last, fits=fits)
    useful = [(option, each) for option, each in options if counted(each) < 0.98 * counted(case)]
    if useful:
        lines.append("What frees memory, with the estimated peak (not validated on this device):")
    for option, each in useful:
        restart_note = f"; begins {Path(folder).name} again" if "micro-batch-size" in option and last else ""
        fit_note = "fits" if fits(each) else "not enough alone"
        lines.append(f"  {option:<44}{counted(each) / GIB:>8.1f} GiB  ({fit_note}{restart_note})")
    if not useful:
        lines.append("No setting frees enough by the planner's estimate: choose shorter sequences or a smaller model")
    elif not any(fits(each) for _, each in useful):
        lines.append("Together they may fit: `brine plan` searches, and names the longest sequence")
    lines.append(
        f"The checkpoint of step {last} stands: the same command with an option of the runtime continues from there"
        if steps
        else "No checkpoint was written yet; the same command begins again"
    )
    return "\n".join(lines)


def current_settings(
    config: TrainConfig, *, runtime: Runtime, world: World, seq_len: int, patches: tuple[tuple[str, int], ...] = ()
) -> RunSettings:
    """The settings that a run has, as the planner takes them."""
    micro = config.micro_batch_size_on(world.dp_size)
    return RunSettings(
        config.model, seq_len, micro_batch_size=micro, ranks=world.size, context_parallel=world.context_parallel,
        dp_shard=world.dp_shard, activation_checkpointing=runtime.activation_checkpointing,
        ac_group_size=runtime.ac_group_size, mlp_tile_tokens=runtime.mlp_tile_tokens,
        dtype="bfloat16" if runtime.dtype == "bfloat16" else "float32", device=runtime.device, compiled=runtime.compile,
        attention_backend=runtime.attention_backend, optimizer=config.optimizer, patches=patches,
        accumulates_gradients=config.global_batch_size > micro * world.dp_size,
    )  # fmt: skip


def suggestions(
    case: RunSettings, *, config: TrainConfig, world: World, model_name: str, restart_first: bool,
    fits: Callable[[RunSettings], bool],
) -> list[tuple[str, RunSettings]]:  # fmt: skip
    """(option, settings with it), each separately, in the order to try. restart_first: begin with a smaller
    micro-batch."""
    found: list[tuple[str, RunSettings]] = []
    share = config.global_batch_size // world.dp_size
    fewer = [micro for micro in range(case.micro_batch_size - 1, 0, -1) if share % micro == 0]
    if fewer:
        smaller = [replace(case, micro_batch_size=micro, accumulates_gradients=True) for micro in fewer]
        best = next((each for each in smaller if fits(each)), smaller[-1])
        found.append((f"--{model_name}.micro-batch-size {best.micro_batch_size}", best))
    modes = ACTIVATION_CHECKPOINTING_MODES if case.device == "cuda" else ACTIVATION_CHECKPOINTING_MODES[:3]
    for mode in modes:
        if mode not in ("none", case.activation_checkpointing):
            found.append((f"--runtime.activation-checkpointing {mode}", replace(case, activation_checkpointing=mode)))
    if case.seq_len // case.context_parallel > TILE and not 0 < case.mlp_tile_tokens <= TILE:
        found.append((f"--runtime.mlp-tile-tokens {TILE}", replace(case, mlp_tile_tokens=TILE)))
    more = 2 * case.context_parallel
    if world.size == 1:
        for name in ("context_parallel", "dp_shard"):
            option = f"torchrun --nproc-per-node 2 ... --runtime.{name.replace('_', '-')} 2"
            found.append((option, replace(case, ranks=2, **{name: 2})))
    elif world.size % more == 0:
        found.append((f"--runtime.context-parallel {more}", replace(case, context_parallel=more)))
    if world.size > 1 and case.dp_shard < world.size:
        found.append((f"--runtime.dp-shard {world.size}", replace(case, dp_shard=world.size)))
    if not restart_first:
        found.sort(key=lambda each: "micro-batch-size" in each[0])
    return found


def _memory_info(on_host: bool) -> MemoryInfo:
    if not on_host:
        free, total = torch.cuda.mem_get_info()
        return MemoryInfo(total, free, torch.cuda.max_memory_allocated())
    total, free = (os.sysconf("SC_PAGE_SIZE") * os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    return MemoryInfo(total, free, peak_resident_gib() * GIB)
