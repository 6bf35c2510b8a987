"""Decoding on the CPU: few queries against a long cache, by plain matmuls.

The work is to read the cache once in few large operations: a thousand small ones each wait for their last thread. So
the keys that a sequence's queries see are read in parts bounded by `PART` scores and merged by log-sum-exp (README.md,
"Decoding" and "Merging"). Softmax and merging are fp32 (fp64 for fp64 inputs); in bf16 the scores, the weights and
each part's sums are rounded to it once, as in a plain run.

Legend: B batch, T queries, S keys, H query heads, K KV heads, G = H / K, D head dim; M = T * G queries of one key
head, number t * G + g; L keys of a part.
"""

import torch
from torch import Tensor

from brine.kernels.attention.merge import finish, merge_by_query
from brine.kernels.attention.spans import AttentionRequest, Mask, cached_by_mask

PART = 2**20  # scores in a part, 4 MB in fp32
MAX_ROWS = 64
"""Maximum query vectors T * H: in bf16 the zeros of more cost more than reading, measured at H:K:D of 8:8:64."""
MIN_GROUP = 4  # G from which fp32 and fp64 come here; with fewer queries per KV head the flash op reads as fast
LEAST = 2**20
"""Elements of keys that a sequence sees, on average, from which this is the faster way; a quarter for one query in
bf16, where the flash op is slowest."""


def suits(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> bool:
    """Whether `forward` is the faster way. q: (B, T, H, D); k, v: (B, S, K, D)."""
    batch, num_queries, heads, dim = q.shape
    num_keys, key_heads = k.shape[1:3]
    if q.dtype == torch.bfloat16:
        least = LEAST // 4 if num_queries == 1 else LEAST
        suited = torch.ops.mkldnn._is_mkldnn_bf16_supported() and all(x.stride()[2:] == (dim, 1) for x in (k, v))
    else:
        least, suited = LEAST, q.dtype != torch.float16 and heads >= MIN_GROUP * key_heads
    if not (suited and batch and 0 < num_queries * heads <= MAX_ROWS and num_keys * key_heads * dim >= least):
        return False
    read = sum(end - first for first, end in ranges_of(mask))
    # queries that see far apart keys would read what lies between
    return read * key_heads * dim >= least * batch and num_queries * read <= 2 * int((mask.hi - mask.lo).sum())


def ranges_of(mask: Mask) -> list[tuple[int, int]]:
    """[first, end) of the keys that any query of each sequence sees, as both ends are non-decreasing."""

    def ranges() -> list[tuple[int, int]]:
        return list(zip(mask.lo[:, 0].tolist(), mask.hi[:, -1].tolist(), strict=True))

    return cached_by_mask(mask.serial, "cpu_decode", ranges)


def forward(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> tuple[Tensor, Tensor]:
    """As `reference.forward`; out is in q's dtype. Both results are new and contiguous."""
    batch, num_queries, heads, _ = q.shape
    lo, hi = request.mask.lo, request.mask.hi
    grouped = k.shape[2], heads // k.shape[2]
    wide = torch.promote_types(torch.float32, q.dtype)
    q_BKMD = q.unflatten(2, grouped).transpose(1, 2).flatten(2, 3)
    out = torch.zeros_like(q_BKMD, dtype=wide)
    lse = out.new_full(out.shape[:3], -torch.inf)
    length = max(1, PART // (num_queries * heads))
    for b, (first, end) in enumerate(ranges_of(request.mask)):
        for start in range(first, end, length):
            at = slice(start, min(start + length, end))
            scores = _scores(q_BKMD[b], k[b, at]).to(wide).mul_(request.scale)
            _mask(scores.unflatten(1, (num_queries, -1)), lo[b], hi[b], start)
            lse_part, total = _exponentiate(scores)
            out_part = _weighted(scores.to(v.dtype), v[b, at]) / total
            if start > first:
                out_part, lse_part = merge_by_query(out[b], lse[b], out_part, lse_part)
            out[b], lse[b] = out_part, lse_part
    out = out.unflatten(2, (num_queries, -1)).transpose(1, 2).reshape(q.shape)
    lse = lse.unflatten(2, (num_queries, -1)).transpose(1, 2).reshape(batch, num_queries, heads)
    return finish(out, lse.transpose(1, 2), request, q.dtype)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """q: (K, M, D); k: (L, K, D) -> (K, M, L)."""
    if q.dtype != torch.bfloat16:
        return torch.bmm(q, k.permute(1, 2, 0))
    spread = q.new_zeros(*q.shape[:2], *k.shape[1:])
    spread.diagonal(dim1=0, dim2=2).copy_(q.permute(1, 2, 0))
    return (spread.view(-1, k[0].numel()) @ k.flatten(1).T).view(*q.shape[:2], -1)


def _weighted(weights: Tensor, v: Tensor) -> Tensor:
    """weights: (K, M, L); v: (L, K, D) -> (K, M, D)."""
    if v.dtype != torch.bfloat16:
        return torch.bmm(weights, v.transpose(0, 1))
    every_head = (weights.flatten(0, 1) @ v.flatten(1)).view(*weights.shape[:2], *v.shape[1:])
    return every_head.diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _mask(scores: Tensor, lo: Tensor, hi: Tensor, first: int) -> None:
    """Set to -inf what queries do not see. scores: (K, T, G, L) of the keys from `first` on; lo, hi: (T,)."""
    end = first + scores.shape[-1]
    for start, stop in ((first, min(int(lo[-1]), end)), (max(int(hi[0]), first), end)):
        if start < stop:
            key = torch.arange(start, stop)
            hidden = (key < lo[:, None]) | (key >= hi[:, None])
            scores[..., start - first : stop - first].masked_fill_(hidden[:, None], -torch.inf)


def _exponentiate(scores: Tensor) -> tuple[Tensor, Tensor]:
    """(K, M, L) -> exp(scores - max), in place; log-sum-exp (K, M), weight sum (K, M, 1), 1 for empty queries."""
    top = scores.amax(-1, keepdim=True)
    top.masked_fill_(top == -torch.inf, 0.0)
    total = scores.sub_(top).exp_().sum(-1, keepdim=True)
    lse = (top + total.log()).squeeze(-1)
    return lse, total.masked_fill_(total == 0, 1.0)
