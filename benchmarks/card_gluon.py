"""The specialised forward on a card: is it right, and how fast, in about a minute.

    python -m benchmarks.card_gluon                  both; JSON lines, also in $OUT/gluon.jsonl where OUT is set
    python -m benchmarks.card_gluon --only check     right or wrong, by configuration
    python -m benchmarks.card_gluon --only time      times beside our Triton forward and PyTorch's

Barriers that wait for each other hang a kernel for good, and cannot be interrupted from inside. Every configuration
therefore runs in a process of its own, which says what it is about to do in a file; the parent ends it when its time is
over and reports the last thing it said. Checks run side by side, timings alone. `--toy` tries all of this without a
card: the kernel's place is taken by the specification.

A check is held against the specification in fp32 from the same 16-bit inputs: `error` is |out - truth| / |truth|, `lse`
the largest difference of the log-sum-exp, `same` whether three runs gave the same bits, as a race would not.
FLOPs are 4 D H a seen pair.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.masks import make_mask
from kernels import Spans
from kernels.attention import gluon_launch, reference, triton_launch
from kernels.attention.gluon_launch import Shape

HEADS, KEY_HEADS = 32, 8
SHAPES = {
    128: (Shape(128, 2, True), Shape(128, 2, False), Shape(64, 4, True), Shape(128, 2, True, True)),
    64: (Shape(128, 2, True), Shape(128, 4, True), Shape(128, 2, False), Shape(128, 2, True, True)),
}
TOKENS = (1, 63, 65, 200, 1500, 4097)
CHECK_S, TIME_S = 100, 100
TOLERANCE = 0.008
"""Weights are rounded to 8 bits before the second product, and so is the result: 0.003 or so together."""


def say(**record) -> None:
    """One JSON line, printed and kept."""
    line = json.dumps(record)
    print(line, flush=True)
    keep(line)


def keep(line: str) -> None:
    """Append to $OUT/gluon.jsonl."""
    if os.environ.get("OUT"):
        with open(Path(os.environ["OUT"]) / "gluon.jsonl", "a") as file:
            file.write(line + "\n")


def inputs(
    num_rows: int, num_keys: int, dim: int, *, device: str, heads: int = HEADS, key_heads: int = KEY_HEADS,
    batch: int = 1, dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """q, k, v from a seed."""
    torch.manual_seed(num_rows * 1000 + dim)
    q = torch.randn(batch, num_rows, heads, dim, device=device, dtype=dtype)
    k, v = (torch.randn(batch, num_keys, key_heads, dim, device=device, dtype=dtype) for _ in range(2))
    return q, k, v


def holes(num_tokens: int, device: str) -> Spans:
    """Rows that see nothing at the beginning, in the middle and at the end, in a batch of two with more keys than
    rows."""
    row = torch.arange(num_tokens)
    lo = (row * 2 // 3).to(torch.int32)
    hi = torch.where((row < 70) | (row % 5 == 0) | (row > num_tokens - 80), lo, lo + 90).to(torch.int32)
    hi = hi.cummax(0).values
    empty = (row < 70) | (row > num_tokens - 80)
    lo = torch.where(empty, hi, lo).cummax(0).values.to(torch.int32)
    hi = torch.maximum(hi, lo).to(torch.int32)
    both = torch.stack([lo, lo // 2]), torch.stack([hi, (hi + 1) // 2])
    return Spans(both[0].to(device), both[1].to(device), num_tokens + 77)


def cases(dim: int, shape: Shape, device: str, toy: bool) -> Iterator[tuple[str, Callable[[], dict]]]:
    """Name and check of everything that one configuration has to get right; easy ones first."""
    tokens = (1, 65) if toy else TOKENS
    for size in tokens:
        for kind in ("causal", "window", "packed", "multimodal", "images512"):
            if size < 200 and kind not in ("causal", "window"):
                continue
            spans = make_mask(kind, size, device=device, window=100 if size < 1500 else 700).spans
            yield f"T{size}-{kind}", lambda spans=spans: check(dim, shape, spans, device)
    for name, options in {
        "sink": {"with_sink": True},
        "wide-fp16": {"wide": True, "dtype": torch.float16},
        "one-key-head": {"heads": 4, "key_heads": 1},
        "batch3": {"batch": 3, "heads": 4, "key_heads": 4},
        "thin": {"dim": dim - 16},
        "negative-scale": {"scale": -0.1},
        "large-scores": {"scale": 3.0},
    }.items():
        yield name, lambda options=options: check(
            options.get("dim", dim), shape,
            make_mask("packed", 777, device=device).spans if "batch" not in options
            else Spans.packed(torch.arange(900, device=device).div(311, rounding_mode="floor").int().repeat(3, 1)),
            device, **{name: value for name, value in options.items() if name != "dim"},
        )  # fmt: skip
    for with_sink in (False, True):
        yield (
            f"holes-sink{int(with_sink)}",
            lambda with_sink=with_sink: check(dim, shape, holes(500, device), device, batch=2, with_sink=with_sink),
        )


def check(
    dim: int, shape: Shape, spans: Spans, device: str, *, with_sink: bool = False, wide: bool = False,
    dtype: torch.dtype = torch.bfloat16, scale: float | None = None, **sizes: int,
) -> dict:  # fmt: skip
    """One comparison with the specification."""
    q, k, v = inputs(spans.num_rows, spans.num_keys, dim, device=device, dtype=dtype, **sizes)
    scale = dim**-0.5 if scale is None else scale
    sink = torch.linspace(-1, 2, q.shape[2], device=device) if with_sink else None
    run = gluon_launch.forward if device == "cuda" else stand_in
    first, *more = (
        run(q, k, v, spans.lo, spans.hi, 0, scale=scale, sink=sink, wide=wide, shape=shape) for _ in range(3)
    )
    out, lse = first
    truth, truth_lse = specified(q, k, v, spans, scale, sink)
    seen = truth_lse.isfinite()
    found = {
        "error": float((out.float() - truth).norm() / truth.norm().clamp_min(1e-30)),
        "largest": float((out.float() - truth).abs().max()),
        "lse": float((lse - truth_lse)[seen].abs().max()) if seen.any() else 0.0,
        "same": all(torch.equal(out, o) and torch.equal(lse, x) for o, x in more),
        "empty": int((~seen).sum()),
    }
    found["right"] = bool(
        found["error"] < TOLERANCE and found["lse"] < 2e-3 * (1 + float(truth_lse[seen].abs().max() if seen.any() else 0))
        and found["same"] and torch.equal(lse.isneginf(), truth_lse.isneginf()) and out.isfinite().all()
        and not out.transpose(1, 2)[~seen].any()
    )  # fmt: skip
    return found


def specified(
    q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float, sink: Tensor | None
) -> tuple[Tensor, Tensor]:
    """out and lse in fp32, one key head at a time: eight of these processes share a card's memory."""
    group = q.shape[2] // k.shape[2]
    parts = []
    for head in range(k.shape[2]):
        mine = slice(head * group, (head + 1) * group)
        parts.append(
            reference.forward(
                q[:, :, mine].float(), k[:, :, head : head + 1].float(), v[:, :, head : head + 1].float(),
                spans.lo, spans.hi, 0, scale=scale, sink=None if sink is None else sink[mine], wide=True,
            )
        )  # fmt: skip
    return torch.cat([out for out, _ in parts], 2), torch.cat([lse for _, lse in parts], 1)


