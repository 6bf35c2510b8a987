"""Decoding on the CPU: few query rows against a long cache, by plain matrix products.

The work is to read the cache once, and to do so in few large operations, each shared by all threads: a thousand small
ones take the same processor time, but every one waits for its last thread, and beside other work they took 1.5 to 6
times as long. So a sequence's keys, from the first to the last that a row of it sees, are read in place, in parts
bounded by `PART` scores; parts are merged by log-sum-exp (README.md, "Merging").

The query heads of a key head, times the rows, are the M rows of one product per key head, so keys are never repeated.
In bf16 a product per head would pack its share of the cache first. There one product over all heads takes a matrix of
rows that is zero outside of each row's own head: K times the multiplications, but no packing (README.md,
"DynamicDecoder").

Softmax and merging are fp32 (fp64 for fp64 inputs). In bf16 the scores, the weights and each part's sums are rounded to
it once, as in a plain run; products add up in fp32.

Legend: B batch, T query rows, S keys, H query heads, K key heads, G = H / K, D head dim; M = T * G rows of one key
head, number t * G + g; L keys of a part.
"""

import torch
from torch import Tensor

from brine.kernels.attention.merge import absorb_sink, merge_rows
from brine.kernels.attention.spans import cached_by_mask

PART = 2**20
"""Scores in a part, 4 MB in fp32."""
MAX_ROWS = 64
"""Most rows T * H: in bf16 the zeros of more cost more than reading, measured at H:K:D of 8:8:64."""
MIN_GROUP = 4
"""G from which fp32 and fp64 come here; with fewer rows a key head the flash op reads as fast."""
LEAST = 2**20
"""Elements of keys that a sequence sees, on average, from which this is the faster way; a quarter for one row in bf16,
where the flash op is slowest."""


def suits(q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, serial: int) -> bool:
    """Whether `forward` is the faster way. q: (B, T, H, D); k, v: (B, S, K, D); lo, hi: (B, T) int32."""
    batch, num_queries, heads, dim = q.shape
    num_keys, key_heads = k.shape[1:3]
    if q.dtype == torch.bfloat16:
        least = LEAST // 4 if num_queries == 1 else LEAST
        suited = torch.ops.mkldnn._is_mkldnn_bf16_supported() and all(x.stride()[2:] == (dim, 1) for x in (k, v))
    else:
        least, suited = LEAST, q.dtype != torch.float16 and heads >= MIN_GROUP * key_heads
    if not (suited and batch and 0 < num_queries * heads <= MAX_ROWS and num_keys * key_heads * dim >= least):
        return False
    read = sum(end - first for first, end in ranges_of(serial, lo, hi))
    # rows that see far apart keys would read what lies between
    return read * key_heads * dim >= least * batch and num_queries * read <= 2 * int((hi - lo).sum())


def ranges_of(serial: int, lo: Tensor, hi: Tensor) -> list[tuple[int, int]]:
    """[first, end) of the keys that any row of each sequence sees, as both ends never decrease."""
    return cached_by_mask(serial, "cpu_decode", lambda: list(zip(lo[:, 0].tolist(), hi[:, -1].tolist(), strict=True)))


def forward(
    q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, serial: int, *, scale: float, sink: Tensor | None
) -> tuple[Tensor, Tensor]:
    """q: (B, T, H, D); k, v: (B, S, K, D); lo, hi: (B, T) int32 of the Spans with this serial; sink: (H,) or None.

    -> out (B, T, H, D) in q's dtype; lse (B, H, T) float32 (float64 for float64 inputs). Both are new and contiguous.
    """
    batch, num_queries, heads, _ = q.shape
    grouped = k.shape[2], heads // k.shape[2]
    wide = torch.promote_types(torch.float32, q.dtype)
    q_BKMD = q.unflatten(2, grouped).transpose(1, 2).flatten(2, 3)
    out = torch.zeros_like(q_BKMD, dtype=wide)
    lse = out.new_full(out.shape[:3], -torch.inf)
    length = max(1, PART // (num_queries * heads))
    for b, (first, end) in enumerate(ranges_of(serial, lo, hi)):
        for start in range(first, end, length):
            at = slice(start, min(start + length, end))
            scores = _scores(q_BKMD[b], k[b, at]).to(wide).mul_(scale)
            _mask(scores.unflatten(1, (num_queries, -1)), lo[b], hi[b], start)
            lse_part, total = _exponentiate(scores)
            out_part = _weighted(scores.to(v.dtype), v[b, at]) / total
            if start > first:
                out_part, lse_part = merge_rows(out[b], lse[b], out_part, lse_part)
            out[b], lse[b] = out_part, lse_part
    out = out.unflatten(2, (num_queries, -1)).transpose(1, 2).reshape(q.shape)
    lse = lse.unflatten(2, (num_queries, -1)).transpose(1, 2).reshape(batch, num_queries, heads)
    if sink is not None:
        out, lse = absorb_sink(out, lse, sink)
    return out.to(q.dtype), lse.transpose(1, 2).contiguous()


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
    """Set to -inf what rows do not see. scores: (K, T, G, L) of the keys from `first` on; lo, hi: (T,)."""
    end = first + scores.shape[-1]
    for start, stop in ((first, min(int(lo[-1]), end)), (max(int(hi[0]), first), end)):
        if start < stop:
            key = torch.arange(start, stop)
            unseen = (key < lo[:, None]) | (key >= hi[:, None])
            scores[..., start - first : stop - first].masked_fill_(unseen[:, None], -torch.inf)


def _exponentiate(scores: Tensor) -> tuple[Tensor, Tensor]:
    """(K, M, L), overwritten by exp(scores - their maximum) -> log-sum-exp (K, M), sum of the weights (K, M, 1), 1 for
    rows without keys."""
    top = scores.amax(-1, keepdim=True)
    top.masked_fill_(top == -torch.inf, 0.0)
    total = scores.sub_(top).exp_().sum(-1, keepdim=True)
    lse = (top + total.log()).squeeze(-1)
    return lse, total.masked_fill_(total == 0, 1.0)
