"""Stage `attention`: what attention over spans takes, by each of our backends and by others, under the same mask.

    D128-32k-packed ..      head dim, tokens, mask of `benchmarks.kernels.masks`; bf16, 32 query heads over 8 KV heads
    ..-deterministic        ours alone, under deterministic algorithms, as training does by default

Ours: `brine` (what "auto" takes), `brine-triton`, `brine-flex`, `brine-flash`; the peers of
`benchmarks.kernels.attention_implementations`. All implementations of a case take turns for about two seconds of
rounds, forward and backward between CUDA events; median, p20 and p80 of the rounds. A result is compared with the
reference on 64 queries before its time counts. FLOPs are counted by `attention.add_rates`: 4 D H per *visible* pair,
the backward 2.5 times that; shares are of the matmul measured in the same process. Below 16k tokens a launch's cost on
the host would be measured, so there are no smaller sizes.

Lengths of the target come first, so that a stage cut short has them.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.gpu.stage import StageContext, SuiteItem
from benchmarks.harness import records as harness
from benchmarks.harness.implementations import OURS, Implementation, TimingLimits, benchmark_implementations
from benchmarks.harness.measure import matmul_rate
from benchmarks.kernels import attention
from benchmarks.kernels.attention_implementations import CPU, CUDA, AttentionProblem, brine, truth

KINDS = ("packed", "causal", "multimodal", "window")
SIZES = {"32k": 32768, "16k": 16384, "64k": 65536}
DIMS = (128, 64)
HEADS = (32, 8)
BACKENDS = ("triton", "gluon", "flex", "flash")
TOY_TOKENS = 200


def items(toy: bool) -> list[SuiteItem]:
    """Every case, the target's first."""
    if toy:
        return [SuiteItem(f"D16-{TOY_TOKENS}-{kind}", 120) for kind in ("packed", "packed-deterministic", "multimodal")]
    made = [SuiteItem(f"D{dim}-{size}-{kind}", 150, least_s=10) for dim in DIMS for size in SIZES for kind in KINDS]
    fixed = [SuiteItem(f"D128-32k-{kind}-deterministic", 60, least_s=10) for kind in ("packed", "multimodal")]
    return [*made[: len(KINDS)], *fixed, *made[len(KINDS) :]]


def implementations(device: str) -> dict:
    """name -> (AttentionProblem -> Implementation); ours by every backend first."""
    ours = {f"{OURS}-{name}": lambda problem, name=name: brine(replace(problem, backend=name)) for name in BACKENDS}
    return {
        OURS: brine,
        **ours,
        **{name: build for name, build in (CUDA if device == "cuda" else CPU).items() if name != OURS},
    }


def run(item: SuiteItem, context: StageContext) -> None:
    """One case: everybody in turn."""
    dim, size, kind, *fixed = item.name.split("-")
    dim, tokens = int(dim[1:]), SIZES.get(size) or int(size)
    heads, dtype = ((2, 1), "fp32") if context.device == "cpu" else (HEADS, "bf16")
    case = attention.AttentionCase(kind, tokens, heads, dim, dtype)
    problem: AttentionProblem = attention.make_problem(case, context.device)
    timing_limits = TimingLimits(budget_s=2.0, min_rounds=5, max_rounds=100, tolerance=attention.TOLERANCE[dtype])
    if context.toy:
        timing_limits = TimingLimits(budget_s=0.0, min_rounds=2, max_rounds=2, tolerance=attention.TOLERANCE[dtype])
    area = problem.mask.spans.area()
    result = {
        "kind": kind, "tokens": tokens, "heads": list(heads), "dim": dim, "dtype": dtype, "area": area,
        "area_share": problem.mask.share, "documents": len(problem.mask.lengths),
        "forward_flops": 4 * area * dim * heads[0], "deterministic": bool(fixed),
    }  # fmt: skip
    builders: dict[str, Implementation] = {
        name: lambda build=build: build(problem)
        for name, build in implementations(context.device).items()
        if name not in context.without and (name.startswith(OURS) or not fixed)
    }
    context.record("begins", **result)
    torch.use_deterministic_algorithms(bool(fixed))
    try:
        result["implementations"] = benchmark_implementations(
            builders,
            device=context.device,
            timing_limits=timing_limits,
            on_stage=context.on_work,
            expected=truth(problem),
        )
    finally:
        torch.use_deterministic_algorithms(False)
    peak = roofline(context.device, dtype, context.toy)
    attention.add_rates(result, {f"{dtype}_flops_per_s": peak})
    result["flash_package"] = flash_package(problem)
    context.record(**result, matmul_flops_per_s=peak, log=harness.captured_logs())
    context.say(attention.show(result | {"case": item.name}))


def flash_package(problem: AttentionProblem) -> str | None:
    """The package behind backend "flash" for this mask."""
    if problem.device != "cuda":
        return None
    from brine.kernels.attention.flash import backend as flash
    from brine.kernels.attention.spans import kind_of

    return flash.package_for(problem.q, kind_of(int(problem.mask.spans.serial)))


_peaks: dict[str, float] = {}


def roofline(device: str, dtype: str, toy: bool) -> float:
    """FLOP/s of the best square matmul, measured once in this process."""
    if dtype not in _peaks:
        size = 256 if toy else 8192
        _peaks[dtype] = matmul_rate(device, attention.DTYPES[dtype], size=size, budget_s=0.05 if toy else 1.0)
    return _peaks[dtype]
