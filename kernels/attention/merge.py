"""Merging attention over disjoint sets of keys, exactly, from outputs and log-sum-exps.

With partial outputs o1, o2 and log-sum-exps l1, l2 of two sets of a query's keys,

    lse = log(exp l1 + exp l2)         out = exp(l1 - lse) o1 + exp(l2 - lse) o2

in fp32 (fp64 for fp64 parts), shifted by the larger of the two. A part without visible keys has out 0 and lse -inf and
changes nothing; two of them give 0 and -inf, never NaN. The CPU tiles and the ring merge with this function.
"""

import torch
from torch import Tensor

from brine.kernels.attention.spans import AttentionRequest


def merge_partials(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint sets of keys.

    out_a, out_b: (B, T, H, D); lse_a, lse_b: (B, H, T), natural log.
    -> out (B, T, H, D), lse (B, H, T), float32, or float64 if any part is.
    """
    for name, out, lse in (("a", out_a, lse_a), ("b", out_b, lse_b)):
        batch, queries, heads, _ = out.shape
        if lse.shape != (batch, heads, queries):
            raise ValueError(f"lse_{name} must be (B, H, T) = {(batch, heads, queries)}; got {tuple(lse.shape)}")
    if out_a.shape != out_b.shape:
        raise ValueError(f"partial outputs differ in shape: {tuple(out_a.shape)} and {tuple(out_b.shape)}")
    out, lse = merge_by_query(out_a, lse_a.transpose(1, 2), out_b, lse_b.transpose(1, 2))
    return out, lse.transpose(1, 2).contiguous()


def merge_by_query(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """`merge_partials` with out (..., D) and lse (...), in any common leading shape."""
    dtype = torch.float32
    for part in (out_a, lse_a, out_b, lse_b):
        dtype = torch.promote_types(dtype, part.dtype)
    lse_a, lse_b = lse_a.to(dtype), lse_b.to(dtype)
    top = torch.maximum(lse_a, lse_b)
    top = torch.where(top == -torch.inf, 0.0, top)
    weight_a, weight_b = (lse_a - top).exp(), (lse_b - top).exp()
    total = weight_a + weight_b
    # where both parts are empty total is 0, its log the right -inf, and the weights are 0 over anything but 0
    share = torch.where(total == 0, 1.0, total)
    out = out_a * (weight_a / share)[..., None] + out_b * (weight_b / share)[..., None]
    return out.to(dtype), top + total.log()


def absorb_sink(out: Tensor, lse: Tensor, sink: Tensor) -> tuple[Tensor, Tensor]:
    """Merge with one more score of value 0. out: (..., H, D); lse: (..., H); sink: (H,)."""
    with_sink = torch.logaddexp(lse, sink.to(lse.dtype))
    return out * (lse - with_sink).exp()[..., None], with_sink


def finish(out: Tensor, lse: Tensor, request: AttentionRequest, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """out (B, T, H, D), lse (B, H, T) of a kernel without sinks -> with the sink, contiguous, out in `dtype`."""
    if request.sink is not None:
        out, with_sink = absorb_sink(out, lse.transpose(1, 2), request.sink)
        lse = with_sink.transpose(1, 2)
    return out.to(dtype).contiguous(), lse.contiguous()


def empty_forward(q: Tensor) -> tuple[Tensor, Tensor]:
    """What queries without keys get, q: (B, T, H, D) -> out 0, and lse (B, H, T) -inf in float32 or float64."""
    lse = q.new_full((len(q), q.shape[2], q.shape[1]), -torch.inf, dtype=torch.promote_types(torch.float32, q.dtype))
    return torch.zeros_like(q, memory_format=torch.contiguous_format), lse


def empty_backward(q: Tensor, k: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients where there are no queries or no keys."""
    return q.new_zeros(q.shape, dtype=dtype), k.new_zeros(k.shape, dtype=dtype), k.new_zeros(k.shape, dtype=dtype)
