"""`brine plan`: will a recipe fit, how long is a step, what is the longest sequence, which mesh is best.

    brine plan long_1m --gpus 1 --gpu h200
    brine plan long_1m --gpus 64 --gpu h200 --seq-len 10000000 --context-parallel 64 --dp-shard 64

Given settings are fixed, the rest are searched (`search.py`); recipe fields can be overridden as in train.py.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch

from brine.common.closed_pipe import exit_on_closed_pipe
from brine.common.formatting import count, duration
from brine.model.device import supports_bfloat16
from brine.pipeline.recipe import Recipe
from brine.planner.run_settings import RunSettings, num_parameters
from brine.planner.search import (
    GIB,
    MIN_TOKENS_PER_RANK,
    NOTE,
    SEARCHED,
    PlannerError,
    RunPlan,
    as_options,
    longest_sequence,
    search,
)
from brine.recipes.launch import FLATTENED, option_groups, parse_options
from brine.recipes.registry import RECIPES, find_recipe
from brine.training.config import ACTIVATION_CHECKPOINTING_MODES, TrainConfig
from brine.training.logging.device_specs import GPUS, NAMES, DeviceSpec, datasheet_of, measure_cpu
from brine.training.runtime import find_compiler

DESCRIPTION = (
    "Memory, step time and the best mesh of a recipe, before anything runs: brine plan RECIPE --gpus N --gpu TYPE.\n"
    "Given settings are fixed, the rest are searched.\n\n"
)


@dataclass(frozen=True)
class PlanRequest:
    """What to plan: a recipe, the devices, and the fixed settings."""

    recipe: Annotated[Recipe, FLATTENED]
    """The run."""
    gpus: int = 1
    """Number of GPUs (ranks), 1 to 1024."""
    gpu: str | None = None
    """GPU type: h200, h100, a100-80, b200, or cpu (this machine, benchmarked); if not given, this machine's GPU where
    its data sheet is known, else h200."""
    model: str = "large"
    """Which model of the recipe: large or small."""
    seq_len: int | None = None
    """Tokens per packed sequence; the recipe's if not given."""
    global_batch_size: int | None = None
    """Packed sequences per step; the recipe's if not given."""
    context_parallel: int | None = None
    """Context-parallel degree; searched if not given (so are the next four)."""
    dp_shard: int | None = None
    """FSDP degree."""
    activation_checkpointing: str | None = None
    """Activation checkpointing: none, selective, full or offload."""
    ac_group_size: int | None = None
    """Number of consecutive local layers per activation checkpoint."""
    mlp_tile_tokens: int | None = None
    """Tokens per MLP tile; 0 disables tiling."""
    host_gib: float | None = None
    """Host memory per GPU in GiB; 2 TB per 8 GPUs if not given."""
    json: bool = False
    """Print one JSON object instead of a table."""

    @property
    def held(self) -> dict:
        """The searched settings that are given."""
        return {name: value for name in SEARCHED if (value := getattr(self, name)) is not None}

    def check(self) -> None:
        """Raise PlannerError for what contradicts itself; called late, so that the command words the message."""
        if not 1 <= self.gpus <= 1024:
            raise PlannerError(f"--gpus {self.gpus}: give 1 to 1024")
        held, modes = self.held, ACTIVATION_CHECKPOINTING_MODES
        for name, known in (("gpu", NAMES), ("model", ("large", "small")), ("activation_checkpointing", modes)):
            if getattr(self, name) not in (None, *known):
                raise PlannerError(f"{_option(name)} {getattr(self, name)}: choose one of {', '.join(known)}")
        for name in ("context_parallel", "dp_shard"):
            if name in held and (held[name] < 1 or self.gpus % held[name]):
                raise PlannerError(
                    f"{_option(name)} {held[name]} does not divide --gpus {self.gpus}: give a divisor of it"
                )
        limits = {
            "ac_group_size": (1, "1, or the number of layers that share one checkpoint"),
            "mlp_tile_tokens": (0, "a number of tokens, or 0 for whole sequences"),
            "seq_len": (MIN_TOKENS_PER_RANK, f"{MIN_TOKENS_PER_RANK} or more"),
            "global_batch_size": (1, "1 or more"),
            "host_gib": (1e-9, "the host's memory for each device"),
        }
        for name, (least, remedy) in limits.items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise PlannerError(f"{_option(name)} {getattr(self, name)}: give {remedy}")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def default_gpu() -> str:
    """The type of this machine's GPU, "h200" where it has none that is known."""
    sheet = datasheet_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return "h200" if sheet is None else sheet.name


