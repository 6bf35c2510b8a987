"""Attention over spans on Hopper by warp-specialized kernels: backend "gluon".

One warp group copies tiles, two multiply and take the softmax (`gluon/forward.py`, `gluon/backward.py`). Decoding goes
to Triton's kernels. Nothing is added up by atomics: the same inputs give the same bits. README.md has the numbers of an
H200.
"""

from __future__ import annotations

from torch import Tensor

from brine.kernels.attention.gluon import launch as gluon_launch
from brine.kernels.attention.gluon.launch import ForwardTileConfig
from brine.kernels.attention.spans import AttentionRequest
from brine.kernels.attention.triton import decode as triton_decode
from brine.kernels.attention.triton import launch as triton_launch

SHAPES = {64: ForwardTileConfig(128, 2, overlap=False), 128: ForwardTileConfig(128, 2, overlap=True)}
"""By padded head dim, the fastest of those timed on an H200 but for turns, which gave less than the noise."""
DIM_MULTIPLE = 8  # of numbers of 16 bits, so that strides are multiples of the 16 bytes that TMA wants


def unsupported_reason(q: Tensor, k: Tensor, *, kind: str, sink: Tensor | None) -> str | None:
    """Why this backend cannot serve q (B, T, H, D) and k (B, S, K, D), in a sentence; None where it can."""
    if q.device.type != "cuda":
        # not by Triton's interpreter either, which knows no Gluon
        return f'backend "gluon" needs a CUDA device, but q is on {q.device}'
    if kind == "moving":
        return "a mask that is advanced in place is for decoding, which Triton's kernels serve"
    if q.shape[3] % DIM_MULTIPLE:
        return f"the warp-specialized forward takes head dims in multiples of {DIM_MULTIPLE}, not {q.shape[3]}"
    return gluon_launch.unsupported_reason(q, k, kind=kind, sink=sink)


def forward(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> tuple[Tensor, Tensor]:
    """As `reference.forward`; partial results come from the accumulators."""
    if _is_decoding(q, k):
        return triton_launch.forward(q, k, v, request)
    return gluon_launch.forward(q, k, v, request, shape=SHAPES[gluon_launch.padded(q.shape[3])])


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, request: AttentionRequest
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.backward`; partial results come from the accumulators."""
    run = triton_launch.backward if _is_decoding(q, k) else gluon_launch.backward
    return run(grad_out, q, k, v, out, lse, request)


def _is_decoding(q: Tensor, k: Tensor) -> bool:
    return q.shape[1] * (q.shape[2] // k.shape[2]) <= triton_decode.MAX_ROWS
