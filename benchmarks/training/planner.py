"""The planner's estimate of peak memory against what training steps take, rank by rank.

    python -m benchmarks.training.planner                         all cases, half an hour on two cores
    python -m benchmarks.training.planner --cases full-float32

A case trains a model as a run does (`brine.training.parallel.parallelize`, `brine.training.step`) on random sequences
of one document, first a step of 64 tokens, so that the optimizer's moments are there in the one that counts; with two
ranks, two processes that share sequences, parameters or both over gloo. Measured is the growth of resident memory over
the imported process (`benchmarks.harness.memory`; of ranks the one that grew most), 2 GiB and more in each case;
compared is `brine.planner.memory`'s peak. The aim is 10 %.

What this does not show: anything of GPUs, whose allocator and kernels differ, and the checkpoint's copies.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.harness import correctness as gate
from benchmarks.harness import records as harness
from benchmarks.harness.memory import peak_growth
from brine.planner.memory import RunSettings, memory

NAME = "planner"
TESTS = ("tests/planner/test_planner.py",)
GIB = 2**30
MODELS = {
    "small": {"vocab_size": 4096, "dim": 512, "num_layers": 6, "num_heads": 8, "num_kv_heads": 4, "head_dim": 64,
              "mlp_dim": 1408, "window": 256},
    "wide": {"vocab_size": 8192, "dim": 1024, "num_layers": 10, "num_heads": 16, "num_kv_heads": 4, "head_dim": 64,
             "mlp_dim": 2816, "window": 256},
}  # fmt: skip
"""15 and 130 million numbers: what blocks keep fills memory, or what is kept for each weight."""
CASES: dict[str, dict[str, Any]] = {
    "none-float32": {"micro_batch_size": 1, "activation_checkpointing": "none", "dtype": "float32"},
    "none-bfloat16": {"micro_batch_size": 2, "activation_checkpointing": "none", "dtype": "bfloat16"},
    "full-float32": {"micro_batch_size": 4, "activation_checkpointing": "full", "dtype": "float32"},
    "full-tiles-float32": {
        "micro_batch_size": 5,
        "activation_checkpointing": "full",
        "dtype": "float32",
        "mlp_tile_tokens": 1024,
    },
    "full-tiles-bfloat16": {
        "micro_batch_size": 8,
        "activation_checkpointing": "full",
        "dtype": "bfloat16",
        "mlp_tile_tokens": 2048,
    },
    "selective-bfloat16": {"micro_batch_size": 5, "activation_checkpointing": "selective", "dtype": "bfloat16"},
    "compiled-none-bfloat16": {
        "micro_batch_size": 2,
        "activation_checkpointing": "none",
        "dtype": "bfloat16",
        "compiled": True,
    },
    "compiled-full-bfloat16": {
        "micro_batch_size": 6,
        "activation_checkpointing": "full",
        "dtype": "bfloat16",
        "compiled": True,
    },
    "layers-tiles-bfloat16": {
        "micro_batch_size": 8,
        "activation_checkpointing": "selective",
        "ac_group_size": 5,
        "mlp_tile_tokens": 2048,
        "dtype": "bfloat16",
    },
    "compiled-layers-tiles-bfloat16": {
        "micro_batch_size": 8,
        "activation_checkpointing": "selective",
        "ac_group_size": 5,
        "mlp_tile_tokens": 2048,
        "dtype": "bfloat16",
        "compiled": True,
    },
    "patches-full-float32": {
        "micro_batch_size": 4,
        "activation_checkpointing": "full",
        "dtype": "float32",
        "patches": (("image", 6144),),
    },
    "weights-bfloat16": {"model": "wide", "seq_len": 1024, "activation_checkpointing": "none", "dtype": "bfloat16"},
    "shard-none-float32": {
        "model": "wide",
        "seq_len": 2048,
        "ranks": 2,
        "dp_shard": 2,
        "activation_checkpointing": "none",
        "dtype": "float32",
    },
    "shard-full-bfloat16": {
        "model": "wide",
        "seq_len": 4096,
        "micro_batch_size": 4,
        "ranks": 2,
        "dp_shard": 2,
        "activation_checkpointing": "full",
        "dtype": "bfloat16",
    },
    "context-none-float32": {
        "micro_batch_size": 2,
        "ranks": 2,
        "context_parallel": 2,
        "activation_checkpointing": "none",
        "dtype": "float32",
    },
    "context-full-bfloat16": {
        "seq_len": 16384,
        "micro_batch_size": 5,
        "ranks": 2,
        "context_parallel": 2,
        "activation_checkpointing": "full",
        "dtype": "bfloat16",
    },
    "context-shard-selective-bfloat16": {
        "model": "wide",
        "seq_len": 8192,
        "micro_batch_size": 4,
        "ranks": 2,
        "context_parallel": 2,
        "dp_shard": 2,
        "activation_checkpointing": "selective",
        "dtype": "bfloat16",
    },
}
"""Fields of `brine.planner.memory.RunSettings`; `model` by its name above."""
DEFAULTS = {"model": "small", "seq_len": 8192, "micro_batch_size": 1}


def parse_case(name: str) -> RunSettings:
    """What the planner is asked."""
    from brine.model.config import ModelConfig

    settings = DEFAULTS | CASES[name]
    model = ModelConfig(**MODELS[settings.pop("model")])
    return RunSettings(model, device="cpu", **settings)


def step_call(tiny: bool, *, name: str) -> Callable[[], list]:
    """A short training step and one of the case, from nothing: a target of `benchmarks.harness.memory`."""
    from benchmarks.training.steps import TrainStepRunner, random_batch
    from brine.training.parallel.distributed import init_distributed
    from brine.training.parallel.parallelize import init_parallel_groups

    case = parse_case(name)
    torch.set_num_threads(1)
    world = init_parallel_groups(init_distributed(), context_parallel=case.context_parallel, dp_shard=case.dp_shard)
    short = replace(case, micro_batch_size=1, seq_len=64 * case.context_parallel, patches=())

    def run() -> list:
        steps = TrainStepRunner(case, world=world)
        # after it the optimizer's moments are there
        steps.step(random_batch(short))
        if not tiny:
            steps.step(random_batch(case))
        return []

    return run


def measure(name: str) -> dict[str, Any]:
    """One case: estimated and measured bytes, and their ratio."""
    case = parse_case(name)
    estimate = memory(case)
    found = {"case": name, **DEFAULTS, **CASES[name], "ranks": case.ranks, "terms_gib": {
        term: round(size / GIB, 3) for term, size in estimate.terms.items()
    }}  # fmt: skip
    found |= {"fullest": estimate.peak_phase, "estimate_gib": estimate.peak_bytes / GIB}
    measured = peak_growth("benchmarks.training.planner:step_call", {"name": name}, timeout_s=2400, ranks=case.ranks)
    if "skipped" in measured:
        return found | measured
    growth = measured["growth_bytes"]
    return found | {"measured_gib": growth / GIB, "ratio": estimate.peak_bytes / growth}


def show(result: dict[str, Any]) -> str:
    """A case in a line."""
    if "skipped" in result:
        return f"{result['case']}: left out, {result['skipped']}"
    return (
        f"{result['case']:34s} estimated {result['estimate_gib']:.3f} GiB (fullest at {result['fullest']}), "
        f"measured {result['measured_gib']:.3f}, ratio {result['ratio']:.3f}"
    )


def plot(record: dict[str, Any], path: Any) -> None:
    """Estimated against measured, each case a point between lines at 10 %."""
    from matplotlib.figure import Figure

    cases = [case for case in record["cases"] if "ratio" in case]
    figure = Figure(figsize=(9, 0.42 * len(cases) + 1.4), layout="constrained")
    axis = figure.subplots()
    positions = range(len(cases))
    axis.barh(positions, [case["measured_gib"] for case in cases], 0.6, color="#c9d5e3", label="measured, GiB per rank")
    estimates = [case["estimate_gib"] for case in cases]
    axis.plot(estimates, positions, "|", color="#b5452c", ms=14, mew=2.5, label="estimated")
    for position, case in zip(positions, cases, strict=True):
        axis.text(
            max(case["measured_gib"], case["estimate_gib"]),
            position,
            f"  {case['ratio'] - 1:+.1%}",
            va="center",
            fontsize=9,
        )
    axis.set_yticks(positions, [case["case"] for case in cases], fontsize=9)
    axis.invert_yaxis()
    axis.set_xlabel("peak memory over the imported process, GiB")
    axis.margins(x=0.15)
    axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2)
    hardware = record["hardware"]
    axis.set_title(f"Peak memory of a training step, {hardware['processor']}, {hardware['commit']}", loc="left")
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark -> exit status."""
    made = harness.parser(NAME, __doc__.splitlines()[0])
    options = made.parse_args(arguments)
    names = harness.select(list(CASES), options.cases)
    if options.list:
        print("\n".join(names))
        return 0
    device = harness.prepare(options)
    try:
        record = harness.begin(NAME, options, device, TESTS)
    except gate.TestsFailedError as error:
        return harness.print_refusal(NAME, error)
    record["cases"] = harness.run_cases(
        names[:1] if options.quick else names, lambda name, on_stage: measure(name), show, minutes=options.minutes
    )
    for result in record["cases"]:
        if "ratio" in result:
            record["targets"] += harness.target(
                result["case"], "relative error of the peak", abs(result["ratio"] - 1), "at most", 0.1
            )
    return harness.finish(record, options, plot)


if __name__ == "__main__":
    sys.exit(harness.command(main))