def stand_in(q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, serial: int, *, shape: Shape, **options):
    """The specification in the kernel's place, for a rehearsal."""
    return reference.forward(q, k, v, lo, hi, serial, **options)


def check_one(dim: int, number: int, device: str, now: Path, toy: bool) -> None:
    """Every case of one configuration; the summary is printed, all of it is kept."""
    shape = SHAPES[dim][number]
    worst, num_right, wrong = 0.0, 0, []
    for name, case in cases(dim, shape, device, toy):
        now.write_text(name)
        try:
            found = case()
        except Exception as error:
            found = {"right": False, "raised": f"{type(error).__name__}: {str(error)[:300]}"}
        keep(json.dumps({"check": name, "dim": dim, "shape": list(shape), **found}))
        worst = max(worst, found.get("error", 0.0))
        num_right += found["right"]
        if not found["right"]:
            wrong.append({"case": name, **found})
            if "CUDA error" in found.get("raised", "") or "illegal" in found.get("raised", ""):
                break
    say(what="check", dim=dim, shape=list(shape), right=num_right, wrong=len(wrong), worst_error=worst, first=wrong[:4])


def time_one(dim: int, device: str, now: Path, toy: bool) -> None:
    """Medians of everybody, in one process."""
    for kind, size in (("causal", 32768), ("causal", 16384), ("multimodal", 32768), ("packed", 32768)):
        size = 300 if toy else size
        mask = make_mask(kind, size, device=device)
        q, k, v = inputs(size, size, dim, device=device)
        spans, scale = mask.spans, dim**-0.5
        flops = 4 * dim * HEADS * spans.area()
        common = (q, k, v, spans.lo, spans.hi, spans.serial)
        if device == "cuda":
            contenders: dict[str, Callable[[], Tensor]] = {
                "triton": lambda: triton_launch.forward(*common, scale=scale, sink=None)[0],
                **{
                    f"gluon-{shape.keys}-{shape.stages}-{int(shape.overlap)}{int(shape.turns)}": lambda shape=shape: (
                        gluon_launch.forward(*common, scale=scale, shape=shape)[0]
                    )
                    for shape in SHAPES[dim]
                },
            }
            if kind == "causal":
                for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
                    contenders[backend.name.split("_")[0].lower()] = lambda backend=backend: sdpa(q, k, v, backend)
        else:
            contenders = {"reference": lambda: reference.forward(*common, scale=scale, sink=None)[0]}
        truth = None
        for name, function in contenders.items():
            now.write_text(f"{kind} {size} {name}")
            try:
                out = function()
                truth = out if truth is None else truth
                error = float((out.float() - truth.float()).norm() / truth.float().norm())
                ms = median_ms(function, device)
            except Exception as problem:
                say(
                    what="time",
                    mask=kind,
                    tokens=size,
                    dim=dim,
                    who=name,
                    raised=f"{type(problem).__name__}: {problem}"[:300],
                )
                continue
            say(
                what="time", mask=kind, tokens=size, dim=dim, who=name, ms=round(ms, 4),
                tflops=round(flops / ms / 1e9, 1), differs=round(error, 6),
            )  # fmt: skip


