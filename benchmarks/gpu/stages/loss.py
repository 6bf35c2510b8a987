"""Stage `loss`: the fused head and cross-entropy by each of our backends, plain, and by Liger where it is installed.

    plain-8k, z-8k, distill-8k, plain-32k ..      terms and tokens; E 4096, V 131,072, bf16

Forward and backward between CUDA events, in turn; peak memory beyond the inputs. `plain` holds all logits in fp32 and
may run out of memory at 32k, which is reported.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.gpu.stage import StageContext, SuiteItem
from benchmarks.gpu.stages.attention import roofline
from benchmarks.harness import records as harness
from benchmarks.harness.implementations import OURS, TimingLimits, benchmark_implementations
from benchmarks.kernels import linear_loss

SIZES = {"8k": 8192, "32k": 32768}
BACKENDS = ("triton", "liger", "chunked")


def items(toy: bool) -> list[SuiteItem]:
    """Every case."""
    if toy:
        return [SuiteItem("plain-toy", 120), SuiteItem("distill-toy", 120)]
    return [SuiteItem(f"{terms}-{size}", 120, least_s=10) for size in SIZES for terms in linear_loss.TERMS]


def run(item: SuiteItem, context: StageContext) -> None:
    """One case."""
    terms, size = item.name.split("-")
    dtype = "fp32" if context.device == "cpu" else "bf16"
    case = linear_loss.LinearLossCase(terms, SIZES.get(size, 96), *((16, 200) if context.toy else (4096, 2**17)), dtype)
    problem = linear_loss.make_problem(case, context.device)
    ours = {f"{OURS}-{name}": lambda p, name=name: linear_loss.brine(replace(p, backend=name)) for name in BACKENDS}
    named = {OURS: linear_loss.brine, **ours, "plain": linear_loss.plain, "liger": linear_loss.liger}
    builders = {
        name: lambda build=build: build(problem) for name, build in named.items() if name not in context.without
    }
    timing_limits = TimingLimits(budget_s=3.0, min_rounds=5, max_rounds=50, tolerance=linear_loss.TOLERANCE[dtype])
    if context.toy:
        timing_limits = TimingLimits(budget_s=0.0, min_rounds=2, max_rounds=2, tolerance=linear_loss.TOLERANCE[dtype])
    expected = linear_loss.truth(problem)
    results = benchmark_implementations(
        builders, device=context.device, timing_limits=timing_limits, on_stage=context.on_work, expected=expected
    )
    peak = roofline(context.device, dtype, context.toy)
    result = {
        "case": item.name, "terms": terms, "tokens": case.num_tokens, "width": case.width,
        "vocabulary": case.vocabulary, "dtype": dtype, "flops": case.flops, "implementations": results,
    }  # fmt: skip
    linear_loss.add_rates(result, {f"{dtype}_flops_per_s": peak})
    context.say(linear_loss.show(result))
    del result["case"]
    context.record(**result, matmul_flops_per_s=peak, log=harness.captured_logs())
