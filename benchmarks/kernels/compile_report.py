"""Registers, spills and tensor-core instructions of the Triton kernels, in bf16 and fp32, for GPUs that are not here.

    python -m benchmarks.kernels.compile_report                          # sm_80, sm_90, sm_100; minutes
    python -m benchmarks.kernels.compile_report --arch 90 --dim 128      # one GPU, one head dim
    python -m benchmarks.kernels.compile_report --only 'bwd_keys-D64'    # kernels whose name matches
    python -m benchmarks.kernels.compile_report --candidates             # the tiles that a sweep on a GPU tries

The kernels of attention and the loss are compiled ahead of time exactly as they would be launched: the launching code
runs with recorders instead of the kernels. Faults are spills, matmuls that two warp groups both compute (sm_90, from
the layouts in Triton's intermediate code) and TMA copies that lost their loop's condition. Above D = 128 spills of up
to SPILL_LIMIT bytes and duplicated matmuls are reported, but are no fault; `kernels/attention/README.md` says why.

It says nothing about speed. The Gluon kernels are compiled by `tests/kernels/attention/test_gluon.py`. Not possible
under TRITON_INTERPRET=1, which replaces the compiler.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import torch
from tqdm import tqdm

from benchmarks.kernels.machine_code import doubled_products, tma_copies

ARCHITECTURES = (80, 90, 100)
DIMS = (32, 64, 96, 128, 192, 256)
SHARED_KIB = {80: 163, 90: 227, 100: 227}
"""Shared memory that one block may have, KiB."""
TENSOR_CORE = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
"""The architecture's own tensor-core instruction in machine code (wgmma is HGMMA, tcgen05.mma is UTCHMMA)."""
KINDS = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int32: "i32", torch.int64: "i64"
}  # fmt: skip
SPILL_LIMIT = 256
"""Bytes of spill allowed above D = 128, per thread."""
CANDIDATE_SPILL_LIMIT = 32
"""And in a candidate of the sweep, which will be timed: the versions of Triton differ by as much."""


@dataclass(frozen=True)
class KernelVariant:
    """One kernel as it would be launched."""

    name: str
    module: str
    kernel: str
    signature: dict[str, str]
    constants: dict[str, object]
    divisible: tuple[int, ...]
    """Numbers of the arguments known to be multiples of 16."""
    options: dict[str, int]
    arch: int


@dataclass(frozen=True)
class CompileReport:
    """What came out. spill: bytes of local memory per thread; tensor: count of the architecture's own matmuls;
    older: count of those of older generations (HMMA on sm_90 and newer)."""

    name: str
    arch: int
    registers: int
    spill: int
    shared_kib: float
    tensor: int
    older: int
    has_duplicate_warps: int = 0
    """Warp-group matmuls that two warp groups compute both, each for itself (sm_90)."""
    copies: int = 0
    """Instructions that copy by TMA, or announce such a copy (sm_90)."""
    loose: int = 0
    """Those of them that run even where their loop has no turn that would wait for them: such a kernel never ends."""
    error: str | None = None

    @property
    def faults(self) -> list[str]:
        """Why this kernel would not launch or not be worth timing."""
        if self.error:
            return [self.error]
        wide = int(re.search(r"D(\d+)", self.name).group(1)) > 128 if "D" in self.name else False
        found = []
        if self.spill > (SPILL_LIMIT if wide else CANDIDATE_SPILL_LIMIT if "-candidate-" in self.name else 0):
            found.append(f"{self.spill} bytes spilled")
        if self.shared_kib > SHARED_KIB[self.arch]:
            found.append(f"{self.shared_kib:.0f} KiB of shared memory, {SHARED_KIB[self.arch]} can be had")
        if self.arch == 90 and self.needs_tensor_cores and not self.tensor:
            found.append("no HGMMA")
        if self.has_duplicate_warps and not wide:
            found.append(f"{self.has_duplicate_warps} matmuls computed twice")
        if self.loose:
            found.append(f"{self.loose} TMA copies without their loop's condition")
        return found

    @property
    def needs_tensor_cores(self) -> bool:
        """Merging and row sums have no matmul; decoding's rows are too few for wgmma; fp32 stays fp32."""
        return any(word in self.name for word in ("fwd", "bwd_keys", "bwd_queries")) and "fp32" not in self.name


