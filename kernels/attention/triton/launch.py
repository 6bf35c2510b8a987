"""The host side of the Triton backend: what it can do, and the launches.

`unsupported_reason` says what it cannot do. Under Triton's interpreter (`TRITON_INTERPRET=1`, for tests) CPU tensors
are taken, and bf16 is rejected, since its matmuls are wrong there. Tiles come from `tiles.py`; on sm_90 the kernels
read through tensor descriptors where that table says so and strides allow it (`tma.py`). Nothing here syncs with the
GPU, but for one reading of how many keys a mask's queries see (`is_narrow`).

Legend: B batch, T queries, S keys, H query heads, K KV heads, D head dim, BD = D rounded up to a power of two.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from brine.kernels.attention.merge import empty_backward
from brine.kernels.attention.spans import AttentionRequest, Mask, cached_by_mask, span_stats
from brine.kernels.attention.tiles import queries_of_keys
from brine.kernels.attention.triton import backward as triton_backward
from brine.kernels.attention.triton import decode as triton_decode
from brine.kernels.attention.triton import forward as triton_kernels
from brine.kernels.attention.triton import tiles as triton_tiles
from brine.kernels.attention.triton import tma as triton_tma
from brine.kernels.attention.triton.tiles import PADDED_ROWS, TileConfig

LOG2E = triton_kernels.LOG2E.value
MAX_DIM = 256
MAX_HEADS = 65535  # B * H: the second axis of a grid
NARROW_KEYS = 1024
"""A mask is narrow where every query sees fewer keys than this: as window and longest document say, not padding."""
MAX_TOKEN_STRIDE = 2**23  # elements from one token to the next; a tile has at most 128 tokens
DELTA_ROWS = 64


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return bool(triton.knobs.runtime.interpret)


def unsupported_reason(q: Tensor, k: Tensor, *, kind: str = "any", sink: Tensor | None = None) -> str | None:
    """Why this backend cannot serve q (B, T, H, D) and k (B, S, K, D), or None; it serves every mask and sink."""
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f'backend "triton" takes float32, float16 or bfloat16, not {q.dtype}'
    if q.shape[3] > MAX_DIM:
        return f'backend "triton" takes head dims up to {MAX_DIM}; got {q.shape[3]}'
    if q.shape[0] * q.shape[2] > MAX_HEADS:
        return (
            f'backend "triton" takes at most {MAX_HEADS} heads in a batch; got {q.shape[0]} x {q.shape[2]}: '
            "give the batch in parts"
        )
    if interpreted():
        if q.dtype == torch.bfloat16:
            return "Triton's interpreter computes bfloat16 matmuls wrongly; give float32 or float16"
        return None
    if q.device.type != "cuda":
        return (
            f'backend "triton" needs CUDA tensors, but q is on {q.device} (TRITON_INTERPRET=1, set before Python '
            "starts, runs the kernels slowly on the CPU)"
        )
    if _capability(q.device.index)[0] < 8:
        return f'backend "triton" needs sm_80 or newer; {torch.cuda.get_device_name(q.device)} is older'
    return None


def check(q: Tensor, k: Tensor) -> None:
    """Raises ValueError where this backend cannot serve q and k."""
    why = unsupported_reason(q, k)
    if why is not None:
        raise ValueError(f'{why}; use backend="auto" or "reference"')


def forward(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> tuple[Tensor, Tensor]:
    """As `reference.forward`, float32 where partial, without rounding to q's dtype. Raises ValueError as `check`."""
    check(q, k)
    batch, num_queries, heads, dim = q.shape
    num_keys, key_heads = k.shape[1:3]
    out = q.new_empty(q.shape, dtype=request.result_dtype(q))
    lse = q.new_empty((batch, heads, num_queries), dtype=torch.float32)
    if q.numel() == 0:
        return out, lse
    q, scale = with_positive_scale(q, request.scale)
    q, k, v, lo, hi = whole_heads(q), whole_heads(k), whole_heads(v), *(x.contiguous() for x in request.mask[:2])
    group, sink = heads // key_heads, request.sink
    with device_of(q):
        if num_queries * group <= triton_decode.MAX_ROWS and num_keys >= triton_decode.MIN_KEYS:
            triton_decode.forward(q, k, v, lo, hi, out, lse, scale=scale, sink=sink)
            return out, lse
        tile, (p_q,), keys = _operands("fwd", (q,), (k, v), request.mask)
        triton_kernels.span_attention_fwd_kernel[triton.cdiv(num_queries, tile.rows), batch * heads](
            p_q, *keys, lo, hi, sink, out, lse, *(x.stride(i) for i in (0, 1, 2) for x in (q, k, v)),
            num_queries, num_keys, scale * LOG2E,
            H=heads, GROUP=group, D=dim, BD=padded(dim), SINK=sink is not None, PRECISION=_precision(q),
            TMA=p_q is not q, **tile.options(),
        )  # fmt: skip
    return out, lse


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, request: AttentionRequest
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.backward`.

    In fp32, and unless the request is partial, delta is summed over the keys (README.md, "Numerics"); 16-bit inputs
    have larger errors than that. -> dq, dk, dv, new and contiguous.
    """
    batch, num_queries, heads, dim = q.shape
    num_keys, key_heads = k.shape[1:3]
    dtype = request.result_dtype(q)
    if q.numel() == 0 or k.numel() == 0:
        return empty_backward(q, k, dtype)
    dq, dk, dv = (q.new_empty(x.shape, dtype=dtype) for x in (q, k, v))
    q, scale = with_positive_scale(q, request.scale)
    q, k, v, out, grad_out = (whole_heads(x) for x in (q, k, v, out, grad_out.to(q.dtype)))
    lo, hi = (x.contiguous() for x in request.mask[:2])
    width, exact = padded(dim), q.dtype == torch.float32 and not request.partial
    numbers = *(x.stride(i) for i in (0, 1, 2) for x in (q, k, v, grad_out)), num_queries, num_keys
    shared = {"GROUP": heads // key_heads, "D": dim, "BD": width, "PRECISION": _precision(q)}
    with device_of(q):
        query_lo, query_hi = columns_of(request.mask, num_keys)
        delta, lse2, padded_queries = row_sums(out, grad_out, lse)
        tile, (p_q, p_grad), keys = _operands("bwd_queries", (q, grad_out), (k, v), request.mask)
        grid = triton.cdiv(num_queries, tile.rows), batch * heads
        if exact:
            triton_backward.span_attention_bwd_exact_delta_kernel[grid](
                q, k, v, lo, hi, request.sink, grad_out, lse2, delta, *numbers, padded_queries, scale * LOG2E,
                H=heads, SINK=request.sink is not None, **shared, **tile.options(),
            )  # fmt: skip
        triton_backward.span_attention_bwd_queries_kernel[grid](
            p_q, *keys, lo, hi, p_grad, lse2, delta, dq, *numbers, padded_queries, scale, scale * LOG2E,
            H=heads, TMA=p_q is not q, **shared, **tile.options(),
        )  # fmt: skip
        tile, (p_q, p_grad), keys = _operands("bwd_keys", (q, grad_out), (k, v), request.mask)
        triton_backward.span_attention_bwd_keys_kernel[triton.cdiv(num_keys, tile.keys), batch * key_heads](
            p_q, *keys, query_lo, query_hi, p_grad, lse2, delta, dk, dv, *numbers, padded_queries, scale, scale * LOG2E,
            K=key_heads, TMA=p_q is not q, **shared, **tile.options(),
        )  # fmt: skip
    return with_sign_of(request.scale, dq), dk, dv


def row_sums(out: Tensor, grad_out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, int]:
    """-> delta = grad_out . out and lse in base 2, (B, H, padded T) float32, as the backward reads them; padded T."""
    batch, num_queries, heads, dim = out.shape
    padded_queries = triton.cdiv(num_queries, PADDED_ROWS) * PADDED_ROWS
    delta, lse2 = lse.new_empty(2, batch, heads, padded_queries)
    triton_backward.span_attention_bwd_delta_kernel[padded_queries // DELTA_ROWS, batch * heads](
        out, grad_out, lse, delta, lse2, *(x.stride(i) for i in (0, 1, 2) for x in (out, grad_out)),
        num_queries, padded_queries, H=heads, D=dim, BD=padded(dim), BM=DELTA_ROWS,
        num_warps=8 if grad_out.dtype == torch.float32 and padded(dim) <= 64 else 4,
    )  # fmt: skip
    return delta, lse2, padded_queries


def columns_of(mask: Mask, num_keys: int) -> tuple[Tensor, Tensor]:
    """(query_lo, query_hi), each (B, S) int32: queries query_lo[j] <= i < query_hi[j] see key j. Kept with the mask."""
    key = torch.arange(num_keys, device=mask.lo.device)
    return cached_by_mask(mask.serial, "columns", lambda: queries_of_keys(mask.lo, mask.hi, key))


def capability_of(q: Tensor) -> tuple[int, int]:
    """Compute capability that tiles are chosen for; Hopper's under the interpreter."""
    return (9, 0) if interpreted() else _capability(q.device.index)


@lru_cache
def _capability(index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def _operands(
    name: str, queries: tuple[Tensor, ...], keys: tuple[Tensor, ...], mask: Mask
) -> tuple[TileConfig, tuple[Any, ...], tuple[Any, ...]]:
    """-> the pass's tile, and what its kernel reads: the tensors, or descriptors of them."""
    q = queries[0]
    suits = capability_of(q)[0] == 9 and triton_tma.suits(*queries, *keys)
    width, capability = padded(q.shape[3]), capability_of(q)
    tile = triton_tiles.tile_config_of(
        name, width, narrow=is_narrow(mask), itemsize=q.element_size(), capability=capability, tma=suits
    )
    if not (tile.tma and suits):
        return tile, queries, keys
    described = tuple(triton_tma.describe(x, tile.rows, width) for x in queries)
    return tile, described, tuple(triton_tma.describe(x, tile.keys, width) for x in keys)


def is_narrow(mask: Mask) -> bool:
    """Whether queries see few keys; may sync once per mask. Masks that move or are being captured count as wide."""
    if mask.kind == "moving" or (mask.lo.is_cuda and torch.cuda.is_current_stream_capturing()):
        return False
    return span_stats(mask).max_visible_keys < NARROW_KEYS


def with_positive_scale(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """The same scores with a scale above 0: the kernels take the largest score for the largest scaled one."""
    if scale > 0:
        return q, scale
    return (-q, -scale) if scale < 0 else (torch.zeros_like(q), 1.0)


def with_sign_of(scale: float, dq: Tensor) -> Tensor:
    """The gradient of q as it was before `with_positive_scale`."""
    return dq if scale > 0 else dq.neg_() if scale < 0 else dq.zero_()


def device_of(q: Tensor) -> AbstractContextManager:
    """Launches go to the current device, which need not be q's."""
    return torch.cuda.device_of(q) if q.is_cuda else nullcontext()


@lru_cache
def padded(dim: int) -> int:
    """BD: matmuls want 16 and a power of two."""
    return max(16, triton.next_power_of_2(dim))


def _precision(q: Tensor) -> str:
    """fp32 matmuls stay fp32; the default, tf32, would round their inputs to 10 bits."""
    return "ieee" if q.dtype == torch.float32 else "tf32"


def whole_heads(x: Tensor) -> Tensor:
    """Kernels read D consecutive numbers, and offsets within a tile are int32; other strides are free."""
    return x if x.stride(3) == 1 and x.stride(1) <= MAX_TOKEN_STRIDE else x.contiguous()
