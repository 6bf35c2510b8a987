"""Attention of some queries over some keys, and its share of the gradients: what the ring merges and adds.

Results are fp32 (fp64 for fp64 inputs) and come so from the backend: what ranks add up is rounded once, at the end.
(But on the CPU in bf16 torch's flash op rounds the out that it returns, and the gradients of large blocks.)

Legend: B batch, T queries, S keys here, H query heads, K KV heads, D head dim.
"""

from torch import Tensor

from brine.kernels.attention.select_backend import backend_for
from brine.kernels.attention.spans import AttentionRequest, Spans


def forward(q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float, backend: str) -> tuple[Tensor, Tensor]:
    """q (B, T, H, D); k, v (B, S, K, D) -> out (B, T, H, D), lse (B, H, T); empty queries give 0 and -inf."""
    request = AttentionRequest(spans.mask, scale, partial=True)
    return backend_for(q, k, request, backend).forward(q, k, v, request)


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, spans: Spans, scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """out (B, T, H, D) and lse (B, H, T) are of all keys, and of the sink where there is one -> dq, dk, dv."""
    request = AttentionRequest(spans.mask, scale, partial=True)
    return backend_for(q, k, request, backend).backward(grad_out, q, k, v, out, lse, request)
