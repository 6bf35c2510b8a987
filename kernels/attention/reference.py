"""The specification of attention over spans: dense, plain PyTorch, forward and backward.

Everything is computed in fp32 (fp64 for fp64 inputs) over the full T x S matrix, six times that in memory with the
backward: for small sizes and for testing the other backends. The backward is written out (README.md, "Mathematics"),
since it runs inside an op, where autograd records nothing.

Legend: B batch, T queries, S keys, H query heads, K KV heads, G = H / K query heads per KV head, D head dim.
"""

import torch
from torch import Tensor

from brine.kernels.attention.spans import AttentionRequest, Mask


def unsupported_reason(q: Tensor, k: Tensor, *, kind: str, sink: Tensor | None) -> str | None:
    return None


def forward(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> tuple[Tensor, Tensor]:
    """softmax(scale q k^T) v over visible keys. q: (B, T, H, D); k, v: (B, S, K, D).

    -> out (B, T, H, D) in the request's result dtype; lse (B, H, T) float32 (float64 for float64 inputs), natural log.
    """
    dtype = torch.promote_types(torch.float32, q.dtype)
    batch, queries, heads, _ = q.shape
    key_heads, sink = k.shape[2], request.sink
    q_BTKGD = q.to(dtype).unflatten(2, (key_heads, heads // key_heads))
    scores = torch.einsum("btkgd,bskd->bkgts", q_BTKGD, k.to(dtype)) * request.scale

    # the mask is applied here alone
    scores = scores.masked_fill(~visible(request.mask, k.shape[1]), -torch.inf)

    # one more column, so that there is a maximum where there are no keys
    top = torch.nn.functional.pad(scores, (0, 1), value=-torch.inf).amax(-1, keepdim=True)
    if sink is not None:
        sink = sink.to(dtype).view(1, key_heads, heads // key_heads, 1, 1)
        top = torch.maximum(top, sink)
    top = top.masked_fill(top == -torch.inf, 0.0)
    weight = (scores - top).exp()
    total = weight.sum(-1, keepdim=True)
    if sink is not None:
        total = total + (sink - top).exp()
    # an empty query has total 0; dividing by 1 instead keeps out 0
    out = torch.einsum("bkgts,bskd->btkgd", weight / total.masked_fill(total == 0, 1.0), v.to(dtype))
    lse = (top + total.log()).reshape(batch, heads, queries)
    return out.reshape(q.shape).to(request.result_dtype(q)), lse


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, request: AttentionRequest
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients from these keys, given out and lse over *all* keys, sink included. Shapes as in `forward`.

    Unless the request is partial, delta is summed over the keys from the weights that it is used with, which is closer
    than grad_out . out; lse is rounded and matmuls need not round as the forward's did, so these weights are divided
    by their sum and the sink's. -> dq, dk, dv in the request's result dtype.
    """
    dtype = torch.promote_types(torch.float32, q.dtype)
    result, key_heads = request.result_dtype(q), k.shape[2]
    grad_wide, k_wide, v_wide = grad_out.to(dtype), k.to(dtype), v.to(dtype)
    q_BTKGD, g_BTKGD = (x.unflatten(2, (key_heads, -1)) for x in (q.to(dtype), grad_wide))
    scores = torch.einsum("btkgd,bskd->bkgts", q_BTKGD, k_wide) * request.scale
    # lse is -inf for empty queries, and the difference would be NaN
    level = lse.masked_fill(lse == -torch.inf, 0.0).unflatten(1, (key_heads, -1))[..., None]
    weight = (scores - level).exp().masked_fill(~visible(request.mask, k.shape[1]), 0.0)
    grad_weight = torch.einsum("btkgd,bskd->bkgts", g_BTKGD, v_wide)
    if request.partial:
        delta = (grad_wide * out.to(dtype)).sum(-1).transpose(1, 2).unflatten(1, (key_heads, -1))[..., None]
    else:
        total = weight.sum(-1, keepdim=True)
        if request.sink is not None:
            total = total + (request.sink.to(dtype).view(key_heads, -1, 1, 1) - level).exp()
        # an empty query has no weights at all
        weight = weight / total.where(total > 0.0, 1.0)
        delta = (weight * grad_weight).sum(-1, keepdim=True)
    grad_scores = weight * (grad_weight - delta) * request.scale
    dq = torch.einsum("bkgts,bskd->btkgd", grad_scores, k_wide).flatten(2, 3)
    # each query head separately: one sum over all of them has twice the rounding error
    dk = torch.einsum("bkgts,btkgd->gbskd", grad_scores, q_BTKGD).sum(0)
    dv = torch.einsum("bkgts,btkgd->gbskd", weight, g_BTKGD).sum(0)
    return dq.to(result), dk.to(result), dv.to(result)


def visible(mask: Mask, num_keys: int) -> Tensor:
    """(B, 1, 1, T, S) bool, True where a query sees a key."""
    key = torch.arange(num_keys, device=mask.lo.device)
    return ((key >= mask.lo[..., None]) & (key < mask.hi[..., None]))[:, None, None]