class LaunchRecorder:
    """Replaces a kernel and records what it is launched with."""

    def __init__(self, kernel, kept: list):
        self.kernel, self.kept = kernel, kept

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.kept.append((self.kernel, args, kwargs))


@contextmanager
def recorded(arch: int, narrow: bool) -> Iterator[list]:
    """The list that attention's launches go to, as if a GPU of this architecture were there."""
    from brine.kernels.attention.triton import backward as triton_backward
    from brine.kernels.attention.triton import decode as triton_decode
    from brine.kernels.attention.triton import forward as triton_kernels
    from brine.kernels.attention.triton import launch as triton_launch

    kept: list = []
    with mock.patch.multiple(
        triton_launch, check=lambda q, k: None, capability_of=lambda q: divmod(arch, 10), is_narrow=lambda *_: narrow
    ):
        patches = [
            mock.patch.object(module, name, LaunchRecorder(getattr(module, name), kept))
            for module in (triton_kernels, triton_backward, triton_decode)
            for name in vars(module)
            if name.endswith("_kernel")
        ]
        for patch in patches:
            patch.start()
        try:
            yield kept
        finally:
            for patch in patches:
                patch.stop()


def attention_variants(
    arch: int, dims: tuple[int, ...], dtypes=(torch.bfloat16, torch.float32), document: torch.Tensor | None = None
) -> Iterator[KernelVariant]:
    """Every attention kernel: forward, backward and decoding, all head dims, wide and narrow masks.

    document: (1, T) ids of the sequence that they are launched for, of at least 512 tokens; no variant depends on it.
    """
    from brine.kernels.attention import Spans
    from brine.kernels.attention.spans import AttentionRequest
    from brine.kernels.attention.triton import launch as triton_launch

    heads, key_heads = 8, 2
    spans = Spans.packed(torch.zeros(1, 512, dtype=torch.int32) if document is None else document)
    rows = spans.num_queries
    for dtype in dtypes:
        for dim in dims if dtype != torch.float32 else [d for d in dims if d in (64, 128)]:
            q = torch.zeros(1, rows, heads, dim, dtype=dtype)
            k = torch.zeros(1, rows, key_heads, dim, dtype=dtype)
            for narrow in (False, True) if dtype != torch.float32 else (False,):
                short = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.float16: "fp16"}[dtype]
                label = f"D{dim}-{short}" + ("-narrow" if narrow else "")
                with recorded(arch, narrow) as kept:
                    request = AttentionRequest(spans.mask, 0.1)
                    out, lse = triton_launch.forward(q, k, k, request)
                    triton_launch.backward(out, q, k, k, out, lse, request)
                    if not narrow:
                        last = spans.mask._replace(lo=spans.lo[:, -3:], hi=spans.hi[:, -3:])
                        triton_launch.forward(q[:, :3], k, k, AttentionRequest(last, 0.1, torch.zeros(heads)))
                for kernel, args, kwargs in kept:
                    yield variant_of(kernel, args, kwargs, arch, label)