def sdpa(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend) -> Tensor:
    """PyTorch's, one backend and no other."""
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
        ).transpose(1, 2)


def median_ms(function: Callable[[], Tensor], device: str) -> float:
    """Between CUDA events, with the L2 cache cleared in between."""
    if device != "cuda":
        before = time.perf_counter()
        function()
        return (time.perf_counter() - before) * 1e3
    import triton

    return triton.testing.do_bench(function, warmup=30, rep=200, return_mode="median")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("check", "time"))
    parser.add_argument("--toy", action="store_true", help="without a card, at toy sizes")
    parser.add_argument("--child", help="for the parent: check:D:NUMBER or time:D")
    parser.add_argument("--now", type=Path)
    args = parser.parse_args()
    device = "cpu" if args.toy else "cuda"
    if args.child:
        what, dim, *number = args.child.split(":")
        if what == "check":
            check_one(int(dim), int(number[0]), device, args.now, args.toy)
        else:
            time_one(int(dim), device, args.now, args.toy)
        return 0

    card = torch.cuda.get_device_name() if device == "cuda" else "none"
    say(what="machine", card=card, torch=torch.__version__, triton=version("triton"))
    children = []
    if args.only != "time":
        children = [f"check:{dim}:{number}" for dim in SHAPES for number in range(len(SHAPES[dim]))]
    together(children, CHECK_S, args.toy)
    if args.only != "check":
        for dim in SHAPES:
            together([f"time:{dim}"], TIME_S, args.toy)
    return 0


def together(names: list[str], limit_s: float, toy: bool) -> None:
    """Children side by side; whoever is not done in time is ended, and what it was at is told."""
    folder = Path(os.environ.get("OUT") or ".") if not toy else Path(os.environ.get("TMPDIR", "/tmp"))
    running = {}
    for name in names:
        now = folder / f"gluon-now-{name.replace(':', '-')}.txt"
        command = [sys.executable, "-m", "benchmarks.card_gluon", "--child", name, "--now", str(now)]
        running[name] = subprocess.Popen(command + ["--toy"] * toy, stderr=subprocess.PIPE, text=True), now
    end = time.monotonic() + limit_s
    for name, (child, now) in running.items():
        at = now.read_text() if now.exists() else None
        try:
            _, told = child.communicate(timeout=max(0.1, end - time.monotonic()))
            if child.returncode:
                at = now.read_text() if now.exists() else None
                say(what="died", child=name, code=child.returncode, at=at, told=told[-600:])
        except subprocess.TimeoutExpired:
            at = now.read_text() if now.exists() else None
            child.kill()
            say(what="hung", child=name, at=at, after_s=limit_s)
            try:
                child.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                say(what="not ended", child=name)
        now.unlink(missing_ok=True)


def version(package: str) -> str:
    """Of what is installed."""
    import importlib.metadata

    return importlib.metadata.version(package)


if __name__ == "__main__":
    sys.exit(main())
