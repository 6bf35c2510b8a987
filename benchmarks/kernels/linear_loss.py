"""The fused head and loss against the same loss over plain logits, and against Liger where it is installed.

    python -m benchmarks.kernels.linear_loss                  this machine: the GPU where there is one, else the CPU

**Implementations.** `brine`: `brine.kernels.linear_loss.linear_cross_entropy`; `chunked`: the same in plain PyTorch
operations (GPU only; on a CPU `brine` is that); `plain`: `F.cross_entropy` over fp32 logits; `liger`: its fused linear
cross-entropy (GPU only). All get the same tensors in the case's dtype and give loss, d_hidden and d_weight. Ours
computes the gradients in the forward, so only the total is compared.

**Terms.** "plain" is the cross-entropy alone, "z" adds 1e-4 lse^2, "distill" mixes in a dense teacher of half the width
at weight 0.5 and temperature 1, whose logits are part of the work. Liger has no op with this mixture.

**FLOPs** are 6 N E V forward and backward, and 2 N Et V for the teacher, for every implementation. Roofline: the best
square matmul of this device in the same dtype, in the same run.

**Memory** is the peak growth above the inputs and their gradients d_hidden and d_weight: on the CPU in a process per
implementation (`memory.py`), on CUDA by the caching allocator.

**Cases.** CPU: 8,192 tokens, width 512, vocabulary 65,536, fp32 and bf16; targets: at most 1.35 times the time and 1/8
of the memory of `plain`. With a teacher 4,096 tokens, since `plain` would not fit small machines. GPU: 8k to 64k
tokens, width 4,096, vocabulary 131,072, bf16. About 10 minutes on two cores.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import comparison
from benchmarks.harness import correctness as gate
from benchmarks.harness import records as harness
from benchmarks.harness.comparison import DTYPES
from benchmarks.harness.implementations import OURS, Implementation
from benchmarks.harness.measure import SkippedError
from benchmarks.harness.memory import peak_growth
from brine.kernels.linear_loss import linear_cross_entropy

NAME = "linear_loss"
SUMMARY = "The fused head and loss against plain PyTorch and Liger: time and peak memory."
COPIES = False
TESTS = {"cpu": ("tests/kernels/linear_loss/test_linear_loss.py",), "cuda": ("tests/kernels/linear_loss/test_*.py",)}
"""What has to pass first: on a GPU the kernel's own tests too."""
TOLERANCE = {"fp32": 1e-4, "bf16": 0.01}
Z_LOSS = 1e-4
DISTILL_WEIGHT = 0.5
TERMS = ("plain", "z", "distill")
SEED = 11
TIME_TARGET = 1.35
MEMORY_TARGET = 1 / 8


@dataclass(frozen=True)
class LinearLossCase:
    """One loss at one size."""

    terms: str
    """One of `TERMS`."""
    num_tokens: int
    """N."""
    width: int
    """E; the teacher's is half of it."""
    vocabulary: int
    """V."""
    dtype: str = "fp32"
    """A key of `DTYPES`."""
    targets: bool = False
    """Are the two targets compared with it?"""

    @property
    def name(self) -> str:
        """An id such as z-N8192-E512-V65536-fp32."""
        return f"{self.terms}-N{self.num_tokens}-E{self.width}-V{self.vocabulary}-{self.dtype}"

    @property
    def flops(self) -> int:
        """Operations of forward and backward."""
        teacher = self.width // 2 if self.terms == "distill" else 0
        return (6 * self.width + 2 * teacher) * self.num_tokens * self.vocabulary


def cpu_cases() -> list[LinearLossCase]:
    """The targets' size."""
    return [
        LinearLossCase(terms, 4096 if terms == "distill" else 8192, 512, 65536, dtype, targets=terms != "distill")
        for dtype in ("bf16", "fp32")
        for terms in TERMS
    ]


def cuda_cases() -> list[LinearLossCase]:
    """A head of the usual size of large models."""
    return [LinearLossCase(terms, k * 1024, 4096, 2**17, "bf16") for k in (8, 16, 32, 64) for terms in TERMS]


