"""`brine train --dry-run`: parameters, tokens, FLOPs and estimated time of a recipe on this machine.

FLOPs are counted from shapes; time assumes the share of the processor's best matrix product that models of that width
reach, and rates of rendering and evaluation measured once on two cores. It tells minutes from hours.
"""

from __future__ import annotations

from brine.common.formatting import count, duration
from brine.model.device import resolve_device, supports_bfloat16
from brine.model.flops import flops_per_token, matrix_parameters
from brine.pipeline.recipe import Recipe
from brine.training.config import RuntimeConfig
from brine.training.logging.device_specs import find_peak
from brine.training.runtime import Runtime, check_backends, usable_cores

NARROW_MFU, WIDE_MFU = 0.28, 0.4
"""Model FLOP utilisation of models narrower than 192, and of the others."""
COMPILE_S = 40.0
DOCUMENTS_PER_S = {"text": 500.0, "screenshot": 1500.0, "narration": 200.0, "recording": 120.0, "page": 60.0,
         "table": 120.0, "chart": 34.0, "screen": 140.0}  # fmt: skip
"""Documents of a kind rendered and encoded in a second on two cores."""


def estimate_run(recipe: Recipe) -> str:
    """A few lines for a person: what each stage holds and about how long it takes.

    Raises ValueError for a device or a backend that the run would refuse here.
    """
    runtime = _runtime(recipe.runtime)
    speed = find_peak(runtime.device, runtime.dtype).flops_per_s
    recipe = recipe.resolved(recipe.corpus.vocab_size)
    where = f"{runtime.num_threads} threads" if runtime.device == "cpu" else runtime.device
    lines = [f"recipe {recipe.name}: {where}, {runtime.dtype}"]
    total = 0.0
    if recipe.corpus.manifest is None:
        synth_config = recipe.corpus.synth
        splits = [synth_config.counts(split) for split in ("train", "validation", "test")]
        counts = {kind: sum(sum(split.by_level(kind).values()) for split in splits) for kind in DOCUMENTS_PER_S}
        seconds = 30 + sum(number / DOCUMENTS_PER_S[kind] for kind, number in counts.items())
        total += seconds
        made = ", ".join(f"{count(number)} {kind}" for kind, number in counts.items() if number)
        lines.append(f"  corpus          {made}: about {duration(seconds)}")
    else:
        lines.append(f"  corpus          {recipe.corpus.manifest}: time depends on its media")
    salted = "salt" in recipe.arms
    runs = [("small", recipe.small, 0)] if salted else []
    if salted:
        runs.append(("large_salt", recipe.large, recipe.salt.num_kd_steps(recipe.large.num_steps)))
    if "baseline" in recipe.arms:
        runs.append(("large_baseline", recipe.large, 0))
    for name, train, kd_steps in runs:
        tokens = train.num_steps * train.global_batch_size * recipe.packing.seq_len
        flops = 3 * flops_per_token(train.model, recipe.packing.seq_len) * tokens
        taught = flops_per_token(recipe.small.model, recipe.packing.seq_len) * tokens * kd_steps / train.num_steps
        seconds = flops / (speed * _utilisation(train.model.dim)) + COMPILE_S
        seconds += taught / (speed * _utilisation(recipe.small.model.dim))
        total += seconds
        lines.append(
            f"  {name:<15} {count(matrix_parameters(train.model))} matrix parameters, {count(tokens)} tokens in "
            f"{train.num_steps} steps, {count(flops + taught)} FLOP: about {duration(seconds)}"
        )
    seconds = 60.0 + 60.0 * len(runs)
    total += seconds
    lines.append(f"  evaluation      about {duration(seconds)}")
    lines.append(f"  in all          about {duration(total)}")
    return "\n".join(lines)


def _utilisation(dim: int) -> float:
    return NARROW_MFU if dim < 192 else WIDE_MFU


def _runtime(config: RuntimeConfig) -> Runtime:
    """Device, threads and precision as they will be; whether blocks compile is not tried here."""
    device = resolve_device(config.device).type
    check_backends(config, device)
    able, _ = supports_bfloat16(device)
    dtype = config.dtype if config.dtype != "auto" else "bfloat16" if able else "float32"
    return Runtime(device=device, dtype=dtype, num_threads=config.num_threads or usable_cores())
