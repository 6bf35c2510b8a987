"""The CPU backend as the op sees it: which of its four routines serves a call.

    forward     few rows against a long cache: `cpu_decode`; else the tile walk of `cpu`
    backward    fp32 with wide heads, over all keys: `cpu_exact`; else the tile walk

Legend: B batch, T query rows, S keys, H query heads, K key heads, D head dim.
"""

from torch import Tensor

from brine.kernels.attention.cpu import decode as cpu_decode
from brine.kernels.attention.cpu import exact as cpu_exact
from brine.kernels.attention.cpu import tiled as cpu


def unsupported_reason(q: Tensor, k: Tensor, *, kind: str, sink: Tensor | None) -> str | None:
    """Why this backend cannot serve the call, or None."""
    if q.device.type != "cpu":
        return f'backend "cpu" needs CPU tensors, but q is on {q.device}; use backend="auto"'
    return None


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lo: Tensor,
    hi: Tensor,
    serial: int,
    *,
    scale: float,
    sink: Tensor | None,
    wide: bool = False,
) -> tuple[Tensor, Tensor]:
    """q: (B, T, H, D); k, v: (B, S, K, D); lo, hi: (B, T) int32 of the Spans with this serial; sink: (H,) or None.

    -> out (B, T, H, D) in q's dtype, or with `wide` in lse's; lse (B, H, T) float32 (float64 for float64 inputs).
    """
    if not wide and cpu_decode.suits(q, k, v, lo, hi, serial):
        return cpu_decode.forward(q, k, v, lo, hi, serial, scale=scale, sink=sink)
    plan = cpu.tile_plan_of(serial, lo, hi, k.shape[1])
    return cpu.forward(q, k, v, plan, scale=scale, sink=sink, wide=wide)


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lo: Tensor,
    hi: Tensor,
    serial: int,
    out: Tensor,
    lse: Tensor,
    *,
    scale: float,
    whole: bool,
    wide: bool = False,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients from these keys, given out and lse over *all* keys, sink included. whole: these are all keys.

    -> dq, dk, dv in q's dtype, or with `wide` in lse's.
    """
    plan = cpu.tile_plan_of(serial, lo, hi, k.shape[1])
    if whole and not wide and cpu_exact.suits(q):
        return cpu_exact.backward(grad_out, q, k, v, lse, plan, scale=scale, sink=sink)
    return cpu.backward(grad_out, q, k, v, out, lse, plan, scale=scale, wide=wide)
