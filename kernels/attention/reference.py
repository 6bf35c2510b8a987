"""The specification of attention over spans: dense, plain PyTorch, differentiable by autograd.

Everything is computed in fp32 (fp64 for fp64 inputs) over the full T x S matrix, so this is for small sizes and for
holding the other backends to account. Rows that see nothing give out 0, lse -inf and gradients 0.

Legend: B batch, T query rows, S keys, H query heads, K key heads, G = H / K heads per key head, D head dim.
"""

import torch
from torch import Tensor

from kernels.attention.spans import Spans


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, spans: Spans, *, scale: float, sink: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(scale q k^T) v over the keys that each row sees.

    q: (B, T, H, D); k, v: (B, S, K, D); sink: (H,) a logit that takes part in the softmax and has value 0.
    -> out (B, T, H, D) in q's dtype, lse (B, H, T) float32 (float64 for float64 inputs), natural log, detached.
    """
    dtype = torch.promote_types(torch.float32, q.dtype)
    batch, rows, heads, dim = q.shape
    key_heads = k.shape[2]
    q_BTKGD = q.to(dtype).unflatten(2, (key_heads, heads // key_heads))
    scores = torch.einsum("btkgd,bskd->bkgts", q_BTKGD, k.to(dtype)) * scale

    # the one place where the mask is applied
    seen = spans.dense()[:, None, None]
    scores = scores.masked_fill(~seen, -torch.inf)

    # one more column, so that there is something to take the maximum of where there are no keys
    top = torch.nn.functional.pad(scores.detach(), (0, 1), value=-torch.inf).amax(-1, keepdim=True)
    if sink is not None:
        sink = sink.to(dtype).view(1, key_heads, heads // key_heads, 1, 1)
        top = torch.maximum(top, sink.detach())
    top = top.masked_fill(top == -torch.inf, 0.0)
    weight = (scores - top).exp()
    total = weight.sum(-1, keepdim=True)
    if sink is not None:
        total = total + (sink - top).exp()
    # a row that sees nothing has total 0; dividing by 1 instead keeps out and its gradients 0
    out = torch.einsum("bkgts,bskd->btkgd", weight / total.masked_fill(total == 0, 1.0), v.to(dtype))
    lse = (top + total.log()).detach().reshape(batch, heads, rows)
    return out.reshape(batch, rows, heads, dim).to(q.dtype), lse