def quick_cases() -> list[LinearLossCase]:
    """Every kind of case at toy sizes."""
    return [LinearLossCase(terms, 96, 16, 200, dtype, targets=True) for terms in TERMS for dtype in ("fp32", "bf16")]


@dataclass
class LinearLossProblem:
    """Inputs of a case: hidden (N, E), weight (V, E), labels (N,), and the teacher's (N, Et) and (V, Et) if any."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor
    teacher_hidden: Tensor | None
    teacher_weight: Tensor | None
    z_loss: float
    backend: str


def cases_of(options: Any, device: str) -> list[LinearLossCase]:
    """Every case that these options and this device have."""
    return quick_cases() if options.quick else cuda_cases() if device == "cuda" else cpu_cases()


def make_problem(case: LinearLossCase, device: str, *, backend: str = "auto") -> LinearLossProblem:
    """Inputs of a case, from `SEED`: logits of standard deviation 1, every token with a target."""
    generator = torch.Generator(device).manual_seed(SEED)

    def normal(rows: int, width: int, std: float) -> Tensor:
        return torch.empty(rows, width, dtype=DTYPES[case.dtype], device=device).normal_(0.0, std, generator=generator)

    teacher = case.width // 2 if case.terms == "distill" else 0
    return LinearLossProblem(
        hidden=normal(case.num_tokens, case.width, 1.0).requires_grad_(),
        weight=normal(case.vocabulary, case.width, case.width**-0.5).requires_grad_(),
        labels=torch.randint(case.vocabulary, (case.num_tokens,), generator=generator, device=device),
        teacher_hidden=normal(case.num_tokens, teacher, 1.0) if teacher else None,
        teacher_weight=normal(case.vocabulary, teacher, teacher**-0.5) if teacher else None,
        z_loss=Z_LOSS if case.terms == "z" else 0.0,
        backend=backend,
    )


def brine(problem: LinearLossProblem) -> Implementation:
    """Ours."""
    p = problem

    def forward() -> Tensor:
        soft = {}
        if p.teacher_hidden is not None:
            soft = {"teacher_hidden": p.teacher_hidden, "teacher_weight": p.teacher_weight}
            soft["distill_weight"] = DISTILL_WEIGHT
        return linear_cross_entropy(p.hidden, p.weight, p.labels, z_loss=p.z_loss, backend=p.backend, **soft)

    return Implementation(forward, (p.hidden, p.weight))


def chunked(problem: LinearLossProblem) -> Implementation:
    """Ours without its own kernel."""
    if problem.hidden.device.type != "cuda":
        raise SkippedError("on a CPU ours is that")
    return brine(replace(problem, backend="chunked"))


def plain(problem: LinearLossProblem) -> Implementation:
    """The loss as one would write it down."""
    p = problem

    def forward() -> Tensor:
        logits = (p.hidden @ p.weight.T).float()
        loss = F.cross_entropy(logits, p.labels, reduction="sum")
        if p.z_loss:
            loss = loss + p.z_loss * logits.logsumexp(-1).square().sum()
        if p.teacher_hidden is not None:
            with torch.no_grad():
                teacher = (p.teacher_hidden @ p.teacher_weight.T).float().softmax(-1)
            soft = F.cross_entropy(logits, teacher, reduction="sum")
            loss = (1.0 - DISTILL_WEIGHT) * loss + DISTILL_WEIGHT * soft
        return loss

    return Implementation(forward, (p.hidden, p.weight))


def liger(problem: LinearLossProblem) -> Implementation:
    """Liger's fused linear cross-entropy."""
    p = problem
    if p.hidden.device.type != "cuda":
        raise SkippedError("needs a GPU")
    if p.teacher_hidden is not None:
        raise SkippedError("has no op that mixes hard labels with a dense teacher's in this way")
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError as error:
        raise SkippedError(f"liger-kernel is not installed ({error})") from None
    loss = LigerFusedLinearCrossEntropyLoss(lse_square_scale=p.z_loss, reduction="sum")
    return Implementation(lambda: loss(p.weight, p.hidden, p.labels), (p.hidden, p.weight))


