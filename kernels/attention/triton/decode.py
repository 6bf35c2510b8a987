"""Decoding in Triton: few queries against a long cache, split over keys.

A few queries make too few tiles to fill a GPU, and the work is to read the cache once. So the visible keys of a batch
are cut into equal parts, a program each, which takes all query heads of a KV head; a second kernel merges a sequence's
parts by log-sum-exp (README.md, "Decoding" and "Merging"). Parts are found on the GPU (`split_kv`) and the launch
depends on shapes alone, so that one captured CUDA graph serves every step of a generation.

Legend: B batch, T queries, S keys, H query heads, K KV heads, G = H / K, D head dim; P programs of a KV head; M =
T * G queries of one KV head, number t * G + g; BM = M rounded up, BN keys of a tile, BD and BB = D and B rounded up.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from brine.kernels.attention.triton.forward import LN2, LOG2E, load_tile, visible

MAX_ROWS = 64  # maximum queries M of one KV head that are decoded in this way
MIN_KEYS = 256  # with fewer keys a second kernel does not pay
BLOCK_KEYS = 64  # BN; half of it for wide heads in fp32, whose matmuls have no tensor cores and want the registers
WAVES = 4  # programs for each multiprocessor, about; two are resident at a time
MAX_PROGRAMS = 512  # maximum programs of a KV head: the parts that one program of the second kernel may have to merge


@triton.jit
def split_kv(p_lo, p_hi, num_queries, num_programs, B: tl.constexpr, BB: tl.constexpr, BN: tl.constexpr):
    """Programs of a KV head -> sequences: tiles of keys of one program; [BB] programs of each sequence, and cumulated.

    A sequence of n tiles gets cdiv(n, tiles_per_program) programs; with cdiv(all tiles, P - B) tiles a program these
    are at most (P - B) + B = P, and any beyond have nothing to do.
    """
    b = tl.arange(0, BB)
    first = tl.load(p_lo + b * num_queries, mask=b < B, other=0)
    end = tl.load(p_hi + b * num_queries + num_queries - 1, mask=b < B, other=0)
    tiles = tl.cdiv(end - first, BN)
    tiles_per_program = tl.maximum(tl.cdiv(tl.sum(tiles, 0), num_programs - B), 1)
    counts = tl.cdiv(tiles, tiles_per_program)
    return tiles_per_program, counts, tl.cumsum(counts, 0)


@triton.jit(do_not_specialize=["num_queries", "num_keys", "num_programs"])
def span_attention_decode_kernel(
    p_q, p_k, p_v, p_lo, p_hi, p_part, p_part_lse,
    batch_q: tl.int64, batch_k: tl.int64, batch_v: tl.int64,
    stride_q: tl.int64, stride_k: tl.int64, stride_v: tl.int64, head_q: tl.int64, head_k: tl.int64, head_v: tl.int64,
    num_queries, num_keys, num_programs, scale_log2,
    B: tl.constexpr, BB: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """part (K, P, M, D) and part_lse (K, P, M), fp32, base 2; only those of programs with work. Grid: (P, K)."""
    program, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tiles_per_program, counts, ends = split_kv(p_lo, p_hi, num_queries, num_programs, B, BB, BN)
    # the sequence is the one before whose end this program comes
    sequence = tl.sum((ends <= program).to(tl.int32), 0)
    if sequence >= B:
        return
    split = program - tl.sum(tl.where(tl.arange(0, BB) < sequence, counts, 0), 0)
    b = sequence.to(tl.int64)
    p_lo += b * num_queries
    p_hi += b * num_queries
    m, dim = tl.arange(0, BM), tl.arange(0, BD)
    t = m // GROUP
    exists = t < num_queries
    b_lo = tl.load(p_lo + t, mask=exists, other=0)
    b_hi = tl.load(p_hi + t, mask=exists, other=0)
    p_queries = p_q + b * batch_q + t.to(tl.int64) * stride_q + (head * GROUP + m % GROUP) * head_q
    b_q = tl.load(p_queries[:, None] + dim[None, :], mask=exists[:, None] & (dim < D)[None, :], other=0.0)

    first, end = tl.load(p_lo), tl.load(p_hi + num_queries - 1)
    start = first + split * tiles_per_program * BN
    end = tl.minimum(start + tiles_per_program * BN, end)
    b_acc = tl.zeros([BM, BD], tl.float32)
    b_max = tl.full([BM], -float("inf"), tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    p_k += b * batch_k + head * head_k
    p_v += b * batch_v + head * head_v
    for n in tl.range(start, end, BN):
        key = n + tl.arange(0, BN)
        b_k = load_tile(p_k, b, head, n, stride_k, num_keys, BN, BD, D, True, False)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale_log2  # [BM, BN]
        # keys past this part's end belong to the next one
        b_s = tl.where(visible(b_lo[:, None], tl.minimum(b_hi, end)[:, None], key[None, :]), b_s, -float("inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_shift = tl.where(b_new == -float("inf"), 0.0, b_new)
        b_p = tl.exp2(b_s - b_shift[:, None])
        b_alpha = tl.exp2(b_max - b_shift)
        b_sum = b_sum * b_alpha + tl.sum(b_p, 1)
        b_v = load_tile(p_v, b, head, n, stride_v, num_keys, BN, BD, D, True, False)
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_alpha[:, None], input_precision=PRECISION)
        b_max = b_new
    b_acc /= tl.where(b_sum == 0.0, 1.0, b_sum)[:, None]
    at = (head * num_programs + program) * (num_queries * GROUP) + m
    tl.store(p_part + at[:, None] * D + dim[None, :], b_acc, mask=exists[:, None] & (dim < D)[None, :])
    tl.store(p_part_lse + at, b_max + tl.log2(b_sum), mask=exists)


@triton.jit(do_not_specialize=["num_queries", "num_programs"])
def span_attention_merge_kernel(
    p_part, p_part_lse, p_lo, p_hi, p_sink, p_out, p_lse, num_queries, num_programs,
    B: tl.constexpr, BB: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
    BN: tl.constexpr, SINK: tl.constexpr,
):  # fmt: skip
    """Merge the parts of one query and head into out (B, T, H, D) and lse (B, H, T). Grid: (M, B * K)."""
    m = tl.program_id(0)
    sequence, head = tl.program_id(1) // K, (tl.program_id(1) % K).to(tl.int64)
    b, t, h = sequence.to(tl.int64), m // GROUP, head * GROUP + m % GROUP
    _, counts, _ = split_kv(p_lo, p_hi, num_queries, num_programs, B, BB, BN)
    before = tl.sum(tl.where(tl.arange(0, BB) < sequence, counts, 0), 0)
    count = tl.sum(tl.where(tl.arange(0, BB) == sequence, counts, 0), 0)
    dim = tl.arange(0, BD)
    b_acc = tl.zeros([BD], tl.float32)
    b_max, b_sum = -float("inf"), 0.0
    if SINK:
        b_max, b_sum = tl.load(p_sink + h).to(tl.float32) * LOG2E, 1.0
    for program in tl.range(before, before + count):
        at = (head * num_programs + program) * (num_queries * GROUP) + m
        b_lse = tl.load(p_part_lse + at)
        b_part = tl.load(p_part + at * D + dim, mask=dim < D, other=0.0)
        b_new = tl.maximum(b_max, b_lse)
        b_shift = tl.where(b_new == -float("inf"), 0.0, b_new)
        b_old, b_weight = tl.exp2(b_max - b_shift), tl.exp2(b_lse - b_shift)
        b_acc = b_acc * b_old + b_part * b_weight
        b_sum = b_sum * b_old + b_weight
        b_max = b_new
    b_acc /= tl.where(b_sum == 0.0, 1.0, b_sum)
    p_query = p_out + ((b * num_queries + t) * (K * GROUP) + h) * D
    tl.store(p_query + dim, b_acc.to(p_out.dtype.element_ty), mask=dim < D)
    tl.store(p_lse + (b * (K * GROUP) + h) * num_queries + t, (b_max + tl.log2(b_sum)) * LN2)


def forward(
    q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, out: Tensor, lse: Tensor, *, scale: float,
    sink: Tensor | None, num_programs: int | None = None,
) -> None:  # fmt: skip
    """Fill out (B, T, H, D), of any dtype, and lse (B, H, T), for T * H / K of at most `MAX_ROWS`.

    num_programs: P, more than B, by default as `programs_of`. A CUDA graph of it reads lo, hi, q, k and v anew at each
    replay.
    """
    batch, num_queries, heads, dim = q.shape
    num_keys, key_heads = k.shape[1:3]
    group = heads // key_heads
    if num_programs is None:
        num_programs = programs_of(batch, num_keys, key_heads, _processors(q.device.index) if q.is_cuda else 2)
    part = torch.empty(key_heads, num_programs, num_queries * group, dim, dtype=torch.float32, device=q.device)
    part_lse = torch.empty(part.shape[:3], dtype=torch.float32, device=q.device)
    padded, exact = max(16, triton.next_power_of_2(dim)), q.dtype == torch.float32
    shared = {"B": batch, "BB": max(16, triton.next_power_of_2(batch)), "K": key_heads, "GROUP": group, "D": dim,
             "BD": padded, "BN": BLOCK_KEYS // 2 if exact and padded > 64 else BLOCK_KEYS}  # fmt: skip
    span_attention_decode_kernel[num_programs, key_heads](
        q, k, v, lo, hi, part, part_lse, *(x.stride(i) for i in (0, 1, 2) for x in (q, k, v)),
        num_queries, num_keys, num_programs, scale * LOG2E.value,
        BM=max(16, triton.next_power_of_2(num_queries * group)), PRECISION="ieee" if exact else "tf32",
        **shared, num_warps=8 if exact else 4, num_stages=3,
    )  # fmt: skip
    span_attention_merge_kernel[num_queries * group, batch * key_heads](
        part, part_lse, lo, hi, sink, out, lse, num_queries, num_programs, SINK=sink is not None, **shared, num_warps=1,
    )  # fmt: skip


def programs_of(batch: int, num_keys: int, key_heads: int, processors: int) -> int:
    """P: as many as give each multiprocessor `WAVES` programs, at most one for each tile of keys, and more than B."""
    most = min(triton.cdiv(WAVES * processors, key_heads), MAX_PROGRAMS, batch * triton.cdiv(num_keys, BLOCK_KEYS))
    return batch + max(most, 1)


@lru_cache
def _processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count
