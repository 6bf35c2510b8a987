"""Stage `gluon_backward`: the warp-specialized backward (`brine.kernels.attention.gluon.launch`): is it right, and how
fast?

    check-D128-0 ..     one pair of shapes of its two passes against the specification
    fused-D128-0 ..     one shape of the fused backward, likewise
    time-D128 ..        every shape of either pass, and of the fused one, beside our Triton backward and PyTorch's

The cases are those of stage `gluon`. A check compares dq, dk and dv with the reference in fp32 from the same 16-bit
inputs. How far they may be follows from the case: what cancels differs between masks and scales, so the bound is the
error of our Triton backward on the same inputs, and a quarter. `same` says whether three runs were bit-identical, as
they must but for the fused backward, which accumulates dq non-deterministically. FLOPs are counted as those of five
matmuls, 10 D H per visible pair, whatever an implementation really multiplies: our two passes seven.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.stage import StageContext, SuiteItem
from benchmarks.gpu.stages.gluon import HEADS, cases, inputs, median_ms, specified
from benchmarks.harness.measure import reason_of
from benchmarks.kernels.masks import make_mask
from brine.kernels.attention import Spans, reference
from brine.kernels.attention.gluon import launch as gluon_launch
from brine.kernels.attention.gluon.launch import BackwardTileConfig
from brine.kernels.attention.spans import AttentionRequest
from brine.kernels.attention.triton import launch as triton_launch

Gradients = tuple[Tensor, Tensor, Tensor]

PAIRS = {
    128: (
        (BackwardTileConfig(64, 3), BackwardTileConfig(64, 3)),
        (BackwardTileConfig(64, 4, early=True), BackwardTileConfig(64, 4)),
        (BackwardTileConfig(64, 4, overlap=False), BackwardTileConfig(64, 4, overlap=False)),
        (BackwardTileConfig(64, 4), BackwardTileConfig(128, 2, overlap=False)),
    ),
    64: (
        (BackwardTileConfig(64, 3), BackwardTileConfig(64, 3)),
        (BackwardTileConfig(64, 4, early=True), BackwardTileConfig(64, 4)),
        (BackwardTileConfig(64, 4, overlap=False), BackwardTileConfig(64, 4, overlap=False)),
        (BackwardTileConfig(64, 4), BackwardTileConfig(128, 4, overlap=False)),
    ),
}
"""By head dim: shapes of dk/dv and of dq; the one that backend "gluon" takes comes first."""
FUSED = {
    128: (
        BackwardTileConfig(64, 3, overlap=False),
        BackwardTileConfig(64, 3, early=True),
        BackwardTileConfig(64, 2, overlap=False),
    ),
    64: (BackwardTileConfig(64, 3), BackwardTileConfig(64, 4, overlap=False), BackwardTileConfig(64, 4, early=True)),
}
"""Shapes of the fused backward, the launcher's first. A check takes one as a tuple of it alone."""
SLACK, FLOOR = 1.25, 1e-3


def items(toy: bool) -> list[SuiteItem]:
    """The first pair's checks, times, and the other checks."""
    groups = [("check", dim, len(PAIRS[dim])) for dim in PAIRS] + [("fused", dim, len(FUSED[dim])) for dim in FUSED]
    first, *others = (
        [SuiteItem(f"{what}-D{dim}-{i}", 60) for what, dim, number in groups if i < number]
        for i in range(1 if toy else 4)
    )
    return (
        first
        + [SuiteItem(f"time-D{dim}", 75, least_s=15) for dim in PAIRS]
        + [item for more in others for item in more]
    )


def run(item: SuiteItem, context: StageContext) -> None:
    """Do one item."""
    what, dim, *number = item.name.split("-")
    if what == "check":
        check_all(int(dim[1:]), PAIRS[int(dim[1:])][int(number[0])], context)
    elif what == "fused":
        check_all(int(dim[1:]), (FUSED[int(dim[1:])][int(number[0])],), context)
    else:
        time_all(int(dim[1:]), context)


def check(
    dim: int, pair: tuple[BackwardTileConfig, ...], spans: Spans, device: str, *, with_sink: bool = False,
    wide: bool = False, dtype: torch.dtype = torch.bfloat16, scale: float | None = None, **sizes: int,
) -> dict:  # fmt: skip
    """One comparison with the specification. pair: shapes of dk/dv and of dq, or the fused backward's alone."""
    q, k, v = inputs(spans.num_queries, spans.num_keys, dim, device=device, dtype=dtype, **sizes)
    grad = torch.randn_like(q)
    scale = dim**-0.5 if scale is None else scale
    sink = torch.linspace(-1, 2, q.shape[2], device=device) if with_sink else None
    out, lse = specified(q, k, v, spans, scale, sink)
    truth = specified_gradients(grad, q, k, v, spans, out, lse, scale)
    out = out.to(dtype)
    given = (grad, q, k, v, out, lse, AttentionRequest(spans.mask, scale, partial=wide))
    fused = len(pair) == 1
    shapes = {"fused": True, "fused_shape": pair[0]} if fused else {"keys_shape": pair[0], "rows_shape": pair[-1]}
    if device == "cuda":
        plain = triton_launch.backward(*given)
        first, *more = (gluon_launch.backward(*given, **shapes) for _ in range(3))
    else:
        plain, first, *more = (reference.backward(*given) for _ in range(3))
    errors, limits = distances(first, truth), [SLACK * x + FLOOR for x in distances(plain, truth)]
    found = {
        "error": max(errors),
        "errors": errors,
        "limits": limits,
        "same": all(torch.equal(x, y) for other in more for x, y in zip(first, other, strict=True)),
    }
    unseen = lse.isneginf().transpose(1, 2)
    found["right"] = bool(
        all(error <= limit for error, limit in zip(errors, limits, strict=True)) and (found["same"] or fused)
        and all(x.isfinite().all() for x in first) and not first[0][unseen].any()
    )  # fmt: skip
    return found