IMPLEMENTATIONS = {OURS: brine, "plain": plain, "chunked": chunked, "liger": liger}


@torch.no_grad()
def truth(problem: LinearLossProblem, *, rows: int = 1024) -> Tensor:
    """The loss in fp32, some tokens at a time: a scalar that needs little memory."""
    p, total = problem, torch.zeros((), device=problem.hidden.device)
    weight = p.weight.float()
    teacher_weight = None if p.teacher_weight is None else p.teacher_weight.float()
    for first in range(0, len(p.labels), rows):
        part = slice(first, first + rows)
        teacher = None if p.teacher_hidden is None else p.teacher_hidden[part].float()
        some = replace(
            p, hidden=p.hidden[part].float(), weight=weight, labels=p.labels[part], teacher_hidden=teacher,
            teacher_weight=teacher_weight,
        )  # fmt: skip
        total += plain(some).forward()
    return total


def verify(device: str, backend: str) -> None:
    """Hold small cases of all terms against the plain loss in fp32 on this device. Raises TestsFailedError."""
    for terms in TERMS:
        low = make_problem(LinearLossCase(terms, 600, 64, 1000, "bf16"), device, backend=backend)
        names = [
            name for name in ("hidden", "weight", "teacher_hidden", "teacher_weight") if getattr(low, name) is not None
        ]
        wide = {name: getattr(low, name).detach().float() for name in names}
        for name in ("hidden", "weight"):
            wide[name].requires_grad_()
        gate.agree(terms, brine(low), plain(replace(low, **wide)), 0.05)


def memory_call(*, tiny: bool, implementation: str, backend: str, **shape: Any) -> Any:
    """Target of `memory.peak_growth`: forward and backward of one implementation."""
    if tiny:
        shape |= {"num_tokens": 64, "vocabulary": 128}
    built = IMPLEMENTATIONS[implementation](make_problem(LinearLossCase(**shape), "cpu", backend=backend))
    return lambda: torch.autograd.grad(built.forward(), built.leaves)


def measure_case(case: LinearLossCase, device: str, options: Any, on_stage: Any) -> dict[str, Any]:
    """Run a case in this process -> its part of the record, rates not yet applied; memory of the CPU comes later."""
    problem = make_problem(case, device, backend=options.backend)
    timed = comparison.time_implementations(
        IMPLEMENTATIONS,
        problem,
        device,
        options,
        on_stage,
        tolerance=TOLERANCE[case.dtype],
        budget_s=60.0,
        max_rounds=10,
    )
    gradients = sum(x.numel() * x.element_size() for x in (problem.hidden, problem.weight))
    for implementation in timed["implementations"].values():
        if implementation.get("peak_bytes") is not None:
            implementation["memory"] = {
                "growth_bytes": implementation.pop("peak_bytes"),
                "method": "max_memory_allocated",
            }
            implementation["extra_bytes"] = implementation["memory"]["growth_bytes"] - gradients
    return {
        "case": case.name,
        "terms": case.terms,
        "tokens": case.num_tokens,
        "width": case.width,
        "vocabulary": case.vocabulary,
        "dtype": case.dtype,
        "backend": options.backend,
        "flops": case.flops,
        "gradient_bytes": gradients,
    } | timed


def measure_here(case: LinearLossCase, device: str, options: Any, on_stage: Any) -> dict[str, Any]:
    """The same, with peak memory on the CPU; of toys that of the first case alone."""
    result = measure_case(case, device, options, on_stage)
    if device == "cpu" and (not options.quick or case == quick_cases()[0]):
        measure_memory(case, result, on_stage)
    return result


def measure_memory(case: LinearLossCase, result: dict[str, Any], on_stage: Any) -> None:
    """Add each implementation's peak memory on the CPU to a result, measured in children."""
    shape = {"terms": case.terms, "num_tokens": case.num_tokens, "width": case.width}
    shape |= {"vocabulary": case.vocabulary, "dtype": case.dtype, "backend": result["backend"]}
    for name, implementation in result["implementations"].items():
        if "skipped" in implementation:
            continue
        on_stage(f"{name} memory")
        grown = peak_growth("benchmarks.kernels.linear_loss:memory_call", shape | {"implementation": name})
        implementation["memory"] = grown
        if "growth_bytes" in grown:
            implementation["extra_bytes"] = grown["growth_bytes"] - grown["kept_bytes"]


