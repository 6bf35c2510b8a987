"""The host side of the warp-specialised forward (`gluon_forward.py`): what it can do, and the launch.

Served: bf16 and fp16 on Hopper (sm_90), head dims up to 128, inputs that a tensor descriptor can describe
(`triton_tma.suits`), every mask and a sink. The rest is Triton's (`triton_launch.py`), the backward included.

The wide half of the tile, two groups of 64 rows, is fixed; keys of a tile and the depth of the ring are not (`Shape`).

Legend: B batch, T query rows, S keys, H query heads, K key heads, D head dim, BD = D rounded up to 64 or 128.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from kernels.attention import triton_launch, triton_tma

try:
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from kernels.attention import gluon_forward
except ImportError as missing:
    gl, MISSING = None, str(missing)

BM = 64
"""Rows of one consumer; a program has two of them."""
MAX_DIM = 128
REGISTERS = 168
"""A thread at the start: 65,536 over the 384 threads of three warp groups. They are dealt anew then: 240, 240, 24."""


class Shape(NamedTuple):
    """What a sweep may vary. keys: of a tile; stages: tiles of keys and of values in flight; overlap: whether the
    scores of the next tile are multiplied while the softmax of this one runs; turns: whether the two consumers take
    turns in starting products, so that one's softmax lies under the other's products (only with overlap)."""

    keys: int = 128
    stages: int = 2
    overlap: bool = True
    turns: bool = False


def why_not(q: Tensor, k: Tensor, *, kind: str = "any", sink: Tensor | None = None) -> str | None:
    """One sentence that says why this backend cannot serve q (B, T, H, D) and k (B, S, K, D), or None."""
    if gl is None:
        return f"this Triton has no Gluon for Hopper: {MISSING}"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"the specialised forward takes float16 or bfloat16, not {q.dtype}"
    if q.shape[3] > MAX_DIM:
        return f"the specialised forward takes head dims up to {MAX_DIM}; got {q.shape[3]}"
    if q.device.type == "cuda" and triton_launch.capability_of(q)[0] != 9:
        return "the specialised forward is for sm_90"
    return triton_launch.why_not(q, k, kind=kind, sink=sink)


def forward(
    q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, serial: int = 0, *, scale: float,
    sink: Tensor | None = None, wide: bool = False, shape: Shape | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q: (B, T, H, D); k, v: (B, S, K, D); lo, hi: (B, T) int32; sink: (H,) or None.

    wide: out is fp32, written from the accumulators, without a rounding to q's dtype in between.
    -> out (B, T, H, D) in q's dtype, or fp32; lse (B, H, T) float32. Both are new and contiguous. Raises ValueError
    where `why_not` has something to say or the inputs suit no descriptor.
    """
    why = why_not(q, k, sink=sink)
    if why is not None:
        raise ValueError(f'{why}; use backend="auto" or "triton"')
    batch, num_rows, heads, dim = q.shape
    out = q.new_empty(q.shape, dtype=torch.float32 if wide else q.dtype)
    lse = q.new_empty((batch, heads, num_rows), dtype=torch.float32)
    if q.numel() == 0:
        return out, lse
    if k.shape[1] == 0:
        # no keys, so there is nothing to describe
        lse.fill_(-torch.inf)
        return out.zero_(), lse if sink is None else lse.copy_(sink[None, :, None].expand_as(lse))
    if scale <= 0:
        q, scale = triton_launch._flipped(q, scale)
    q, k, v = (x if triton_tma.suits(x) and x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    if not triton_tma.suits(q, k, v):
        raise ValueError(f'head dim {dim} has no strides that TMA can read; use backend="auto" or "triton"')
    shape, width = shape or Shape(), padded(dim)
    with triton_launch._device_of(q):
        gluon_forward.span_attention_gluon_fwd_kernel[triton.cdiv(num_rows, 2 * BM), batch * heads](
            describe(q, BM, width), describe(k, shape.keys, width), describe(v, shape.keys, width),
            lo.contiguous(), hi.contiguous(), sink, out, lse, num_rows, scale * triton_launch.LOG2E,
            H=heads, GROUP=heads // k.shape[2], D=dim, BD=width, BM=BM, BN=shape.keys, STAGES=shape.stages,
            SINK=sink is not None, OVERLAP=shape.overlap, TURNS=shape.turns, num_warps=4, maxnreg=REGISTERS,
        )  # fmt: skip
    return out, lse


def describe(x: Tensor, block: int, dim: int) -> TensorDescriptor:
    """Of x (B, tokens, heads, D), as (B, heads, tokens, D), read in tiles of `block` tokens and dim >= D numbers."""
    (batch, tokens, heads, width), (per_batch, per_token, per_head, _) = x.shape, x.stride()
    # a stride along an extent of 1 is never taken, and may be one that the unit refuses
    strides = [
        per_batch if batch > 1 else triton_tma.ALIGNMENT, per_head if heads > 1 else triton_tma.ALIGNMENT,
        per_token if tokens > 1 else triton_tma.ALIGNMENT, 1,
    ]  # fmt: skip
    return TensorDescriptor(x, [batch, heads, tokens, width], strides, [1, 1, block, dim], layout(block, dim, x.dtype))


@lru_cache
def layout(block: int, dim: int, dtype: torch.dtype):
    """How such a tile lies in shared memory."""
    kind = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}[dtype]
    return gl.NVMMASharedLayout.get_default_for([1, 1, block, dim], kind)


def padded(dim: int) -> int:
    """BD: rows of 64 numbers are the width of the swizzle."""
    return 64 if dim <= 64 else 128
