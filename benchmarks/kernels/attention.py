"""Attention over spans against what PyTorch and others have for the same mask, in one run.

    python -m benchmarks.kernels.attention                    this machine: the GPU where there is one, else the CPU
    python -m benchmarks.kernels.attention --cases decode     some of the cases

**FLOPs** are 4 D H per *visible* (query, key) pair forward and 2.5 times that backward, for every implementation.
Roofline: the best square matmul of this device in the case's dtype, in the same run. A decoding step is quoted in GB/s
of visible keys and values, against the best copy of this device.

**Cases on a GPU** (bf16, 32 query heads over 8 KV heads, D 64 and 128, 4k to 1M tokens): causal, a window of 1,024,
packed documents, the same with image blocks; decoding 8 sequences with caches of 32k and 128k. **On a CPU** (8 heads, D
64, fp32 and bf16), with targets: causal, at least 0.95 of the speed of SDPA's flash kernel; 8k tokens of 512-token
documents with image blocks, at least 10 times that of SDPA with a dense mask; peak memory at a window of 1,024 for 32k,
64k and 128k tokens, linear; also packed and windowed sequences and decoding. Masks are in `masks.py`,
implementations in `attention_implementations.py`.

**Memory** is the growth above the inputs during forward and backward: on CUDA for every implementation, by the caching
allocator; on the CPU for ours in the memory cases, by process (`memory.py`).

Not measured: dropout, sinks, several GPUs. About 15 minutes on two cores, half of it in the causal case of 32k tokens.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import comparison
from benchmarks.harness import correctness as gate
from benchmarks.harness import records as harness
from benchmarks.harness.comparison import DTYPES
from benchmarks.harness.implementations import OURS
from benchmarks.harness.memory import peak_growth
from benchmarks.kernels.attention_implementations import CPU, CUDA, AttentionProblem, brine
from benchmarks.kernels.masks import DECODE_BATCH, KINDS, WINDOW, make_mask

NAME = "attention"
SUMMARY = "Attention over spans against SDPA, FlexAttention and flash-attn, by mask and length."
COPIES = True
"""Decoding is bound by them."""
TESTS = {
    "cpu": (
        "tests/kernels/attention/test_attention.py",
        "tests/kernels/attention/test_compile.py",
        "tests/kernels/attention/test_spans.py",
    ),
    "cuda": ("tests/kernels/attention/test_[!g]*.py",),
}
"""What has to pass first: on a GPU the kernels' own tests too."""
TOLERANCE = {"fp32": 1e-3, "bf16": 0.05}
BACKWARD = 2.5
"""FLOPs of the backward over those of the forward."""
SEED = 7
LINEAR = 1.1
"""Growth per token at the longest sequence over that at the shortest, up to which memory counts as linear."""


@dataclass(frozen=True)
class AttentionCase:
    """One mask at one size."""

    kind: str
    """A kind of `masks.KINDS`."""
    num_tokens: int
    """T, or keys in the cache for "decode"."""
    heads: tuple[int, int] = (8, 8)
    """H, K."""
    dim: int = 64
    """D."""
    dtype: str = "fp32"
    """A key of `DTYPES`."""
    memory: bool = False
    """Measure our peak memory on the CPU instead of anyone's time."""
    target: tuple[str, float] | None = None
    """(peer, least speed of ours over the peer's, forward and backward)."""

    @property
    def name(self) -> str:
        """An id such as causal-T4096-H8:8-D64-fp32."""
        size = f"T{self.num_tokens}-H{self.heads[0]}:{self.heads[1]}-D{self.dim}-{self.dtype}"
        return f"{'memory-' if self.memory else ''}{self.kind}-{size}"


def cpu_cases() -> list[AttentionCase]:
    """What two cores can do in a quarter of an hour."""
    cases = []
    for dtype in ("bf16", "fp32"):
        for k in (4, 8, 16, 32):
            cases.append(AttentionCase("causal", k * 1024, dtype=dtype, target=("sdpa-flash", 0.95)))
        cases.append(AttentionCase("images512", 8192, dtype=dtype, target=("sdpa-mask", 10.0)))
        cases.append(AttentionCase("window", 8192, dtype=dtype))
    cases += [
        AttentionCase("causal", 8192, heads=(8, 2), dtype="bf16"),
        AttentionCase("packed", 16384, dtype="bf16"),
        AttentionCase("multimodal", 16384, dtype="bf16"),
        AttentionCase("window", 128 * 1024, dtype="bf16"),
        AttentionCase("decode", 32 * 1024, dtype="bf16"),
        AttentionCase("decode", 128 * 1024, dtype="bf16"),
    ]
    cases += [AttentionCase("window", k * 1024, memory=True) for k in (32, 64, 128)]
    return cases


