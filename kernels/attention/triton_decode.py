"""Decoding in Triton: one or few query rows against a long cache, split over keys.

With a few rows there are too few tiles to fill a card, and the work is to read the cache once. So the keys that a
sequence's rows see are cut into `num_splits` ranges, a program each; a program takes all query heads that share a key
head together, so that keys and values are read once and not H / K times. A second, small kernel merges the parts by
log-sum-exp (README.md, "Merging"). Sequences of a batch may see unlike numbers of keys: each divides its own range.

Every tile compares with lo and hi, since reading the cache takes longer than the comparison.

Legend: B batch, T query rows, S keys, H query heads, K key heads, G = H / K, D head dim; M = T * G rows of one key
head, number t * G + g; BM = M rounded up, BN keys of a tile, BD = D rounded up.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention.triton_kernels import LN2, LOG2E, load_tile, seen

MAX_ROWS = 64
"""Most rows M of one key head that are decoded in this way."""
MIN_KEYS = 256
"""Fewer keys are not worth a second kernel."""
BLOCK_KEYS = 64
"""BN."""
MAX_SPLITS = 128


@triton.jit(do_not_specialize=["num_rows", "num_keys", "num_splits"])
def span_attention_decode_kernel(
    p_q, p_k, p_v, p_lo, p_hi, p_part, p_part_lse,
    batch_q: tl.int64, batch_k: tl.int64, batch_v: tl.int64,
    stride_q: tl.int64, stride_k: tl.int64, stride_v: tl.int64, head_q: tl.int64, head_k: tl.int64, head_v: tl.int64,
    num_rows, num_keys, num_splits, scale_log2,
    K: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """part (B * K, splits, M, D) and part_lse (B * K, splits, M), fp32, base 2. Grid: (splits, B * K)."""
    split = tl.program_id(0)
    b, head = (tl.program_id(1) // K).to(tl.int64), (tl.program_id(1) % K).to(tl.int64)
    p_lo += b * num_rows
    p_hi += b * num_rows
    m, dim = tl.arange(0, BM), tl.arange(0, BD)
    t = m // GROUP
    exists = t < num_rows
    b_lo = tl.load(p_lo + t, mask=exists, other=0)
    b_hi = tl.load(p_hi + t, mask=exists, other=0)
    p_rows = p_q + b * batch_q + t.to(tl.int64) * stride_q + (head * GROUP + m % GROUP) * head_q
    b_q = tl.load(p_rows[:, None] + dim[None, :], mask=exists[:, None] & (dim < D)[None, :], other=0.0)

    # this split's share of the range, in whole tiles
    first, end = tl.load(p_lo), tl.load(p_hi + num_rows - 1)
    share = tl.cdiv(tl.cdiv(end - first, BN), num_splits) * BN
    start = first + split * share
    end = tl.minimum(start + share, end)
    b_acc = tl.zeros([BM, BD], tl.float32)
    b_max = tl.full([BM], -float("inf"), tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    p_k += b * batch_k + head * head_k
    p_v += b * batch_v + head * head_v
    for n in tl.range(start, end, BN):
        key = n + tl.arange(0, BN)
        b_k = load_tile(p_k, b, head, n, stride_k, num_keys, BN, BD, D, True, False)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale_log2  # [BM, BN]
        # keys past this split's end belong to the next one
        b_s = tl.where(seen(b_lo[:, None], tl.minimum(b_hi, end)[:, None], key[None, :]), b_s, -float("inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_shift = tl.where(b_new == -float("inf"), 0.0, b_new)
        b_p = tl.exp2(b_s - b_shift[:, None])
        b_alpha = tl.exp2(b_max - b_shift)
        b_sum = b_sum * b_alpha + tl.sum(b_p, 1)
        b_v = load_tile(p_v, b, head, n, stride_v, num_keys, BN, BD, D, True, False)
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_alpha[:, None], input_precision=PRECISION)
        b_max = b_new
    b_acc /= tl.where(b_sum == 0.0, 1.0, b_sum)[:, None]
    at = (tl.program_id(1).to(tl.int64) * num_splits + split) * (num_rows * GROUP) + m
    tl.store(p_part + at[:, None] * D + dim[None, :], b_acc, mask=exists[:, None] & (dim < D)[None, :])
    tl.store(p_part_lse + at, b_max + tl.log2(b_sum), mask=exists)


@triton.jit(do_not_specialize=["num_rows", "num_splits"])
def span_attention_merge_kernel(
    p_part, p_part_lse, p_sink, p_out, p_lse, num_rows, num_splits,
    K: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, SINK: tl.constexpr,
):  # fmt: skip
    """Merge the splits of one row and head into out (B, T, H, D) and lse (B, H, T). Grid: (M, B * K)."""
    m = tl.program_id(0)
    b, head = (tl.program_id(1) // K).to(tl.int64), (tl.program_id(1) % K).to(tl.int64)
    t, h = m // GROUP, head * GROUP + m % GROUP
    dim = tl.arange(0, BD)
    b_acc = tl.zeros([BD], tl.float32)
    b_max, b_sum = -float("inf"), 0.0
    if SINK:
        b_max, b_sum = tl.load(p_sink + h).to(tl.float32) * LOG2E, 1.0
    for split in tl.range(0, num_splits):
        at = (tl.program_id(1).to(tl.int64) * num_splits + split) * (num_rows * GROUP) + m
        b_lse = tl.load(p_part_lse + at)
        b_part = tl.load(p_part + at * D + dim, mask=dim < D, other=0.0)
        b_new = tl.maximum(b_max, b_lse)
        b_shift = tl.where(b_new == -float("inf"), 0.0, b_new)
        b_old, b_weight = tl.exp2(b_max - b_shift), tl.exp2(b_lse - b_shift)
        b_acc = b_acc * b_old + b_part * b_weight
        b_sum = b_sum * b_old + b_weight
        b_max = b_new
    b_acc /= tl.where(b_sum == 0.0, 1.0, b_sum)
    p_row = p_out + ((b * num_rows + t) * (K * GROUP) + h) * D
    tl.store(p_row + dim, b_acc.to(p_out.dtype.element_ty), mask=dim < D)
    tl.store(p_lse + (b * (K * GROUP) + h) * num_rows + t, (b_max + tl.log2(b_sum)) * LN2)


def forward(
    q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, out: Tensor, lse: Tensor, *, scale: float,
    sink: Tensor | None, num_splits: int | None = None,
) -> None:  # fmt: skip
    """Fill out (B, T, H, D) and lse (B, H, T); shapes as in `triton_launch.forward`, T * H / K at most `MAX_ROWS`.

    num_splits: ranges of keys; by default as many as fill the card twice.
    """
    batch, num_rows, heads, dim = q.shape
    num_keys, key_heads = k.shape[1:3]
    group = heads // key_heads
    if num_splits is None:
        processors = torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else 2
        num_splits = triton.cdiv(2 * processors, batch * key_heads)
    num_splits = max(1, min(num_splits, MAX_SPLITS, triton.cdiv(num_keys, BLOCK_KEYS)))
    part = torch.empty(batch * key_heads, num_splits, num_rows * group, dim, dtype=torch.float32, device=q.device)
    part_lse = torch.empty(part.shape[:3], dtype=torch.float32, device=q.device)
    padded = max(16, triton.next_power_of_2(dim))
    span_attention_decode_kernel[num_splits, batch * key_heads](
        q, k, v, lo, hi, part, part_lse, q.stride(0), k.stride(0), v.stride(0), q.stride(1), k.stride(1), v.stride(1),
        q.stride(2), k.stride(2), v.stride(2), num_rows, num_keys, num_splits, scale * LOG2E.value,
        K=key_heads, GROUP=group, D=dim, BD=padded, BM=max(16, triton.next_power_of_2(num_rows * group)),
        BN=BLOCK_KEYS, PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=8 if q.dtype == torch.float32 and padded <= 64 else 4, num_stages=3,
    )  # fmt: skip
    span_attention_merge_kernel[num_rows * group, batch * key_heads](
        part, part_lse, sink, out, lse, num_rows, num_splits,
        K=key_heads, GROUP=group, D=dim, BD=padded, SINK=sink is not None, num_warps=1,
    )  # fmt: skip
