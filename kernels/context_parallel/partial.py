"""Attention of some rows over some keys, and its share of the gradients: what the ring merges and adds.

    forward(q, k, v, spans, scale, backend)                        -> out, lse of these keys alone
    backward(grad_out, q, k, v, out, lse, spans, scale, backend)   -> dq, dk, dv of these keys, given out, lse of all

Results are fp32 (fp64 for fp64 inputs) and come so from the backend, without having been rounded on the way: what
several ranks add up is rounded once, at the end. (But on the CPU in bf16: torch's flash op rounds the out that it
returns, and the gradients of pieces of more than `cpu.UPCAST_KEYS` keys.) Backends, "auto" among them, are those of
`brine.kernels.attention`.

Legend: B batch, T rows, S keys here, H query heads, K key heads, D head dim.
"""

from torch import Tensor

from brine.kernels.attention.select_backend import backend_for
from brine.kernels.attention.spans import Spans


def forward(q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float, backend: str) -> tuple[Tensor, Tensor]:
    """q (B, T, H, D); k, v (B, S, K, D) -> out (B, T, H, D), lse (B, H, T); rows that see nothing give 0 and -inf."""
    serial = int(spans.serial)
    module = backend_for(q, k, serial, sink=None, backend=backend, wide=True)
    return module.forward(q, k, v, spans.lo, spans.hi, serial, scale=scale, sink=None, wide=True)


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    spans: Spans,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """out (B, T, H, D) and lse (B, H, T) are of all keys, and of the sink where there is one -> dq, dk, dv."""
    serial = int(spans.serial)
    module = backend_for(q, k, serial, sink=None, backend=backend, wide=True)
    ends = (spans.lo, spans.hi, serial)
    return module.backward(grad_out, q, k, v, *ends, out, lse, scale=scale, whole=False, wide=True)