def cuda_cases() -> list[AttentionCase]:
    """What one GPU of 80 GB can hold."""
    cases = []
    for dim in (64, 128):
        for k in (4, 16, 64, 256, 1024):
            for kind in ("causal", "window", "packed", "multimodal"):
                cases.append(AttentionCase(kind, k * 1024, heads=(32, 8), dim=dim, dtype="bf16"))
        cases += [AttentionCase("decode", k * 1024, heads=(32, 8), dim=dim, dtype="bf16") for k in (32, 128)]
    return cases


def quick_cases() -> list[AttentionCase]:
    """Every kind of case at toy sizes."""
    size = {"heads": (2, 1), "dim": 16}
    return [
        AttentionCase("causal", 192, **size, target=("sdpa-flash", 0.95)),
        AttentionCase("window", 300, **size, dtype="bf16"),
        AttentionCase("packed", 300, **size),
        AttentionCase("multimodal", 700, **size),
        AttentionCase("images512", 600, **size, target=("sdpa-mask", 10.0)),
        AttentionCase("decode", 100, **size, dtype="bf16"),
    ]


def cases_of(options: Any, device: str) -> list[AttentionCase]:
    """Every case that these options and this device have."""
    return quick_cases() if options.quick else cuda_cases() if device == "cuda" else cpu_cases()


def make_problem(case: AttentionCase, device: str, *, backend: str = "auto") -> AttentionProblem:
    """Inputs and mask of a case, from `SEED`."""
    mask = make_mask(case.kind, case.num_tokens, device=device)
    generator = torch.Generator(device).manual_seed(SEED)
    heads, key_heads = case.heads

    def normal(batch: int, tokens: int, num_heads: int) -> torch.Tensor:
        shape = (batch, tokens, num_heads, case.dim)
        return torch.empty(shape, dtype=DTYPES[case.dtype], device=device).normal_(generator=generator)

    decoding = case.kind == "decode"
    batch = DECODE_BATCH if decoding else 1
    rows = 1 if decoding else case.num_tokens
    return AttentionProblem(
        mask=mask,
        q=normal(batch, rows, heads),
        k=normal(batch, case.num_tokens, key_heads),
        v=normal(batch, case.num_tokens, key_heads),
        grad=None if decoding else normal(batch, rows, heads),
        backend=backend,
    )


def verify(device: str, backend: str, *, num_tokens: int = 1500, dims: tuple[int, ...] = (64, 128)) -> None:
    """Hold small cases of every mask against the specification on this device. Raises TestsFailedError."""
    for kind in KINDS:
        for dim in dims:
            problem = make_problem(AttentionCase(kind, num_tokens, (4, 2), dim, "bf16"), device, backend=backend)
            wide = {name: getattr(problem, name).float() for name in ("q", "k", "v")}
            grad = None if problem.grad is None else problem.grad.float()
            truth = replace(problem, **wide, grad=grad, backend="reference")
            gate.agree(f"{kind} D{dim}", brine(problem), brine(truth), TOLERANCE["bf16"])


def measure_case(case: AttentionCase, device: str, options: Any, on_stage: Any) -> dict[str, Any]:
    """Run a case in this process -> its part of the record, rates of the roofline not yet applied."""
    problem = make_problem(case, device, backend=options.backend)
    area = problem.mask.spans.area()
    result = {
        "case": case.name,
        "kind": case.kind,
        "tokens": case.num_tokens,
        "heads": list(case.heads),
        "dim": case.dim,
        "dtype": case.dtype,
        "backend": options.backend,
        "area": area,
        "area_share": problem.mask.share,
        "documents": len(problem.mask.lengths),
        "forward_flops": 4 * area * case.dim * case.heads[0],
    }
    if case.kind == "decode":
        result["read_bytes"] = 2 * area * case.heads[1] * case.dim * problem.q.element_size()
    timed = comparison.time_implementations(
        CUDA if device == "cuda" else CPU, problem, device, options, on_stage, tolerance=TOLERANCE[case.dtype]
    )
    return result | timed


def measure_here(case: AttentionCase, device: str, options: Any, on_stage: Any) -> dict[str, Any]:
    """The same, or our peak memory."""
    return measure_memory(case, options.backend) if case.memory else measure_case(case, device, options, on_stage)


def add_rates(result: dict[str, Any], roofline: dict[str, float]) -> None:
    """TFLOP/s over the visible area (GB/s of visible keys and values when decoding) and their share of the roofline."""
    flops = {"forward": result["forward_flops"], "backward": BACKWARD * result["forward_flops"]}
    flops["total"] = sum(flops.values())
    for implementation in result["implementations"].values():
        for phase, spread in implementation.get("seconds", {}).items():
            if "read_bytes" in result:
                rate, peak, unit = result["read_bytes"] / spread["median"], roofline["copy_bytes_per_s"], 1e9
            else:
                rate, peak, unit = flops[phase] / spread["median"], roofline[f"{result['dtype']}_flops_per_s"], 1e12
            key = "gb_per_s" if "read_bytes" in result else "tflops"
            implementation.setdefault(key, {})[phase] = rate / unit
            implementation.setdefault("share_of_roofline", {})[phase] = rate / peak


