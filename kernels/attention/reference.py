"""The specification of attention over spans: dense, plain PyTorch, forward and backward.

Everything is computed in fp32 (fp64 for fp64 inputs) over the full T x S matrix, six times that in memory with the
backward, so this is for small sizes and for holding the other backends to account. "auto" takes it for small sizes
alone; asked for by name it computes any. Rows that see nothing give out 0, lse -inf and gradients 0.

The backward is written out (README.md, "Mathematics"), since it runs inside an op, where autograd records nothing.

Legend: B batch, T query rows, S keys, H query heads, K key heads, G = H / K heads per key head, D head dim.
"""

import torch
from torch import Tensor


def unsupported_reason(q: Tensor, k: Tensor, *, kind: str, sink: Tensor | None) -> str | None:
    """Why this backend cannot serve the call: it can serve any."""
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
    """softmax(scale q k^T) v over the keys that each row sees.

    q: (B, T, H, D); k, v: (B, S, K, D); sink: (H,) a logit that takes part in the softmax and has value 0.
    -> out (B, T, H, D) in q's dtype, or with `wide` in lse's; lse (B, H, T) float32 (float64 for float64 inputs),
    natural log.
    """
    dtype = torch.promote_types(torch.float32, q.dtype)
    batch, rows, heads, _ = q.shape
    key_heads = k.shape[2]
    q_BTKGD = q.to(dtype).unflatten(2, (key_heads, heads // key_heads))
    scores = torch.einsum("btkgd,bskd->bkgts", q_BTKGD, k.to(dtype)) * scale

    # the one place where the mask is applied
    scores = scores.masked_fill(~visible(lo, hi, k.shape[1]), -torch.inf)

    # one more column, so that there is something to take the maximum of where there are no keys
    top = torch.nn.functional.pad(scores, (0, 1), value=-torch.inf).amax(-1, keepdim=True)
    if sink is not None:
        sink = sink.to(dtype).view(1, key_heads, heads // key_heads, 1, 1)
        top = torch.maximum(top, sink)
    top = top.masked_fill(top == -torch.inf, 0.0)
    weight = (scores - top).exp()
    total = weight.sum(-1, keepdim=True)
    if sink is not None:
        total = total + (sink - top).exp()
    # a row that sees nothing has total 0; dividing by 1 instead keeps out 0
    out = torch.einsum("bkgts,bskd->btkgd", weight / total.masked_fill(total == 0, 1.0), v.to(dtype))
    lse = (top + total.log()).reshape(batch, heads, rows)
    return out.reshape(q.shape).to(dtype if wide else q.dtype), lse


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
    """Gradients from these keys, given out and lse over *all* keys, sink included. Shapes as in `forward`.

    whole: these are all keys, so that delta can be summed over them, from the very weights that it is used with, which
    is closer than grad_out . out. lse is rounded, by eps of itself and not of 1, and products need not round as the
    forward's did: so that what should cancel does, these weights are divided by their sum and the sink's, (H,).
    -> dq, dk, dv in q's dtype, or with `wide` in lse's.
    """
    dtype = torch.promote_types(torch.float32, q.dtype)
    result = dtype if wide else q.dtype
    key_heads = k.shape[2]
    grad_wide, k_wide, v_wide = grad_out.to(dtype), k.to(dtype), v.to(dtype)
    q_BTKGD, g_BTKGD = (x.unflatten(2, (key_heads, -1)) for x in (q.to(dtype), grad_wide))
    scores = torch.einsum("btkgd,bskd->bkgts", q_BTKGD, k_wide) * scale
    # where nothing is seen lse is -inf, and the difference would be NaN
    level = lse.masked_fill(lse == -torch.inf, 0.0).unflatten(1, (key_heads, -1))[..., None]
    chance = (scores - level).exp().masked_fill(~visible(lo, hi, k.shape[1]), 0.0)
    if whole:
        total = chance.sum(-1, keepdim=True)
        if sink is not None:
            total = total + (sink.to(dtype).view(key_heads, -1, 1, 1) - level).exp()
        # a row that sees nothing has no weights at all
        chance = chance / total.where(total > 0.0, 1.0)
    grad_chance = torch.einsum("btkgd,bskd->bkgts", g_BTKGD, v_wide)
    if whole:
        delta = (chance * grad_chance).sum(-1, keepdim=True)
    else:
        delta = (grad_wide * out.to(dtype)).sum(-1).transpose(1, 2).unflatten(1, (key_heads, -1))[..., None]
    grad_scores = chance * (grad_chance - delta) * scale
    dq = torch.einsum("bkgts,bskd->btkgd", grad_scores, k_wide).flatten(2, 3)
    # each query head by itself: one sum over all of them has twice the rounding error
    dk = torch.einsum("bkgts,btkgd->gbskd", grad_scores, q_BTKGD).sum(0)
    dv = torch.einsum("bkgts,btkgd->gbskd", chance, g_BTKGD).sum(0)
    return dq.to(result), dk.to(result), dv.to(result)


def visible(lo: Tensor, hi: Tensor, num_keys: int) -> Tensor:
    """(B, 1, 1, T, S) bool, True where a row sees a key."""
    key = torch.arange(num_keys, device=lo.device)
    return ((key >= lo[..., None]) & (key < hi[..., None]))[:, None, None]