def add_rates(result: dict[str, Any], roofline: dict[str, float]) -> None:
    """TFLOP/s and their share of the roofline."""
    for implementation in result["implementations"].values():
        if "seconds" in implementation:
            rate = result["flops"] / implementation["seconds"]["total"]["median"]
            implementation["tflops"] = rate / 1e12
            implementation["share_of_roofline"] = rate / roofline[f"{result['dtype']}_flops_per_s"]


def show(result: dict[str, Any]) -> str:
    """A case for the console."""
    if "skipped" in result:
        return f"\n{result['case']}: left out: {result['skipped']}"

    def columns(implementation: dict[str, Any]) -> dict[str, str]:
        total, extra = implementation["seconds"]["total"], implementation.get("extra_bytes")
        return {
            "total ms": f"{total['median'] * 1e3:.1f}",
            "p20 .. p80": f"{total['p20'] * 1e3:.1f} .. {total['p80'] * 1e3:.1f}",
            "TFLOP/s": f"{implementation['tflops']:.3g}",
            "of roofline": f"{implementation['share_of_roofline']:.0%}",
            "MiB beyond gradients": f"{extra / 2**20:.0f}" if extra is not None else "",
        }

    return comparison.show_implementations(f"\n{result['case']}", result, columns)


def targets(cases: list[LinearLossCase], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Time and memory of ours over those of `plain`."""
    found, by_name = [], {result["case"]: result for result in results}
    for case in cases:
        implementations = by_name.get(case.name, {}).get("implementations", {})
        if not case.targets or not implementations:
            continue
        over = implementations["plain"].get("over", {}).get("total", {}).get("median")
        # a median of ratios the other way round, exact for an odd number of rounds
        time = 1.0 / over if over else None
        found += harness.target(case.name, "time over plain", time, "at most", TIME_TARGET)
        extra = [implementations[name].get("extra_bytes") for name in (OURS, "plain")]
        memory = extra[0] / extra[1] if extra[0] is not None and extra[1] else None
        found += harness.target(case.name, "memory over plain", memory, "at most", MEMORY_TARGET)
    return found


def plot(record: dict[str, Any], path: Path) -> None:
    """Time and memory of every case and implementation, as bars."""
    from matplotlib.figure import Figure

    results = [result for result in record["cases"] if "implementations" in result]
    figure = Figure(figsize=(max(8, 1.1 * len(results)), 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    ran = [
        name
        for name in IMPLEMENTATIONS
        if any("seconds" in result["implementations"].get(name, {}) for result in results)
    ]
    width = 0.8 / max(1, len(ran))
    for i, name in enumerate(ran):
        shift = (i - (len(ran) - 1) / 2) * width
        shown = [(at + shift, result["implementations"].get(name, {})) for at, result in enumerate(results)]
        timed = [
            (at, implementation["seconds"]["total"]) for at, implementation in shown if "seconds" in implementation
        ]
        if timed:
            positions, spreads = zip(*timed, strict=True)
            middle = [s["median"] for s in spreads]
            ends = [[s["median"] - s["p20"] for s in spreads], [s["p80"] - s["median"] for s in spreads]]
            above.bar(positions, middle, 0.9 * width, yerr=ends, label=name)
        held = [(at, c["extra_bytes"] / 2**30) for at, c in shown if c.get("extra_bytes") is not None]
        if held:
            below.bar(*zip(*held, strict=True), 0.9 * width, label=name)
    above.set_ylabel("seconds, forward + backward")
    below.set_ylabel("GiB above inputs and gradients")
    below.set_xticks(range(len(results)), [r["case"] for r in results], rotation=30, ha="right", fontsize=7)
    above.legend()
    figure.suptitle(f"linear + cross-entropy, {comparison.where(record)}")
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark -> exit status."""
    return comparison.run(sys.modules[__name__], arguments)


if __name__ == "__main__":
    sys.exit(harness.command(main))