def settings_of(request: PlanRequest) -> tuple[RunSettings, TrainConfig, DeviceSpec]:
    """The settings to begin the search with, the training run and the device. Raises PlannerError for what cannot
    be."""
    request.check()
    gpu = request.gpu or default_gpu()
    recipe = request.recipe.resolved(request.recipe.corpus.vocab_size)
    train: TrainConfig = getattr(recipe, request.model)
    batch = request.global_batch_size or train.global_batch_size
    micro = min(train.micro_batch_size, batch)
    train = replace(train, global_batch_size=batch, micro_batch_size=micro if batch % micro == 0 else 1)
    dtype = recipe.runtime.dtype
    if dtype == "float64":
        raise PlannerError("runtime.dtype = 'float64' is for tests and is not planned: choose bfloat16 or float32")
    if dtype == "auto":
        dtype = "bfloat16" if gpu != "cpu" or supports_bfloat16("cpu")[0] else "float32"
    device = measure_cpu(dtype) if gpu == "cpu" else GPUS[gpu]
    if request.host_gib is not None:
        device = replace(device, host_memory_bytes=request.host_gib * GIB)
    compiled = recipe.runtime.compile
    if compiled == "auto":
        compiled = gpu != "cpu" or find_compiler() is not None
    case = RunSettings(
        train.model, request.seq_len or recipe.packing.seq_len, ranks=request.gpus, dtype=dtype, device=device.kind,
        compiled=compiled, attention_backend=recipe.runtime.attention_backend,
        patches=tuple((name, most) for name, most in recipe.packing.media_budget.items() if most),
    )  # fmt: skip
    return case, train, device


def format_plan(best: RunPlan, longest_tokens: int, name: str) -> str:
    """The plan as an aligned table."""
    case, time, device = best.case, best.time, best.device
    peak, host = best.memory.peak_bytes, sum(best.memory.host.values())
    lines = [
        f"{name} on {case.ranks} x {device.name}: {NOTE}",
        f"  model     {count(num_parameters(case.model))} parameters, {case.model.num_layers} layers, "
        f"{case.model.num_global_layers} of them global",
        f"  sequences {case.seq_len:,} tokens, "
        f"{_num(best.gradient_accumulation_steps, 'micro-batch', 'es')} of {_num(case.micro_batch_size, 'sequence')} "
        f"per data-parallel group, {_num(case.ranks // case.context_parallel, 'group')}, {case.dtype}, "
        f"blocks {'compiled' if case.compiled else 'not compiled'}",
        f"  mesh      {as_options(case)}",
        "",
        f"  memory of one rank, peak phase: {best.memory.peak_phase}",
    ]
    for term, size in sorted(best.memory.terms.items(), key=lambda item: -item[1]):
        lines.append(f"    {term:<44}{size / GIB:>10.3f} GiB {100 * size / peak:>5.1f} %")
    share = f"{100 * peak / device.usable_bytes:.0f} % of {device.usable_bytes / GIB:.1f}"
    lines.append(f"    {'peak':<44}{peak / GIB:>10.3f} GiB   {share}")
    lines += [f"    {'on the host, ' + term:<44}{size / GIB:>10.3f} GiB" for term, size in best.memory.host.items()]
    share = f"{100 * host / device.usable_host_bytes:.0f} % of {device.usable_host_bytes / GIB:.1f}"
    lines.append(f"    {'on the host':<44}{host / GIB:>10.3f} GiB   {share}")
    lines += ["", "  time of one step"]
    for term, seconds in sorted(time.terms.items(), key=lambda item: -item[1]):
        lines.append(f"    {term:<44}{_seconds(seconds)}  {100 * seconds / time.total_s:>5.1f} %")
    lines.append(f"    {'step':<44}{_seconds(time.total_s)}  {duration(time.total_s)}")
    lines += [
        "",
        f"  {count(time.tokens / time.total_s)} tokens/s, MFU {100 * time.mfu(device):.1f} % of the data sheet's "
        f"{device.matmul_flops / 1e12:,.1f} TFLOP/s (unmasked area, no recomputation)",
        f"  limited by {time.bottleneck}; longest seq_len on these GPUs: {longest_tokens:,} tokens",
        f"  {device.source}",
    ]
    return "\n".join(lines)


def _num(number: int, noun: str, ending: str = "s") -> str:
    return f"{number} {noun}{ending if number != 1 else ''}"


def _seconds(seconds: float) -> str:
    """Aligned, in the unit that shows three figures."""
    for unit, size in (("s ", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:>10.3f} {unit}"
    return f"{seconds / 1e-6:>10.3f} us"


@exit_on_closed_pipe
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 a plan, 2 a mistake or nothing that fits."""
    argv = list(sys.argv[1:] if argv is None else argv)
    name, given, args = next(iter(RECIPES)), "[RECIPE]", argv
    if argv and not argv[0].startswith("-"):
        name, given, args = argv[0], argv[0], argv[1:]
    try:
        default = PlanRequest(find_recipe(name)())
        description = DESCRIPTION + option_groups(f"brine train {name} --help")
        request = parse_options(default, args, prog=f"brine plan {given}", description=description, on_a_page=True)
        base, train, device = settings_of(request)
        best, _ = search(base, train, device, request.held)
        longest = longest_sequence(base, train, device, request.held)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = best.to_dict() | {"max_seq_len": longest}
    print(json.dumps(found) if request.json else format_plan(best, longest, name))
    return 0