def memory_call(*, tiny: bool, num_tokens: int, heads: list[int], dim: int, dtype: str, kind: str, backend: str) -> Any:
    """Target of `memory.peak_growth`: our forward and backward."""
    case = AttentionCase(kind, 2 * WINDOW if tiny else num_tokens, heads=tuple(heads), dim=dim, dtype=dtype)
    problem = make_problem(case, "cpu", backend=backend)
    built = brine(problem)
    return lambda: torch.autograd.grad(built.forward(), built.leaves, built.grad)


def measure_memory(case: AttentionCase, backend: str) -> dict[str, Any]:
    """Our peak memory at a case, in a child."""
    arguments = {"num_tokens": case.num_tokens, "heads": list(case.heads), "dim": case.dim, "dtype": case.dtype}
    grown = peak_growth("benchmarks.kernels.attention:memory_call", arguments | {"kind": case.kind, "backend": backend})
    return {"case": case.name, "kind": case.kind, "tokens": case.num_tokens, "dtype": case.dtype, "memory": grown}


def show(result: dict[str, Any]) -> str:
    """A case for the console."""
    if "memory" in result or "skipped" in result:
        memory = result.get("memory", result)
        if "skipped" in memory:
            return f"\n{result['case']}: left out: {memory['skipped']}"
        grown = memory["growth_bytes"]
        per_token = grown / result["tokens"]
        return f"\n{result['case']}: {grown / 2**20:.0f} MiB above the inputs, {per_token:.0f} bytes a token"

    def columns(implementation: dict[str, Any]) -> dict[str, str]:
        seconds, rate = implementation["seconds"], implementation.get("tflops") or implementation["gb_per_s"]
        total, peak = seconds["total"], implementation.get("peak_bytes")
        return {
            "forward ms": f"{seconds.get('forward', total)['median'] * 1e3:.2f}",
            "total ms": f"{total['median'] * 1e3:.2f}",
            "p20 .. p80": f"{total['p20'] * 1e3:.2f} .. {total['p80'] * 1e3:.2f}",
            "TFLOP/s" if "tflops" in implementation else "GB/s": " + ".join(
                f"{rate[phase]:.3g}" for phase in ("forward", "backward", "total") if phase in rate
            ),
            "of roofline": f"{implementation['share_of_roofline']['total']:.0%}",
            "GiB": f"{peak / 2**30:.2f}" if peak else "",
        }

    head = f"\n{result['case']}: {result['area_share']:.2%} of the area unmasked, documents: {result['documents']}"
    return comparison.show_implementations(head, result, columns)


def targets(cases: list[AttentionCase], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was aimed at, and what came out."""
    found, by_name = [], {result["case"]: result for result in results}
    for case in cases:
        implementations = by_name.get(case.name, {}).get("implementations", {})
        if case.target:
            peer, wanted = case.target
            over = implementations.get(peer, {}).get("over", {}).get("total", {}).get("median")
            found += harness.target(case.name, f"time of {peer} over ours", over, "at least", wanted)
    grown = {
        result["tokens"]: result["memory"]["growth_bytes"] / result["tokens"]
        for result in results
        if "growth_bytes" in result.get("memory", {})
    }
    if len(grown) > 1:
        ratio = grown[max(grown)] / grown[min(grown)]
        what = f"bytes per token at {max(grown)} over those at {min(grown)}"
        found += harness.target("memory-window", what, ratio, "at most", LINEAR)
    return found


def plot(record: dict[str, Any], path: Path) -> None:
    """TFLOP/s over sequence length, a panel for each mask, head dim and dtype, and one for memory."""
    from matplotlib.figure import Figure

    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for result in record["cases"]:
        for name, implementation in result.get("implementations", {}).items():
            rate = implementation.get("tflops") or implementation.get("gb_per_s")
            if rate:
                unit = "TFLOP/s" if "tflops" in implementation else "GB/s"
                panel = (
                    f"{result['kind']} H{result['heads'][0]}:{result['heads'][1]} D{result['dim']} {result['dtype']}"
                )
                lines = panels.setdefault(f"{panel}, {unit}", {})
                lines.setdefault(name, []).append((result["tokens"], rate["total"]))
        if "growth_bytes" in result.get("memory", {}):
            lines = panels.setdefault(f"{result['kind']} {result['dtype']}, MiB above the inputs", {})
            lines.setdefault(OURS, []).append((result["tokens"], result["memory"]["growth_bytes"] / 2**20))
    columns = max(2, min(4, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    for at, (title, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, at + 1)
        for name, points in lines.items():
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name, lw=2.5 if name == OURS else 1.2)
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, 1.15 * max(rate for points in lines.values() for _, rate in points))
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("tokens")
        axes.legend(fontsize=7)
    figure.suptitle(f"attention, forward + backward over the unmasked area, {comparison.where(record)}")
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark -> exit status."""
    return comparison.run(sys.modules[__name__], arguments)


if __name__ == "__main__":
    sys.exit(harness.command(main))
