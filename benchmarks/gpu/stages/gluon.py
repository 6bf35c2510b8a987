"""Stage `gluon`: the warp-specialized forward (`brine.kernels.attention.gluon.launch`) on a GPU: is it right, and how
fast?

    check-D128-0 ..     one shape of the kernel against the specification: sizes, masks, sinks, groups, odd strides
    time-D128 ..        every shape beside our Triton forward and PyTorch's, causal, packed and with media blocks

A check compares out and lse with the reference in fp32 from the same 16-bit inputs: `error` is |out - truth| /
|truth|, `lse` the largest difference of the log-sum-exp, `same` whether three runs were bit-identical, as a race would
not. Times are medians of `triton.testing.do_bench`, which clears the level-2 cache in between; FLOPs are 4 D H a seen
pair. Barriers that wait for each other hang a kernel for good: then the item is ended and reported, like everything
here. Without a GPU the reference runs instead of the kernel, and times mean nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.stage import StageContext, SuiteItem
from benchmarks.harness.measure import reason_of
from benchmarks.kernels.masks import make_mask
from brine.kernels.attention import Spans, reference
from brine.kernels.attention.gluon import launch as gluon_launch
from brine.kernels.attention.gluon.launch import ForwardTileConfig
from brine.kernels.attention.spans import AttentionRequest
from brine.kernels.attention.triton import launch as triton_launch

HEADS, KEY_HEADS = 32, 8
SHAPES = {
    128: (
        ForwardTileConfig(128, 2, True),
        ForwardTileConfig(128, 2, False),
        ForwardTileConfig(64, 4, True),
        ForwardTileConfig(128, 2, True, True),
    ),
    64: (
        ForwardTileConfig(128, 2, False),
        ForwardTileConfig(128, 2, True),
        ForwardTileConfig(128, 4, True),
        ForwardTileConfig(128, 2, True, True),
    ),
}
"""By head dim; the one that backend "gluon" takes comes first."""
TOKENS = (1, 63, 65, 200, 1500, 4097)
TOLERANCE = 0.008
"""Weights are rounded to 8 bits before the second matmul, and so is the result: 0.003 or so together."""


def items(toy: bool) -> list[SuiteItem]:
    """Checks of every shape, the taken ones first, then times."""
    if toy:
        return [SuiteItem("check-D64-0", 60), SuiteItem("time-D64", 60)]
    checks = [SuiteItem(f"check-D{dim}-{number}", 60) for number in range(4) for dim in SHAPES]
    return checks + [SuiteItem(f"time-D{dim}", 60, least_s=15) for dim in SHAPES]


def run(item: SuiteItem, context: StageContext) -> None:
    """Do one item."""
    what, dim, *number = item.name.split("-")
    if what == "check":
        check_all(int(dim[1:]), SHAPES[int(dim[1:])][int(number[0])], context)
    else:
        time_all(int(dim[1:]), context)


def inputs(
    num_queries: int, num_keys: int, dim: int, *, device: str, heads: int = HEADS, key_heads: int = KEY_HEADS,
    batch: int = 1, dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """q, k, v from a seed."""
    torch.manual_seed(num_queries * 1000 + dim)
    q = torch.randn(batch, num_queries, heads, dim, device=device, dtype=dtype)
    k, v = (torch.randn(batch, num_keys, key_heads, dim, device=device, dtype=dtype) for _ in range(2))
    return q, k, v


def holes(num_tokens: int, device: str) -> Spans:
    """Queries that see nothing at the beginning, in the middle and at the end, in a batch of two with more keys than
    queries."""
    query = torch.arange(num_tokens)
    lo = (query * 2 // 3).to(torch.int32)
    hi = torch.where((query < 70) | (query % 5 == 0) | (query > num_tokens - 80), lo, lo + 90).to(torch.int32)
    hi = hi.cummax(0).values
    empty = (query < 70) | (query > num_tokens - 80)
    lo = torch.where(empty, hi, lo).cummax(0).values.to(torch.int32)
    hi = torch.maximum(hi, lo).to(torch.int32)
    both = torch.stack([lo, lo // 2]), torch.stack([hi, (hi + 1) // 2])
    return Spans(both[0].to(device), both[1].to(device), num_tokens + 77)


def cases(
    dim: int, shape: tuple, device: str, toy: bool, by: Callable[..., dict] | None = None
) -> Iterator[tuple[str, Callable[[], dict]]]:
    """Name and check of everything that one configuration has to get right; easy ones first. by: what checks one
    case, instead of `check`."""
    by = by or check
    tokens = (1, 65) if toy else TOKENS
    for size in tokens:
        for kind in ("causal", "window", "packed", "multimodal", "images512"):
            if size < 200 and kind not in ("causal", "window"):
                continue
            spans = make_mask(kind, size, device=device, window=100 if size < 1500 else 700).spans
            yield f"T{size}-{kind}", lambda spans=spans: by(dim, shape, spans, device)
    if toy:
        return
    for name, options in {
        "sink": {"with_sink": True},
        "wide-fp16": {"wide": True, "dtype": torch.float16},
        "one-key-head": {"heads": 4, "key_heads": 1},
        "batch3": {"batch": 3, "heads": 4, "key_heads": 4},
        "thin": {"dim": dim - 16},
        "negative-scale": {"scale": -0.1},
        "large-scores": {"scale": 3.0},
    }.items():
        yield name, lambda options=options: by(
            options.get("dim", dim), shape,
            make_mask("packed", 777, device=device).spans if "batch" not in options
            else Spans.packed(torch.arange(900, device=device).div(311, rounding_mode="floor").int().repeat(3, 1)),
            device, **{name: value for name, value in options.items() if name != "dim"},
        )  # fmt: skip
    for with_sink in (False, True):
        yield (
            f"holes-sink{int(with_sink)}",
            lambda with_sink=with_sink: by(dim, shape, holes(500, device), device, batch=2, with_sink=with_sink),
        )


def check(
    dim: int, shape: ForwardTileConfig, spans: Spans, device: str, *, with_sink: bool = False, wide: bool = False,
    dtype: torch.dtype = torch.bfloat16, scale: float | None = None, **sizes: int,
) -> dict:  # fmt: skip
    """One comparison with the specification."""
    q, k, v = inputs(spans.num_queries, spans.num_keys, dim, device=device, dtype=dtype, **sizes)
    scale = dim**-0.5 if scale is None else scale
    sink = torch.linspace(-1, 2, q.shape[2], device=device) if with_sink else None
    run = gluon_launch.forward if device == "cuda" else stand_in
    first, *more = (
        run(q, k, v, AttentionRequest(spans.mask, scale, sink, partial=wide), shape=shape) for _ in range(3)
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
    largest = float(truth_lse[seen].abs().max()) if seen.any() else 0.0
    found["right"] = bool(
        found["error"] < TOLERANCE and found["lse"] < 2e-3 * (1 + largest)
        and found["same"] and torch.equal(lse.isneginf(), truth_lse.isneginf()) and out.isfinite().all()
        and not out.transpose(1, 2)[~seen].any()
    )  # fmt: skip
    return found


def specified(
    q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float, sink: Tensor | None
) -> tuple[Tensor, Tensor]:
    """out and lse in fp32, one KV head at a time, which takes less memory."""
    group = q.shape[2] // k.shape[2]
    parts = []
    for head in range(k.shape[2]):
        mine = slice(head * group, (head + 1) * group)
        parts.append(
            reference.forward(
                q[:, :, mine].float(), k[:, :, head : head + 1].float(), v[:, :, head : head + 1].float(),
                AttentionRequest(spans.mask, scale, None if sink is None else sink[mine], partial=True),
            )
        )  # fmt: skip
    return torch.cat([out for out, _ in parts], 2), torch.cat([lse for _, lse in parts], 1)


def stand_in(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest, *, shape: ForwardTileConfig):
    """The reference instead of the kernel, for a rehearsal."""
    return reference.forward(q, k, v, request)


def check_all(dim: int, shape: ForwardTileConfig, context: StageContext) -> None:
    """Every case of one shape; the wrong ones are reported each, the right ones together."""
    worst, right = 0.0, 0
    for name, case in cases(dim, shape, context.device, context.toy):
        try:
            found = case()
        except Exception as error:
            found = {"right": False, "skipped": reason_of(error)}
            if context.device == "cuda":
                # raises where the GPU answers no longer
                torch.cuda.synchronize()
        worst, right = max(worst, found.get("error", 0.0)), right + found["right"]
        if not found["right"]:
            context.record(name, shape=list(shape), **found)
    context.record("together", shape=list(shape), right=right, worst_error=worst)


def time_all(dim: int, context: StageContext) -> None:
    """Medians of everybody, mask by mask."""
    for kind, size in (("causal", 32768), ("causal", 16384), ("multimodal", 32768), ("packed", 32768)):
        size = 300 if context.toy else size
        mask = make_mask(kind, size, device=context.device)
        flops = 4 * dim * HEADS * mask.spans.area()
        truth = None
        for name, function in implementations(dim, kind, mask.spans, context.device).items():
            if name in context.without:
                continue
            context.on_work(name)
            fields = {"mask": kind, "tokens": size, "dim": dim, "implementation_name": name}
            try:
                out = function()
                truth = out if truth is None else truth
                differs = float((out.float() - truth.float()).norm() / truth.float().norm())
                ms = median_ms(function, context.device)
            except Exception as error:
                context.record(f"{kind}-{size} {name}", **fields, skipped=reason_of(error))
                continue
            context.record(f"{kind}-{size} {name}", **fields, ms=ms, tflops=flops / ms / 1e9, differs=differs)


def implementations(dim: int, kind: str, spans: Spans, device: str) -> dict[str, Callable[[], Tensor]]:
    """Forward passes over the same inputs, our Triton's first."""
    q, k, v = inputs(spans.num_queries, spans.num_keys, dim, device=device)
    given = (q, k, v, AttentionRequest(spans.mask, dim**-0.5))
    if device != "cuda":
        return {"reference": lambda: reference.forward(*given)[0]}
    found = {"triton": lambda: triton_launch.forward(*given)[0]}
    for shape in SHAPES[dim]:
        name = f"gluon-{shape.keys}-{shape.stages}-{int(shape.overlap)}{int(shape.turns)}"
        found[name] = lambda shape=shape: gluon_launch.forward(*given, shape=shape)[0]
    if kind == "causal":
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
            found[backend.name.split("_")[0].lower()] = lambda backend=backend: sdpa(q, k, v, backend)
    return found


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
