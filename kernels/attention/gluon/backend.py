"""Attention over spans on Hopper by warp-specialised kernels: backend "gluon".

One warp group copies tiles, two multiply and take the softmax (`gluon/forward.py`, `gluon/backward.py`). Few rows over
many keys (decoding) are Triton's. Forward and backward agree on out and lse alone, so their halves may be mixed with
other backends', and all of it is without atomics: the same inputs give the same bits.

Measured on an H200 under Triton 3.6.0 (`benchmarks/results/card-h200.jsonl`): causal, 32,768 tokens, head dim 128, the
forward runs at 610 TFLOP/s where cuDNN's runs at 597 and the portable Triton kernel at 489, the backward at 499 where
Triton's runs at 333.

Legend: B batch, T query rows, S keys, H query heads, K key heads, D head dim.
"""

from __future__ import annotations

from torch import Tensor

from brine.kernels.attention.gluon import launch as gluon_launch
from brine.kernels.attention.gluon.launch import ForwardTileConfig
from brine.kernels.attention.triton import decode as triton_decode
from brine.kernels.attention.triton import launch as triton_launch

SHAPES = {64: ForwardTileConfig(128, 2, overlap=False), 128: ForwardTileConfig(128, 2, overlap=True)}
"""By padded head dim, the fastest of those timed on an H200 but for turns, which gave less than the noise."""
DIM_MULTIPLE = 8
"""Of numbers of 16 bits, so that strides are multiples of the 16 bytes that TMA wants."""


def unsupported_reason(q: Tensor, k: Tensor, *, kind: str, sink: Tensor | None) -> str | None:
    """Why this backend cannot serve q (B, T, H, D) and k (B, S, K, D), in a sentence; None where it can."""
    if q.device.type != "cuda":
        # not by Triton's interpreter either, which knows no Gluon
        return f'backend "gluon" needs a CUDA device, but q is on {q.device}'
    if kind == "moving":
        return "a mask that is advanced in place is for decoding, which has kernels of its own in Triton"
    if q.shape[3] % DIM_MULTIPLE:
        return f"the specialised forward takes head dims in multiples of {DIM_MULTIPLE}, not {q.shape[3]}"
    return gluon_launch.unsupported_reason(q, k, kind=kind, sink=sink)


def forward(
    q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, serial: int, *, scale: float, sink: Tensor | None,
    wide: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q: (B, T, H, D); k, v: (B, S, K, D); lo, hi: (B, T) int32; sink: (H,) or None.

    -> out (B, T, H, D) in q's dtype, with `wide` fp32 from the accumulators; lse (B, H, T) float32.
    """
    if q.shape[1] * (q.shape[2] // k.shape[2]) <= triton_decode.MAX_ROWS:
        return triton_launch.forward(q, k, v, lo, hi, serial, scale=scale, sink=sink, wide=wide)
    shape = SHAPES[gluon_launch.padded(q.shape[3])]
    return gluon_launch.forward(q, k, v, lo, hi, serial, scale=scale, sink=sink, wide=wide, shape=shape)


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, serial: int, out: Tensor, lse: Tensor,
    *, scale: float, whole: bool, wide: bool = False, sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients from these keys, given out and lse over *all* keys, sink included. Shapes as in `forward`.

    -> dq, dk, dv in q's dtype, with `wide` fp32 from the accumulators.
    """
    few = q.shape[1] * (q.shape[2] // k.shape[2]) <= triton_decode.MAX_ROWS
    run = triton_launch.backward if few else gluon_launch.backward
    return run(grad_out, q, k, v, lo, hi, serial, out, lse, scale=scale, whole=whole, wide=wide, sink=sink)