def candidate_variants(dims: tuple[int, ...]) -> Iterator[KernelVariant]:
    """Every candidate of the sweep of tiles, in bf16 on sm_90, wide and narrow masks' in one."""
    from benchmarks.kernels.tile_candidates import candidates
    from brine.kernels.attention import Spans
    from brine.kernels.attention.spans import AttentionRequest
    from brine.kernels.attention.triton import launch as triton_launch
    from brine.kernels.attention.triton import tiles as triton_tiles

    spans = Spans.packed(torch.zeros(1, 512, dtype=torch.int32))
    for dim in (d for d in dims if d in (64, 128)):
        q, k = (torch.zeros(1, 512, heads, dim, dtype=torch.bfloat16) for heads in (8, 2))
        for name in triton_tiles.PASSES:
            wide, narrow = (candidates(name, dim, narrow=narrow, capability=(9, 0)) for narrow in (False, True))
            for tile in dict.fromkeys((*wide, *narrow)):
                with recorded(90, False) as kept, triton_tiles.override_tiles({(name, dim, False): tile}):
                    request = AttentionRequest(spans.mask, 0.1)
                    out, lse = triton_launch.forward(q, k, k, request)
                    triton_launch.backward(out, q, k, k, out, lse, request)
                for kernel, args, kwargs in kept:
                    if f"_{name}_kernel" in kernel.__name__:
                        yield variant_of(kernel, args, kwargs, 90, f"D{dim}-bf16-candidate-{tile}")


def loss_variants(arch: int) -> Iterator[KernelVariant]:
    """The kernel of the fused head and loss, with and without soft labels."""
    from brine.kernels.linear_loss import triton_kernels
    from brine.kernels.linear_loss.autograd_function import LossTerms
    from brine.kernels.linear_loss.soft_labels import SoftLabels

    tokens, vocab_size, num_listed = 2, 65536, 64
    label, scale = torch.zeros(tokens, 1, dtype=torch.int64), torch.ones(tokens, 1)
    sparse = SoftLabels(torch.zeros(tokens, num_listed, dtype=torch.int64), torch.ones(tokens, num_listed), scale)
    kinds = ("plain-nograd", "plain", "dense", "dense-tempered", "sparse", "sparse-tempered")
    for short, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        for kind in kinds:
            logits = torch.zeros(tokens, vocab_size, dtype=dtype)
            soft = "dense" in kind or "sparse" in kind
            terms = LossTerms(0.5, 0.5 if soft else 0.0, 2.0 if "tempered" in kind else 1.0)
            options = {
                "teacher": logits.clone() if "dense" in kind else None,
                "soft": sparse if "sparse" in kind else None,
            }
            kept: list = []
            with mock.patch.object(
                triton_kernels, "linear_loss_kernel", LaunchRecorder(triton_kernels.linear_loss_kernel, kept)
            ):
                triton_kernels.chunk_loss(logits, label, terms=terms, scale=scale, grad="nograd" not in kind, **options)
            ((kernel, args, kwargs),) = kept
            yield variant_of(kernel, args, kwargs, arch, f"{short}-{kind}")


