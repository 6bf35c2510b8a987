"""The host side of the warp-specialized kernels (`gluon/forward.py`, `gluon/backward.py`, `gluon/fused.py`).

Served: bf16 and fp16 on Hopper (sm_90), head dims up to 128, inputs that a tensor descriptor can describe, every mask
and a sink. Two consumers of 64 queries (64 keys for dk/dv) are fixed; the tiles that they walk over and the depth of
the ring are not (`ForwardTileConfig`, `BackwardTileConfig`).

Legend: B batch, T queries, S keys, H query heads, K KV heads, D head dim, BD = D rounded up to 64 or 128.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from brine.kernels.attention.merge import empty_backward, empty_forward
from brine.kernels.attention.spans import AttentionRequest
from brine.kernels.attention.triton import launch as triton_launch
from brine.kernels.attention.triton import tma as triton_tma

try:
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from brine.kernels.attention.gluon import backward as gluon_backward
    from brine.kernels.attention.gluon import backward_queries as gluon_backward_queries
    from brine.kernels.attention.gluon import forward as gluon_forward
    from brine.kernels.attention.gluon import fused as gluon_fused
except ImportError as missing:
    gl, MISSING = None, str(missing)

BM = 64  # queries, or keys, of one consumer; a program has two of them
MAX_DIM = 128
REGISTERS = 168
"""A thread at the start: 65,536 over the 384 threads of three warp groups; then redistributed as 240, 240, 24."""


class ForwardTileConfig(NamedTuple):
    """Options of the forward that a sweep may vary."""

    keys: int = 128  # of a tile
    stages: int = 2  # tiles of keys and of values in flight
    overlap: bool = True  # multiply the scores of the next tile while the softmax of this one runs
    turns: bool = False
    """The two consumers alternate in starting their matmuls (ping-pong scheduling) (only with overlap)."""


class BackwardTileConfig(NamedTuple):
    """Options that a sweep may vary in one of the two passes, or in the fused one."""

    width: int = 64  # queries of a tile that dk/dv walks over, keys of one that dq does
    stages: int = 3  # such tiles in flight
    overlap: bool = True  # a tile's last matmul runs under the next tile's exponentials
    early: bool = False  # dk/dv waits for that matmul before its exponentials: fewer registers, less overlap


FUSED_TILE_CONFIGS = {64: BackwardTileConfig(64, 3), 128: BackwardTileConfig(64, 3, overlap=False)}
"""Of the fused backward, by padded head dim: those that spill least when compiled. No GPU has timed them."""


def unsupported_reason(q: Tensor, k: Tensor, *, kind: str = "any", sink: Tensor | None = None) -> str | None:
    """Why these kernels cannot serve q (B, T, H, D) and k (B, S, K, D), in a sentence, or None."""
    if gl is None:
        return f"this Triton has no Gluon for Hopper: {MISSING}"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"the warp-specialized forward takes float16 or bfloat16, not {q.dtype}"
    if q.shape[3] > MAX_DIM:
        return f"the warp-specialized forward takes head dims up to {MAX_DIM}; got {q.shape[3]}"
    if q.device.type == "cuda" and triton_launch.capability_of(q)[0] != 9:
        return "the warp-specialized forward is for sm_90"
    return triton_launch.unsupported_reason(q, k, kind=kind, sink=sink)


def forward(
    q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest, *, shape: ForwardTileConfig | None = None
) -> tuple[Tensor, Tensor]:
    """As `triton.launch.forward`. Raises ValueError where `unsupported_reason` gives one or no descriptor fits."""
    _check(q, k)
    batch, num_queries, heads, dim = q.shape
    sink, dtype = request.sink, request.result_dtype(q)
    if q.numel() == 0 or k.shape[1] == 0:
        out, lse = empty_forward(q)
        return out.to(dtype), lse if sink is None else lse.copy_(sink[None, :, None].expand_as(lse))
    out = q.new_empty(q.shape, dtype=dtype)
    lse = q.new_empty((batch, heads, num_queries), dtype=torch.float32)
    q, scale = triton_launch.with_positive_scale(q, request.scale)
    q, k, v = _readable(q, k, v)
    shape, width = shape or ForwardTileConfig(), padded(dim)
    with triton_launch.device_of(q):
        gluon_forward.span_attention_gluon_fwd_kernel[triton.cdiv(num_queries, 2 * BM), batch * heads](
            describe(q, BM, width), describe(k, shape.keys, width), describe(v, shape.keys, width),
            request.mask.lo.contiguous(), request.mask.hi.contiguous(), sink, out, lse, num_queries,
            scale * triton_launch.LOG2E,
            H=heads, GROUP=heads // k.shape[2], D=dim, BD=width, BM=BM, BN=shape.keys, STAGES=shape.stages,
            SINK=sink is not None, OVERLAP=shape.overlap, TURNS=shape.turns, num_warps=4, maxnreg=REGISTERS,
        )  # fmt: skip
    return out, lse


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, request: AttentionRequest,
    *, keys_shape: BackwardTileConfig | None = None, rows_shape: BackwardTileConfig | None = None, fused: bool = False,
    fused_shape: BackwardTileConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `triton.launch.backward`, with bit-identical results.

    fused: one pass of five matmuls (`gluon/fused.py`) in place of two of seven, whose dq differs in its last bits from
    run to run, with B T H D fp32 numbers of memory; no GPU has run it. Raises ValueError as `forward` does, and for
    fused under torch's deterministic algorithms.
    """
    _check(q, k)
    if fused and torch.are_deterministic_algorithms_enabled():
        raise ValueError(
            "the fused backward accumulates dq non-deterministically, but torch.use_deterministic_algorithms is on; "
            "use fused=False"
        )
    batch, num_queries, heads, dim = q.shape
    num_keys, key_heads = k.shape[1:3]
    dtype, width = request.result_dtype(q), padded(dim)
    if q.numel() == 0 or k.numel() == 0:
        return empty_backward(q, k, dtype)
    dq, dk, dv = (q.new_empty(x.shape, dtype=dtype) for x in (q, k, v))
    q, scale = triton_launch.with_positive_scale(q, request.scale)
    q, k, v, grad_out = _readable(q, k, v, grad_out.to(q.dtype))
    out, (lo, hi) = triton_launch.whole_heads(out), (x.contiguous() for x in request.mask[:2])
    shared = {"GROUP": heads // key_heads, "D": dim, "BD": width, "num_warps": 4, "maxnreg": REGISTERS}
    with triton_launch.device_of(q):
        columns = triton_launch.columns_of(request.mask, num_keys)
        delta, lse2, padded_queries = triton_launch.row_sums(out, grad_out, lse)

        def over_keys(kernel, shape: BackwardTileConfig, k_half: tuple, into: tuple, sizes: tuple) -> None:
            """Launch dk/dv, or the fused pass: programs of keys that walk over queries."""
            kernel[triton.cdiv(num_keys, 2 * BM), batch * key_heads](
                describe(q, shape.width, width), describe(k, BM, width), *k_half, describe(v, BM, width),
                describe(grad_out, shape.width, width), *(describe_flat(x, shape.width) for x in (lse2, delta)),
                *columns, *into, *sizes, padded_queries, scale, scale * triton_launch.LOG2E,
                K=key_heads, BM=shape.width, BN=BM, STAGES=shape.stages, OVERLAP=shape.overlap, EARLY=shape.early,
                **shared,
            )  # fmt: skip

        if fused:
            # the sums are of numbers without the scale
            summed = torch.zeros_like(dq, dtype=torch.float32)
            fused_shape, k_half = fused_shape or FUSED_TILE_CONFIGS[width], (describe(k, BM, width // 2),)
            kernel = gluon_fused.span_attention_gluon_bwd_fused_kernel
            over_keys(kernel, fused_shape, k_half, (summed, dk, dv), (num_queries, num_keys))
            torch.mul(summed, scale, out=dq)
        else:
            shape = rows_shape or BackwardTileConfig()
            grid = triton.cdiv(num_queries, 2 * BM), batch * heads
            gluon_backward_queries.span_attention_gluon_bwd_queries_kernel[grid](
                describe(q, BM, width), describe(k, shape.width, width), describe(v, shape.width, width),
                describe(grad_out, BM, width), lo, hi, lse2, delta, dq,
                num_queries, padded_queries, scale, scale * triton_launch.LOG2E,
                H=heads, BM=BM, BN=shape.width, STAGES=shape.stages, OVERLAP=shape.overlap, **shared,
            )  # fmt: skip
            kernel = gluon_backward.span_attention_gluon_bwd_keys_kernel
            over_keys(kernel, keys_shape or BackwardTileConfig(), (), (dk, dv), (num_keys,))
    return triton_launch.with_sign_of(request.scale, dq), dk, dv


def _check(q: Tensor, k: Tensor) -> None:
    why = unsupported_reason(q, k)
    if why is not None:
        raise ValueError(f'{why}; use backend="auto" or "triton"')


def _readable(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, or copies of them that descriptors can describe; raises ValueError where none can."""
    found = tuple(x if triton_tma.suits(x) and x.stride(3) == 1 else x.contiguous() for x in tensors)
    if not triton_tma.suits(*found):
        dim = found[0].shape[3]
        raise ValueError(f'head dim {dim} has no strides that TMA can read; use backend="auto" or "triton"')
    return found


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
    """BD: 64 numbers are the width of the swizzle."""
    return 64 if dim <= 64 else 128
