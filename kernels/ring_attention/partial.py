"""Attention of some rows over some keys, and its share of the gradients: what the ring merges and adds.

    forward(q, k, v, spans, scale, backend)                        -> out, lse of these keys alone
    backward(grad_out, q, k, v, out, lse, spans, scale, backend)   -> dq, dk, dv of these keys, given out, lse of all

Results are fp32 (fp64 for fp64 inputs), so that what several ranks add up is rounded once, at the end. "cpu" and
"triton" are the backends of `kernels.attention`; "reference" is dense and plain: the specification.

Legend: B batch, T rows, S keys here, H query heads, K key heads, G = H / K, D head dim.
"""

import torch
from torch import Tensor

from kernels.attention import cpu
from kernels.attention.reference import reference_attention
from kernels.attention.spans import Spans


def forward(q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float, backend: str) -> tuple[Tensor, Tensor]:
    """q (B, T, H, D); k, v (B, S, K, D) -> out (B, T, H, D), lse (B, H, T); rows that see nothing give 0 and -inf."""
    wide = torch.promote_types(torch.float32, q.dtype)
    if backend == "reference":
        return reference_attention(q.to(wide), k.to(wide), v.to(wide), spans, scale=scale)
    if backend == "triton":
        from kernels.attention import triton_launch

        out, lse = triton_launch.forward(q, k, v, spans.lo, spans.hi, int(spans.serial), scale=scale, sink=None)
        return out.to(wide), lse
    plan = cpu.plan_of(int(spans.serial), spans.lo, spans.hi, spans.num_keys)
    return cpu.forward(q, k, v, plan, scale=scale, sink=None, wide=True)


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
    wide = torch.promote_types(torch.float32, q.dtype)
    if backend == "reference":
        return _dense_backward(*(x.to(wide) for x in (grad_out, q, k, v, out)), lse, spans, scale)
    if backend == "triton":
        from kernels.attention import triton_launch

        ends = (spans.lo, spans.hi, int(spans.serial))
        grads = triton_launch.backward(grad_out, q, k, v, *ends, out, lse, scale=scale, whole=False)
        return tuple(grad.to(wide) for grad in grads)
    plan = cpu.plan_of(int(spans.serial), spans.lo, spans.hi, spans.num_keys)
    return cpu.backward(grad_out, q, k, v, out, lse, plan, scale=scale, wide=True)


def _dense_backward(grad_out, q, k, v, out, lse, spans: Spans, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    key_heads = k.shape[2]
    q_BTKGD, g_BTKGD = (x.unflatten(2, (key_heads, -1)) for x in (q, grad_out))
    scores = torch.einsum("btkgd,bskd->bkgts", q_BTKGD, k) * scale
    seen = spans.dense()[:, None, None]
    # where nothing is seen lse is -inf, and the difference would be NaN
    level = lse.masked_fill(lse == -torch.inf, 0.0).unflatten(1, (key_heads, -1))[..., None]
    chance = (scores - level).exp().masked_fill(~seen, 0.0)
    delta = (grad_out * out).sum(-1).transpose(1, 2).unflatten(1, (key_heads, -1))[..., None]
    grad_chance = torch.einsum("btkgd,bskd->bkgts", g_BTKGD, v)
    grad_scores = chance * (grad_chance - delta) * scale
    dq = torch.einsum("bkgts,bskd->btkgd", grad_scores, k).flatten(2, 3)
    dk = torch.einsum("bkgts,btkgd->bskd", grad_scores, q_BTKGD)
    return dq, dk, torch.einsum("bkgts,btkgd->bskd", chance, g_BTKGD)