def variant_of(kernel, args: tuple, kwargs: dict, arch: int, label: str) -> KernelVariant:
    """The variant that `kernel[grid](*args, **kwargs)` would compile; constants and types as Triton's own rules."""
    # importing triton takes a second, and the other half of this module does without
    from triton.tools.tensor_descriptor import TensorDescriptor

    signature, constants, divisible = {}, {}, []
    values = dict(zip(kernel.arg_names, args, strict=False))
    values |= {name: value for name, value in kwargs.items() if name in kernel.arg_names}
    for number, param in enumerate(kernel.params):
        value = values[param.name]
        if param.is_constexpr or value is None or (_specialised(param, value) and value == 1):
            signature[param.name], constants[param.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[param.name] = "*" + KINDS[value.dtype]
            # a GPU's allocator gives addresses that are multiples of 512
            if not param.do_not_specialize_on_alignment:
                divisible.append(number)
        elif isinstance(value, TensorDescriptor):
            signature[param.name] = f"tensordesc<{KINDS[value.base.dtype]}{value.block_shape}>"
        elif isinstance(value, float):
            signature[param.name] = "fp32"
        else:
            signature[param.name] = param.annotation_type or "i32"
            if not param.do_not_specialize and value % 16 == 0:
                divisible.append(number)
    options = {key: kwargs[key] for key in ("num_warps", "num_stages", "maxnreg") if key in kwargs}
    name = f"{kernel.__name__.removesuffix('_kernel')}-{label}"
    return KernelVariant(
        name, kernel.__module__, kernel.__name__, signature, constants, tuple(divisible), options, arch
    )


def _specialised(param, value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and not param.do_not_specialize


def compile_variant(variant: KernelVariant) -> CompileReport:
    """Compile one variant and read its machine code. A compiler's refusal becomes the report's `error`."""
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(variant.module), variant.kernel)
    attrs = {(number,): [["tt.divisibility", 16]] for number in variant.divisible}
    source = ASTSource(kernel, variant.signature, variant.constants, attrs)
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", variant.arch, 32), options=dict(variant.options))
    except Exception as error:
        return CompileReport(
            variant.name,
            variant.arch,
            0,
            0,
            0.0,
            0,
            0,
            error=f"{type(error).__name__}: {error} {error.__cause__ or ''}"[-400:],
        )
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _cuobjdump("-res-usage", cubin)
        sass = _cuobjdump("-sass", cubin)
    counts = {word: len(re.findall(rf"\b{word}\b", sass)) for word in {*TENSOR_CORE.values()}}
    own = TENSOR_CORE[variant.arch]
    copies, loose = tma_copies(compiled.asm["ptx"])
    return CompileReport(
        name=variant.name,
        arch=variant.arch,
        registers=int(re.search(r"REG:(\d+)", usage).group(1)),
        # what is spilled lives on the stack; the kernels have no arrays of their own
        spill=int(re.search(r"STACK:(\d+)", usage).group(1)),
        shared_kib=compiled.metadata.shared / 1024,
        tensor=counts[own],
        older=sum(count for word, count in counts.items() if word != own),
        has_duplicate_warps=doubled_products(compiled.asm["ttgir"]),
        copies=copies,
        loose=loose,
    )


def _cuobjdump(flag: str, cubin: Path) -> str:
    import triton

    tool = triton.knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, flag, str(cubin)], capture_output=True, text=True, check=True, timeout=120).stdout


def table(reports: list[CompileReport]) -> str:
    """Aligned lines for a person."""
    width = max(len(report.name) for report in reports)
    lines = [f"{'kernel':<{width}}  arch  regs  spill  shared KiB  tensor  older  doubled"]
    for report in reports:
        lines.append(
            f"{report.name:<{width}}  {report.arch:>4}  {report.registers:>4}  {report.spill:>5}  "
            f"{report.shared_kib:>10.1f}  {report.tensor:>6}  {report.older:>5}  {report.has_duplicate_warps:>7}"
            + (f"   {'; '.join(report.faults)}" if report.faults else "")
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Compile, print the table, and one JSON line last; 1 where anything is at fault."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels.compile_report", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--dim", type=int, nargs="+", choices=DIMS, default=list(DIMS), help="head dims")
    parser.add_argument("--candidates", action="store_true", help="instead: the tiles that a sweep tries on sm_90")
    parser.add_argument("--only", default="", help="regular expression that a kernel's name must contain")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    options = parser.parse_args(argv)

    import triton

    if triton.knobs.runtime.interpret:
        print("error: TRITON_INTERPRET=1 replaces the compiler; unset it and start again", file=sys.stderr)
        return 2
    variants = [
        v for arch in options.arch for v in (*attention_variants(arch, tuple(options.dim)), *loss_variants(arch))
    ]
    if options.candidates:
        variants = list(candidate_variants(tuple(options.dim)))
    variants = [v for v in variants if re.search(options.only, v.name)]
    if not variants:
        print(f"error: no kernel's name matches {options.only!r}", file=sys.stderr)
        return 2
    with ProcessPoolExecutor(options.jobs) as pool:
        reports = list(tqdm(pool.map(compile_variant, variants), total=len(variants), unit="kernel", leave=False))
    faulty = [report for report in reports if report.faults]
    print(f"triton {triton.__version__}")
    print(table(reports))
    record = {"triton": triton.__version__, "torch": torch.__version__, "reports": [asdict(r) for r in reports]}
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({"triton": triton.__version__, "kernels": len(reports), "faulty": len(faulty)}))
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