def distances(found: Gradients, truth: Gradients) -> list[float]:
    """|found - truth| / |truth| of each; a tensor whose numbers are below 0.01 counts as one of such numbers, since
    with one key alone there is nothing but rounding."""
    return [
        float((x.float() - y).norm() / y.norm().clamp_min(0.01 * y.numel() ** 0.5))
        for x, y in zip(found, truth, strict=True)
    ]


def specified_gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, spans: Spans, out: Tensor, lse: Tensor, scale: float
) -> Gradients:
    """dq, dk, dv in fp32, one KV head at a time, which takes less memory."""
    group = q.shape[2] // k.shape[2]
    parts = []
    for head in range(k.shape[2]):
        mine, own = slice(head * group, (head + 1) * group), slice(head, head + 1)
        parts.append(
            reference.backward(
                grad[:, :, mine].float(), q[:, :, mine].float(), k[:, :, own].float(), v[:, :, own].float(),
                out[:, :, mine], lse[:, mine], AttentionRequest(spans.mask, scale),
            )
        )  # fmt: skip
    return tuple(torch.cat(x, 2) for x in zip(*parts, strict=True))


def check_all(dim: int, pair: tuple[BackwardTileConfig, ...], context: StageContext) -> None:
    """Every case of one pair; the wrong ones are reported each, the right ones together."""
    shapes = [list(shape) for shape in pair]
    worst, right, wrong = 0.0, 0, 0
    for name, case in cases(dim, pair, context.device, context.toy, by=check):
        context.on_work("gluon")
        try:
            found = case()
        except Exception as error:
            found = {"right": False, "skipped": reason_of(error)}
            if context.device == "cuda":
                # raises where the GPU answers no longer
                torch.cuda.synchronize()
        worst, right, wrong = max(worst, found.get("error", 0.0)), right + found["right"], wrong + (not found["right"])
        if not found["right"]:
            context.record(name, shapes=shapes, **found)
    context.record("together", shapes=shapes, right=right, wrong=wrong, worst_error=worst)


def time_all(dim: int, context: StageContext) -> None:
    """Medians of everybody, mask by mask."""
    for kind, size in (("causal", 32768), ("causal", 16384), ("multimodal", 32768), ("packed", 32768)):
        size = 300 if context.toy else size
        mask = make_mask(kind, size, device=context.device)
        flops = 10 * dim * HEADS * mask.spans.area()
        truth = None
        for name, function in implementations(dim, kind, mask.spans, context.device).items():
            context.on_work(name)
            fields = {"mask": kind, "tokens": size, "dim": dim, "implementation_name": name}
            try:
                found = function()
                truth = [x.float() for x in found] if truth is None else truth
                differs = distances(found, truth)
                ms = median_ms(function, context.device)
            except Exception as error:
                context.record(f"{kind}-{size} {name}", **fields, skipped=reason_of(error))
                continue
            context.record(f"{kind}-{size} {name}", **fields, ms=ms, tflops=flops / ms / 1e9, differs=differs)


def implementations(dim: int, kind: str, spans: Spans, device: str) -> dict[str, Callable[[], Gradients]]:
    """Backward passes over the same inputs, our Triton's first. Each shape of one pass is timed with the first shape
    of the other."""
    q, k, v = inputs(spans.num_queries, spans.num_keys, dim, device=device)
    grad, scale = torch.randn_like(q), dim**-0.5
    forward = triton_launch.forward if device == "cuda" else reference.forward
    request = AttentionRequest(spans.mask, scale)
    out, lse = forward(q, k, v, request)
    given = (grad, q, k, v, out, lse, request)
    if device != "cuda":
        return {"reference": lambda: reference.backward(*given)}
    found = {"triton": lambda: triton_launch.backward(*given)}
    (first_keys, first_rows), *_ = PAIRS[dim]
    for number, (keys, rows) in enumerate(PAIRS[dim]):
        shapes = {f"gluon keys {shape_name(keys)} rows {shape_name(first_rows)}": (keys, first_rows)}
        if number and kind == "causal":
            shapes[f"gluon keys {shape_name(first_keys)} rows {shape_name(rows)}"] = first_keys, rows
        for name, (keys_shape, rows_shape) in shapes.items():
            found[name] = lambda keys_shape=keys_shape, rows_shape=rows_shape: gluon_launch.backward(
                *given, keys_shape=keys_shape, rows_shape=rows_shape
            )
    for shape in FUSED[dim]:
        found[f"gluon fused {shape_name(shape)}"] = lambda shape=shape: gluon_launch.backward(
            *given, fused=True, fused_shape=shape
        )
    if kind == "causal":
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
            found[backend.name.split("_")[0].lower()] = sdpa_backward(q, k, v, grad, backend)
    return found


def shape_name(shape: BackwardTileConfig) -> str:
    """A shape in a name."""
    return f"{shape.width}-{shape.stages}-{int(shape.overlap)}{int(shape.early)}"


def sdpa_backward(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, backend: SDPBackend) -> Callable[[], Gradients]:
    """PyTorch's, one backend and no other; its forward runs once, at the first call."""
    kept = []

    def run() -> Gradients:
        if not kept:
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            with sdpa_kernel(backend):
                out = F.scaled_dot_product_attention(
                    *(x.transpose(1, 2) for x in leaves), is_causal=True, enable_gqa=True
                ).transpose(1, 2)
            kept.append((out, leaves))
        out, leaves = kept[0]
        return torch.autograd.grad(out, leaves, grad, retain_graph=True)

    return run
