"""The CPU backend as the op sees it: which of its routines serves a call.

forward     few queries against a long cache: `decode.py`; else the tile walk of `tiled.py`
backward    fp32 with wide heads, over all keys: `exact.py`; else the tile walk
"""

from torch import Tensor

from brine.kernels.attention.cpu import decode as cpu_decode
from brine.kernels.attention.cpu import exact as cpu_exact
from brine.kernels.attention.cpu import tiled as cpu
from brine.kernels.attention.spans import AttentionRequest


def unsupported_reason(q: Tensor, k: Tensor, *, kind: str, sink: Tensor | None) -> str | None:
    """Why this backend cannot serve the call, or None."""
    if q.device.type != "cpu":
        return f'backend "cpu" needs CPU tensors, but q is on {q.device}; use backend="auto"'
    return None


def forward(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> tuple[Tensor, Tensor]:
    """As `reference.forward`."""
    if not request.partial and cpu_decode.suits(q, k, v, request.mask):
        return cpu_decode.forward(q, k, v, request)
    return cpu.forward(q, k, v, cpu.tile_plan_of(request.mask, k.shape[1]), request)


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, request: AttentionRequest
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.backward`."""
    plan = cpu.tile_plan_of(request.mask, k.shape[1])
    if not request.partial and cpu_exact.suits(q):
        return cpu_exact.backward(grad_out, q, k, v, lse, plan, request)
    return cpu.backward(grad_out, q, k, v, out, lse, plan, request)
