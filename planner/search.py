"""The search for the fastest way to run that fits: meshes, activation checkpointing and MLP tiles.

Every mesh (ranks that share sequences, ranks that share parameters; independent of each other), every way of keeping
activations and a few MLP tiles are tried by `memory.py` and `step_time.py`. Nothing is allocated. Neither memory nor
time has been validated on any GPU, and efficiencies are assumptions (`brine.training.logging.device_specs`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from brine.planner.memory import MemoryEstimate, memory
from brine.planner.run_settings import RunSettings, num_parameters
from brine.planner.step_time import StepTimeEstimate, step_time
from brine.training.config import ACTIVATION_CHECKPOINTING_MODES, TrainConfig
from brine.training.logging.device_specs import DeviceSpec

TILES = (0, 4096, 16384)
SEARCHED = ("context_parallel", "dp_shard", "activation_checkpointing", "ac_group_size", "mlp_tile_tokens")
MIN_TOKENS_PER_RANK = 16
GIB = 2**30
NOTE = "estimate, not validated on this device; efficiencies are assumed"


class PlannerError(ValueError):
    """Nothing fits, or the request contradicts itself; the message says what would help."""


@dataclass(frozen=True)
class RunPlan:
    """One way to run, with its memory and time."""

    case: RunSettings
    memory: MemoryEstimate
    time: StepTimeEstimate
    gradient_accumulation_steps: int
    device: DeviceSpec

    @property
    def fits(self) -> bool:
        """Do the peak and what is offloaded to host memory fit into the usable part of both?"""
        return fits(self.memory, self.device)

    def to_dict(self) -> dict:
        """Plain JSON types."""
        case, time, device = self.case, self.time, self.device
        names = ("seq_len", "micro_batch_size", *SEARCHED)
        return {
            "note": NOTE,
            "device": device.name,
            "source": device.source,
            "gpus": case.ranks,
            **{name: getattr(case, name) for name in names},
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "parameters": num_parameters(case.model),
            "memory_bytes": {name: round(size) for name, size in self.memory.terms.items()},
            "peak_bytes": round(self.memory.peak_bytes),
            "usable_bytes": round(device.usable_bytes),
            "usable_host_bytes": round(device.usable_host_bytes),
            "host_bytes": {name: round(size) for name, size in self.memory.host.items()},
            "step_s": time.total_s,
            "time_s": time.terms,
            "tokens_per_s": time.tokens / time.total_s,
            "mfu": time.mfu(device),
            "bottleneck": time.bottleneck,
        }


def fits(found: MemoryEstimate, device: DeviceSpec) -> bool:
    """Does the peak fit on the device, and the rest on its host?"""
    return found.peak_bytes <= device.usable_bytes and sum(found.host.values()) <= device.usable_host_bytes


def plan_run(case: RunSettings, train: TrainConfig, device: DeviceSpec) -> RunPlan:
    """The plan of one case on a device. Raises ValueError where the sequences of a step cannot be shared so."""
    micro = train.micro_batch_size_on(case.ranks // case.context_parallel)
    steps = train.global_batch_size * case.context_parallel // (case.ranks * micro)
    case = replace(case, micro_batch_size=micro, optimizer=train.optimizer, accumulates_gradients=steps > 1)
    return RunPlan(case, memory(case), step_time(case, device, gradient_accumulation_steps=steps), steps, device)


def candidate_settings(base: RunSettings, fixed: dict) -> Iterator[RunSettings]:
    """Every mesh and setting that agrees with `fixed`, simplest first."""
    ranks = [size for size in range(1, base.ranks + 1) if base.ranks % size == 0]
    modes = ACTIVATION_CHECKPOINTING_MODES if base.device == "cuda" else ACTIVATION_CHECKPOINTING_MODES[:3]
    tried = {"context_parallel": ranks, "dp_shard": ranks, "activation_checkpointing": modes}
    tried |= {name: [fixed[name]] for name in tried if name in fixed}
    for mesh in product(*tried.values()):
        case = replace(base, **dict(zip(tried, mesh, strict=True)))
        if case.context_parallel > 1 and base.seq_len < case.context_parallel * MIN_TOKENS_PER_RANK:
            continue
        group_sizes = ac_group_sizes(base, case.activation_checkpointing)
        tiles = [tile for tile in TILES if not tile or tile < base.seq_len // case.context_parallel]
        for layers in [fixed["ac_group_size"]] if "ac_group_size" in fixed else group_sizes:
            for tile in [fixed["mlp_tile_tokens"]] if "mlp_tile_tokens" in fixed else tiles:
                yield replace(case, ac_group_size=layers, mlp_tile_tokens=tile)


def ac_group_sizes(base: RunSettings, mode: str) -> list[int]:
    """Numbers of local layers that may share one checkpoint: one, and all between two global ones, or half."""
    group = min(base.model.global_every, base.model.num_layers) if mode != "none" else 1
    return sorted({1, group // 2, group - 1} - {0})


def search(base: RunSettings, train: TrainConfig, device: DeviceSpec, fixed: dict) -> tuple[RunPlan, list[RunPlan]]:
    """(the fastest plan that fits, all plans). Raises PlannerError where none fits, or sequences cannot be shared."""
    plans, reason = all_plans(base, train, device, fixed)
    if not plans:
        raise PlannerError(
            f"{reason or f'sequences of {base.seq_len} tokens are too short for this mesh'}: choose "
            "--global-batch-size or --context-parallel so that ranks / context divides the sequences of a step"
        )
    fitting = [plan for plan in plans if plan.fits]
    if not fitting:
        raise PlannerError(_suggestion(plans, train, device, fixed))
    return min(fitting, key=lambda plan: plan.time.total_s), plans


def all_plans(
    base: RunSettings, train: TrainConfig, device: DeviceSpec, fixed: dict | None = None
) -> tuple[list[RunPlan], str]:
    """(every plan that agrees with `fixed`, why the last one without a plan has none)."""
    plans, reason = [], ""
    for case in candidate_settings(base, fixed or {}):
        try:
            plans.append(plan_run(case, train, device))
        except ValueError as error:
            reason = str(error)
    return plans, reason


def longest_that_fits(case: RunSettings, fits: Callable[[RunSettings], bool]) -> int:
    """Longest sequence for which `fits(case)`, in multiples of 1,024 (of 16 a rank below); 0 where nothing fits."""
    step = 1024 if fits(replace(case, seq_len=1024)) else 16 * case.context_parallel
    if not fits(replace(case, seq_len=step)):
        return 0
    low, high = 1, 2
    while high * step <= 2**27 and fits(replace(case, seq_len=high * step)):
        low, high = high, 2 * high
    while high - low > max(1, low // 256):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(replace(case, seq_len=middle * step)) else (low, middle)
    return low * step


def longest_sequence(base: RunSettings, train: TrainConfig, device: DeviceSpec, fixed: dict) -> int:
    """Longest sequence for which some mesh fits; one sequence at a time on each group of ranks."""

    def any_fits(case: RunSettings) -> bool:
        return any(fits(memory(each), device) for each in candidate_settings(case, fixed))

    return longest_that_fits(replace(base, micro_batch_size=1, optimizer=train.optimizer), any_fits)


def _suggestion(plans: Sequence[RunPlan], train: TrainConfig, device: DeviceSpec, fixed: dict) -> str:
    """The message where nothing fits: how much is missing, what takes most, and what would help."""
    nearest = min(plans, key=lambda plan: max(_memory_shares(plan)))
    case = nearest.case
    advice = []
    if fixed and (free := [plan for plan in all_plans(case, train, device)[0] if plan.fits]):
        advice.append(f"{as_options(min(free, key=lambda plan: plan.time.total_s).case)} fits")
    most = longest_sequence(case, train, device, fixed)
    too_large = "no sequence fits, as weights and their gradients are too large"
    advice.append(f"sequences of {most:,} tokens fit" if most else too_large)
    ranks = case.ranks
    while ranks < 1024 and not advice[0].startswith("--"):
        ranks *= 2
        more = replace(train, global_batch_size=ranks, micro_batch_size=1)
        if any(plan.fits for plan in all_plans(replace(case, ranks=ranks), more, device)[0]):
            advice.append(f"{ranks} GPUs fit it")
            break
    on_device, on_host = _memory_shares(nearest)
    where, terms, usable = f"on each of {case.ranks} {device.name}", nearest.memory.terms, device.usable_bytes
    if on_host > on_device:
        where, terms, usable = f"of host memory for each of {case.ranks}", nearest.memory.host, device.usable_host_bytes
    peak_phase = max(terms, key=terms.get)
    return (
        f"does not fit: {sum(terms.values()) / GIB:,.1f} GiB at the least {where}, which have {usable / GIB:,.1f} to "
        f"use (most: {peak_phase}, {terms[peak_phase] / GIB:,.1f} GiB); " + "; ".join(advice)
    )


def _memory_shares(plan: RunPlan) -> tuple[float, float]:
    device, host = plan.device, sum(plan.memory.host.values())
    return plan.memory.peak_bytes / device.usable_bytes, host / device.usable_host_bytes


def as_options(case: RunSettings) -> str:
    """What was searched, as the command line takes it."""
    shared = f"--ac-group-size {case.ac_group_size} " if case.ac_group_size > 1 else ""
    return (
        f"--context-parallel {case.context_parallel} --dp-shard {case.dp_shard} --activation-checkpointing "
        f"{case.activation_checkpointing} {shared}--mlp-tile-tokens {case.mlp_tile_tokens}"
    )
