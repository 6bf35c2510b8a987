"""The planner's estimate of peak memory against what training steps take, rank by rank.

    python -m benchmarks.planner                         all cases, half an hour on two cores
    python -m benchmarks.planner --cases full-float32

A case trains a model as a run does (`training.parallel`, `training.step`) on random rows of one document, first a step
of 64 tokens, so that the optimiser's moments are there in the one that counts; with two ranks, two processes that share
rows, parameters or both over gloo. Measured is the growth of resident memory over the imported process
(`benchmarks.memory`; of ranks the one that grew most), 2 GiB and more in each case; compared is
`training.plan_memory`'s peak. The aim is 10 %.

What this does not show: anything of GPUs, whose allocator and kernels differ, and the checkpoint's copies.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks import gate, harness
from benchmarks.memory import peak_growth
from training.plan_memory import Case, memory

NAME = "planner"
TESTS = ("tests/training/test_planner.py",)
GIB = 2**30
MODELS = {
    "small": {"vocab_size": 4096, "dim": 512, "num_layers": 6, "num_heads": 8, "num_kv_heads": 4, "head_dim": 64,
              "mlp_dim": 1408, "window": 256},
    "wide": {"vocab_size": 8192, "dim": 1024, "num_layers": 10, "num_heads": 16, "num_kv_heads": 4, "head_dim": 64,
             "mlp_dim": 2816, "window": 256},
}  # fmt: skip
"""15 and 130 million numbers: what blocks keep fills memory, or what is kept for each weight."""
CASES: dict[str, dict[str, Any]] = {
    "none-float32": {"micro_rows": 1, "checkpointing": "none", "dtype": "float32"},
    "none-bfloat16": {"micro_rows": 2, "checkpointing": "none", "dtype": "bfloat16"},
    "full-float32": {"micro_rows": 4, "checkpointing": "full", "dtype": "float32"},
    "full-tiles-float32": {"micro_rows": 5, "checkpointing": "full", "dtype": "float32", "mlp_tile": 1024},
    "full-tiles-bfloat16": {"micro_rows": 8, "checkpointing": "full", "dtype": "bfloat16", "mlp_tile": 2048},
    "selective-bfloat16": {"micro_rows": 5, "checkpointing": "selective", "dtype": "bfloat16"},
    "compiled-none-bfloat16": {"micro_rows": 2, "checkpointing": "none", "dtype": "bfloat16", "compiled": True},
    "compiled-full-bfloat16": {"micro_rows": 6, "checkpointing": "full", "dtype": "bfloat16", "compiled": True},
    "layers-tiles-bfloat16": {"micro_rows": 8, "checkpointing": "selective", "checkpoint_layers": 5, "mlp_tile": 2048,
                              "dtype": "bfloat16"},
    "compiled-layers-tiles-bfloat16": {"micro_rows": 8, "checkpointing": "selective", "checkpoint_layers": 5,
                                       "mlp_tile": 2048, "dtype": "bfloat16", "compiled": True},
    "patches-full-float32": {"micro_rows": 4, "checkpointing": "full", "dtype": "float32",
                             "patches": (("image", 6144),)},
    "weights-bfloat16": {"model": "wide", "row_tokens": 1024, "checkpointing": "none", "dtype": "bfloat16"},
    "shard-none-float32": {"model": "wide", "row_tokens": 2048, "ranks": 2, "shard": 2, "checkpointing": "none",
                           "dtype": "float32"},
    "shard-full-bfloat16": {"model": "wide", "row_tokens": 4096, "micro_rows": 4, "ranks": 2, "shard": 2,
                            "checkpointing": "full", "dtype": "bfloat16"},
    "context-none-float32": {"micro_rows": 2, "ranks": 2, "context": 2, "checkpointing": "none", "dtype": "float32"},
    "context-full-bfloat16": {"row_tokens": 16384, "micro_rows": 5, "ranks": 2, "context": 2, "checkpointing": "full",
                              "dtype": "bfloat16"},
    "context-shard-selective-bfloat16": {"model": "wide", "row_tokens": 8192, "micro_rows": 4, "ranks": 2, "context": 2,
                                         "shard": 2, "checkpointing": "selective", "dtype": "bfloat16"},
}  # fmt: skip
"""Fields of `training.plan_memory.Case`; `model` by its name above."""
DEFAULTS = {"model": "small", "row_tokens": 8192, "micro_rows": 1}


def case_of(name: str) -> Case:
    """What the planner is asked."""
    from model import ModelConfig

    settings = DEFAULTS | CASES[name]
    model = ModelConfig(**MODELS[settings.pop("model")])
    return Case(model, device="cpu", **settings)


def step_call(tiny: bool, *, name: str) -> Callable[[], list]:
    """A short training step and one of the case, from nothing: a target of `benchmarks.memory`."""
    from benchmarks.steps import Steps, random_rows
    from training.distributed import start_world
    from training.parallel import split_world

    case = case_of(name)
    torch.set_num_threads(1)
    world = split_world(start_world(), context=case.context, shard=case.shard)
    short = replace(case, micro_rows=1, row_tokens=64 * case.context, patches=())

    def run() -> list:
        steps = Steps(case, world=world)
        # after it the optimiser's moments are there
        steps.step(random_rows(short))
        if not tiny:
            steps.step(random_rows(case))
        return []

    return run


def measure(name: str) -> dict[str, Any]:
    """One case: estimated and measured bytes, and their ratio."""
    case = case_of(name)
    estimate = memory(case)
    found = {"case": name, **DEFAULTS, **CASES[name], "ranks": case.ranks, "terms_gib": {
        term: round(size / GIB, 3) for term, size in estimate.terms.items()
    }}  # fmt: skip
    found |= {"fullest": estimate.worst, "estimate_gib": estimate.peak_bytes / GIB}
    measured = peak_growth("benchmarks.planner:step_call", {"name": name}, timeout_s=2400, ranks=case.ranks)
    if "left_out" in measured:
        return found | measured
    growth = measured["growth_bytes"]
    return found | {"measured_gib": growth / GIB, "ratio": estimate.peak_bytes / growth}


def show(result: dict[str, Any]) -> str:
    """A case in a line."""
    if "left_out" in result:
        return f"{result['case']}: left out, {result['left_out']}"
    return (
        f"{result['case']:34s} estimated {result['estimate_gib']:.3f} GiB (fullest at {result['fullest']}), "
        f"measured {result['measured_gib']:.3f}, ratio {result['ratio']:.3f}"
    )


def draw(record: dict[str, Any], path: Any) -> None:
    """Estimated against measured, each case a point between lines at 10 %."""
    from matplotlib.figure import Figure

    cases = [case for case in record["cases"] if "ratio" in case]
    figure = Figure(figsize=(9, 0.42 * len(cases) + 1.4), layout="constrained")
    axis = figure.subplots()
    places = range(len(cases))
    axis.barh(places, [case["measured_gib"] for case in cases], 0.6, color="#c9d5e3", label="measured, GiB per rank")
    axis.plot([case["estimate_gib"] for case in cases], places, "|", color="#b5452c", ms=14, mew=2.5, label="estimated")
    for place, case in zip(places, cases, strict=True):
        axis.text(
            max(case["measured_gib"], case["estimate_gib"]),
            place,
            f"  {case['ratio'] - 1:+.1%}",
            va="center",
            fontsize=9,
        )
    axis.set_yticks(places, [case["case"] for case in cases], fontsize=9)
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
    options.given = list(sys.argv[1:] if arguments is None else arguments)
    names = harness.select(list(CASES), options.cases)
    if options.list:
        print("\n".join(names))
        return 0
    device = harness.prepare(options)
    try:
        record = harness.begin(NAME, options, device, TESTS)
    except gate.TestsFailedError as error:
        return harness.refuse(NAME, error)
    record["cases"] = harness.run_cases(
        names[:1] if options.quick else names, lambda name, on_stage: measure(name), show, minutes=options.minutes
    )
    for result in record["cases"]:
        if "ratio" in result:
            record["targets"] += harness.target(
                result["case"], "relative error of the peak", abs(result["ratio"] - 1), "at most", 0.1
            )
    return harness.finish(record, options, draw)


if __name__ == "__main__":
    sys.exit(harness.command(main))
