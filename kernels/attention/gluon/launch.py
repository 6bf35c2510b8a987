"""The host side of the warp-specialised kernels (`gluon/forward.py`, `gluon/backward.py`, `gluon/fused.py`).

Served: bf16 and fp16 on Hopper (sm_90), head dims up to 128, inputs that a tensor descriptor can describe
(`triton/tma.suits`), every mask and a sink. The rest is Triton's (`triton/launch.py`), and so is delta of the backward.

The result's half of a tile, two consumers of 64 rows (64 keys for dk/dv), is fixed; what is walked over and the depth
of the ring are not (`ForwardTileConfig`, `BackwardTileConfig`).

Legend: B batch, T query rows, S keys, H query heads, K key heads, D head dim, BD = D rounded up to 64 or 128.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from brine.kernels.attention.spans import cached_by_mask
from brine.kernels.attention.triton import backward as triton_backward
from brine.kernels.attention.triton import launch as triton_launch
from brine.kernels.attention.triton import tma as triton_tma
from brine.kernels.attention.triton.tiles import PADDED_ROWS

try:
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from brine.kernels.attention.gluon import backward as gluon_backward
    from brine.kernels.attention.gluon import backward_queries as gluon_backward_queries
    from brine.kernels.attention.gluon import forward as gluon_forward
    from brine.kernels.attention.gluon import fused as gluon_fused
except ImportError as missing:
    gl, MISSING = None, str(missing)

BM = 64
"""Rows of one consumer; a program has two of them."""
MAX_DIM = 128
REGISTERS = 168
"""A thread at the start: 65,536 over the 384 threads of three warp groups. They are dealt anew then: 240, 240, 24."""


class ForwardTileConfig(NamedTuple):
    """What a sweep may vary. keys: of a tile; stages: tiles of keys and of values in flight; overlap: whether the
    scores of the next tile are multiplied while the softmax of this one runs; turns: whether the two consumers take
    turns in starting products, so that one's softmax lies under the other's products (only with overlap)."""

    keys: int = 128
    stages: int = 2
    overlap: bool = True
    turns: bool = False


class BackwardTileConfig(NamedTuple):
    """What a sweep may vary in one of the two passes, or in the fused one, as in dk/dv. width: rows of a tile that
    dk/dv walks over, keys of one that dq does; stages: such tiles in flight; overlap: whether a tile's last product is
    left to run under the next tile's exponentials; early: whether dk/dv waits for it before them all the same, which at
    head dim 128 takes no register too many, but leaves less to run under them. The defaults are what an H200 has run in
    the two passes."""

    width: int = 64
    stages: int = 3
    overlap: bool = True
    early: bool = False


FUSED_TILE_CONFIGS = {64: BackwardTileConfig(64, 3), 128: BackwardTileConfig(64, 3, overlap=False)}
"""Of the fused backward, by padded head dim: those that spill least when compiled. No card has timed them."""


def unsupported_reason(q: Tensor, k: Tensor, *, kind: str = "any", sink: Tensor | None = None) -> str | None:
    """One sentence that says why this backend cannot serve q (B, T, H, D) and k (B, S, K, D), or None."""
    if gl is None:
        return f"this Triton has no Gluon for Hopper: {MISSING}"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"the specialised forward takes float16 or bfloat16, not {q.dtype}"
    if q.shape[3] > MAX_DIM:
        return f"the specialised forward takes head dims up to {MAX_DIM}; got {q.shape[3]}"
    if q.device.type == "cuda" and triton_launch.capability_of(q)[0] != 9:
        return "the specialised forward is for sm_90"
    return triton_launch.unsupported_reason(q, k, kind=kind, sink=sink)


def forward(
    q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, serial: int = 0, *, scale: float,
    sink: Tensor | None = None, wide: bool = False, shape: ForwardTileConfig | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q: (B, T, H, D); k, v: (B, S, K, D); lo, hi: (B, T) int32; sink: (H,) or None.

    wide: out is fp32, written from the accumulators, without a rounding to q's dtype in between.
    -> out (B, T, H, D) in q's dtype, or fp32; lse (B, H, T) float32. Both are new and contiguous. Raises ValueError
    where `unsupported_reason` has something to say or the inputs suit no descriptor.
    """
    why = unsupported_reason(q, k, sink=sink)
    if why is not None:
        raise ValueError(f'{why}; use backend="auto" or "triton"')
    batch, num_queries, heads, dim = q.shape
    out = q.new_empty(q.shape, dtype=torch.float32 if wide else q.dtype)
    lse = q.new_empty((batch, heads, num_queries), dtype=torch.float32)
    if q.numel() == 0:
        return out, lse
    if k.shape[1] == 0:
        # no keys, so there is nothing to describe
        lse.fill_(-torch.inf)
        return out.zero_(), lse if sink is None else lse.copy_(sink[None, :, None].expand_as(lse))
    if scale <= 0:
        q, scale = triton_launch.flipped(q, scale)
    q, k, v = (readable(x) for x in (q, k, v))
    if not triton_tma.suits(q, k, v):
        raise ValueError(f'head dim {dim} has no strides that TMA can read; use backend="auto" or "triton"')
    shape, width = shape or ForwardTileConfig(), padded(dim)
    with triton_launch.card_of(q):
        gluon_forward.span_attention_gluon_fwd_kernel[triton.cdiv(num_queries, 2 * BM), batch * heads](
            describe(q, BM, width), describe(k, shape.keys, width), describe(v, shape.keys, width),
            lo.contiguous(), hi.contiguous(), sink, out, lse, num_queries, scale * triton_launch.LOG2E,
            H=heads, GROUP=heads // k.shape[2], D=dim, BD=width, BM=BM, BN=shape.keys, STAGES=shape.stages,
            SINK=sink is not None, OVERLAP=shape.overlap, TURNS=shape.turns, num_warps=4, maxnreg=REGISTERS,
        )  # fmt: skip
    return out, lse


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, serial: int, out: Tensor, lse: Tensor,
    *, scale: float, whole: bool = False, wide: bool = False, sink: Tensor | None = None,
    keys_shape: BackwardTileConfig | None = None, rows_shape: BackwardTileConfig | None = None, fused: bool = False,
    fused_shape: BackwardTileConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients from these keys, given out and lse over all keys, sink included: as `triton_launch.backward`, and with
    the same bits every time.

    whole, sink: no difference to 16-bit inputs. wide: gradients are fp32, written from the accumulators. fused: one
    pass of five products (`gluon/fused.py`) in place of two of seven, whose dq differs in its last bits from run to
    run, and which takes B T H D fp32 numbers of memory in between; no card has run it.
    -> dq, dk, dv in q's dtype, or fp32, new and contiguous. Raises ValueError as `forward` does, and for fused where
    PyTorch is told to be deterministic.
    """
    why = unsupported_reason(q, k)
    if why is not None:
        raise ValueError(f'{why}; use backend="auto" or "triton"')
    if fused and torch.are_deterministic_algorithms_enabled():
        raise ValueError(
            "the fused backward adds up dq in any order, but torch.use_deterministic_algorithms is on; use fused=False"
        )
    batch, num_queries, heads, dim = q.shape
    num_keys, key_heads = k.shape[1:3]
    dq, dk, dv = (q.new_empty(x.shape, dtype=torch.float32 if wide else q.dtype) for x in (q, k, v))
    if q.numel() == 0 or k.numel() == 0:
        return dq.zero_(), dk.zero_(), dv.zero_()
    given = scale
    if scale <= 0:
        q, scale = triton_launch.flipped(q, scale)
    q, k, v, grad_out = (readable(x) for x in (q, k, v, grad_out.to(q.dtype)))
    if not triton_tma.suits(q, k, v, grad_out):
        raise ValueError(f'head dim {dim} has no strides that TMA can read; use backend="auto" or "triton"')
    out, lo, hi = triton_launch.whole_heads(out), lo.contiguous(), hi.contiguous()
    padded_rows = triton.cdiv(num_queries, PADDED_ROWS) * PADDED_ROWS
    delta, lse2 = (lse.new_empty(batch * heads * padded_rows) for _ in range(2))
    width = padded(dim)
    rows_shape, keys_shape = rows_shape or BackwardTileConfig(), keys_shape or BackwardTileConfig()
    fused_shape = fused_shape or FUSED_TILE_CONFIGS[width]
    shared = {"GROUP": heads // key_heads, "D": dim, "BD": width, "num_warps": 4, "maxnreg": REGISTERS}
    with triton_launch.card_of(q):
        row_lo, row_hi = cached_by_mask(serial, "columns", lambda: triton_launch.columns(lo, hi, num_keys))
        triton_backward.span_attention_bwd_delta_kernel[padded_rows // triton_launch.DELTA_ROWS, batch * heads](
            out, grad_out, lse, delta, lse2, out.stride(0), grad_out.stride(0), out.stride(1), grad_out.stride(1),
            out.stride(2), grad_out.stride(2), num_queries, padded_rows,
            H=heads, D=dim, BD=triton_launch.padded(dim), BM=triton_launch.DELTA_ROWS,
        )  # fmt: skip
        if fused:
            summed = torch.zeros_like(dq, dtype=torch.float32)
            gluon_fused.span_attention_gluon_bwd_fused_kernel[triton.cdiv(num_keys, 2 * BM), batch * key_heads](
                describe(q, fused_shape.width, width), describe(k, BM, width), describe(k, BM, width // 2),
                describe(v, BM, width), describe(grad_out, fused_shape.width, width),
                *(describe_flat(x, fused_shape.width) for x in (lse2, delta)), row_lo, row_hi, summed, dk, dv,
                num_queries, num_keys, padded_rows, scale, scale * triton_launch.LOG2E,
                K=key_heads, BM=fused_shape.width, BN=BM, STAGES=fused_shape.stages, OVERLAP=fused_shape.overlap,
                EARLY=fused_shape.early, **shared,
            )  # fmt: skip
            # the sums are of numbers without the scale
            torch.mul(summed, scale, out=dq)
        else:
            grid = triton.cdiv(num_queries, 2 * BM), batch * heads
            gluon_backward_queries.span_attention_gluon_bwd_queries_kernel[grid](
                describe(q, BM, width), describe(k, rows_shape.width, width), describe(v, rows_shape.width, width),
                describe(grad_out, BM, width), lo, hi, lse2, delta, dq,
                num_queries, padded_rows, scale, scale * triton_launch.LOG2E,
                H=heads, BM=BM, BN=rows_shape.width, STAGES=rows_shape.stages, OVERLAP=rows_shape.overlap, **shared,
            )  # fmt: skip
            gluon_backward.span_attention_gluon_bwd_keys_kernel[triton.cdiv(num_keys, 2 * BM), batch * key_heads](
                describe(q, keys_shape.width, width), describe(k, BM, width), describe(v, BM, width),
                describe(grad_out, keys_shape.width, width),
                *(describe_flat(x, keys_shape.width) for x in (lse2, delta)), row_lo, row_hi, dk, dv,
                num_keys, padded_rows, scale, scale * triton_launch.LOG2E,
                K=key_heads, BM=keys_shape.width, BN=BM, STAGES=keys_shape.stages, OVERLAP=keys_shape.overlap,
                EARLY=keys_shape.early, **shared,
            )  # fmt: skip
        if given <= 0:
            # of q as it was given
            dq = dq.neg_() if given < 0 else dq.zero_()
    return dq, dk, dv


def readable(x: Tensor) -> Tensor:
    """x, or a copy of it that a descriptor can describe if any can."""
    return x if triton_tma.suits(x) and x.stride(3) == 1 else x.contiguous()


def describe(x: Tensor, block: int, dim: int) -> TensorDescriptor:
    """Of x (B, tokens, heads, D), as (B, heads, tokens, D), read in tiles of `block` tokens and dim >= D numbers."""
    batch, tokens, heads, width = x.shape
    shape, strides = [batch, heads, tokens, width], triton_tma.strides_of(x)
    return TensorDescriptor(x, shape, strides, [1, 1, block, dim], layout(block, dim, x.dtype))


def describe_flat(x: Tensor, block: int) -> TensorDescriptor:
    """Of x (N,) fp32, read `block` numbers at a time."""
    return TensorDescriptor(x, [x.numel()], [1], [block], flat_layout())


@lru_cache
def flat_layout():
    """Numbers one after the other."""
    return gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=1)


@lru_cache
def layout(block: int, dim: int, dtype: torch.dtype):
    """How such a tile lies in shared memory."""
    kind = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}[dtype]
    return gl.NVMMASharedLayout.get_default_for([1, 1, block, dim], kind)


def padded(dim: int) -> int:
    """BD: rows of 64 numbers are the width of the swizzle."""
    return 64 if dim <= 64 else 128
