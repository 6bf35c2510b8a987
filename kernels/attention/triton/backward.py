"""The backward of attention over spans in Triton: the device code of its three or four kernels.

Two passes, dk/dv and dq: seven matmuls where a fused backward needs five, but no atomics, so the same inputs
give the same bits. Before them a small kernel writes delta = grad_out . out and lse in base 2, padded to whole tiles;
in fp32 delta is summed anew over the keys (README.md, "Numerics"). Walk, masks, loads and legend: `triton/forward.py`.
"""

import triton
import triton.language as tl

from brine.kernels.attention.triton.forward import (
    LOG2E,
    head_of,
    load_spans,
    load_tile,
    store_tile,
    tile_at,
    tile_ends,
    visible,
)


@triton.jit(do_not_specialize=["num_queries"])
def span_attention_bwd_delta_kernel(
    p_out, p_grad, p_lse, p_delta, p_lse2,
    batch_out: tl.int64, batch_grad: tl.int64, stride_out: tl.int64, stride_grad: tl.int64,
    head_out: tl.int64, head_grad: tl.int64, num_queries, padded_queries,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """delta = grad_out . out, and lse in base 2, +inf for empty queries, so that their weights are 0.

    Both (B, H, padded_queries) fp32, all of which is written. Grid: (tiles of padded queries, B * H).
    """
    b, h = (tl.program_id(1) // H).to(tl.int64), (tl.program_id(1) % H).to(tl.int64)
    first = tl.program_id(0) * BM
    query = first + tl.arange(0, BM)
    p_out += b * batch_out + h * head_out
    p_grad += b * batch_grad + h * head_grad
    b_out = load_tile(p_out, b, h, first, stride_out, num_queries, BM, BD, D, True, False)
    b_grad = load_tile(p_grad, b, h, first, stride_grad, num_queries, BM, BD, D, True, False)
    b_delta = tl.sum(b_out.to(tl.float32) * b_grad.to(tl.float32), 1)
    p_lse += tl.program_id(1).to(tl.int64) * num_queries
    b_lse = tl.load(p_lse + query, mask=query < num_queries, other=-float("inf"))
    at = tl.program_id(1).to(tl.int64) * padded_queries + query
    tl.store(p_delta + at, b_delta)
    tl.store(p_lse2 + at, tl.where(b_lse == -float("inf"), float("inf"), b_lse * LOG2E))


@triton.jit
def bwd_keys_inner(
    b_dk, b_dv, b_k, b_v, p_query_lo, p_query_hi, key, p_q, p_grad, b, head, p_lse2, p_delta, stride_q, stride_grad,
    head_q, head_grad, start, num_left, num_full, num_tiles, num_queries, num_keys, padded_queries, scale_log2,
    GROUP: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, D: tl.constexpr, PARTIAL: tl.constexpr,
    TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add tiles of queries of all GROUP heads to dk and dv [BN, BD] fp32, in one loop to save registers."""
    if PARTIAL:
        # the same mask from the keys' side: two numbers for each key instead of two for each query
        b_query_lo, b_query_hi = load_spans(p_query_lo, p_query_hi, key, num_keys)
    # the pipeline divides before it knows that there is a tile, and from a division by 0 the compiler concludes that
    # there is one: copies without an mbarrier wait, and on an H200 a kernel that never ended
    divisor = tl.maximum(num_tiles, 1)
    for i in tl.range(0, GROUP * num_tiles):
        g, m = i // divisor, tile_at(i % divisor, start, num_left, num_full, BM, PARTIAL)
        query = m + tl.arange(0, BM)
        p_q_g = head_of(p_q, 0, g, 0, head_q, TMA)
        p_grad_g = head_of(p_grad, 0, g, 0, head_grad, TMA)
        b_q = load_tile(p_q_g, b, head + g, m, stride_q, num_queries, BM, BD, D, PARTIAL, TMA)
        b_grad = load_tile(p_grad_g, b, head + g, m, stride_grad, num_queries, BM, BD, D, PARTIAL, TMA)
        # both matmuls before either softmax or delta is read: at D = 128 this order alone fits the registers
        b_st = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)  # [BN, BM]
        b_dpt = tl.dot(b_v, tl.trans(b_grad), input_precision=PRECISION)
        b_pt = tl.exp2(b_st * scale_log2 - tl.load(p_lse2 + g * padded_queries + query)[None, :])
        if PARTIAL:
            b_pt = tl.where(visible(b_query_lo[:, None], b_query_hi[:, None], query[None, :]), b_pt, 0.0)
        b_dst = b_pt * (b_dpt - tl.load(p_delta + g * padded_queries + query)[None, :])
        b_dv = tl.dot(b_pt.to(b_grad.dtype), b_grad, b_dv, input_precision=PRECISION)
        b_dk = tl.dot(b_dst.to(b_q.dtype), b_q, b_dk, input_precision=PRECISION)
    return b_dk, b_dv


@triton.jit(do_not_specialize=["num_queries", "num_keys"])
def span_attention_bwd_keys_kernel(
    p_q, p_k, p_v, p_query_lo, p_query_hi, p_grad, p_lse2, p_delta, p_dk, p_dv,
    batch_q: tl.int64, batch_k: tl.int64, batch_v: tl.int64, batch_grad: tl.int64,
    stride_q: tl.int64, stride_k: tl.int64, stride_v: tl.int64, stride_grad: tl.int64,
    head_q: tl.int64, head_k: tl.int64, head_v: tl.int64, head_grad: tl.int64,
    num_queries, num_keys, padded_queries, scale, scale_log2,
    K: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv (B, S, K, D), contiguous. Grid: (tiles of keys, B * K). All query heads of a KV head in one program.

    Queries [query_lo[j], query_hi[j]) see key j; both are non-decreasing, so the walk has the form of that over
    keys.
    """
    first = tl.program_id(0) * BN
    b, head = (tl.program_id(1) // K).to(tl.int64), (tl.program_id(1) % K).to(tl.int64)
    last = tl.minimum(first + BN, num_keys) - 1
    keys_at = b * num_keys
    p_query_lo += keys_at
    p_query_hi += keys_at
    key = first + tl.arange(0, BN)
    p_k = head_of(p_k, b, head, batch_k, head_k, TMA)
    p_v = head_of(p_v, b, head, batch_v, head_v, TMA)
    b_k = load_tile(p_k, b, head, first, stride_k, num_keys, BN, BD, D, True, TMA)
    b_v = load_tile(p_v, b, head, first, stride_v, num_keys, BN, BD, D, True, TMA)
    b_dk = tl.zeros([BN, BD], tl.float32)
    b_dv = tl.zeros([BN, BD], tl.float32)
    start, num_left, num_full, num_edge = tile_ends(p_query_lo, p_query_hi, first, last, BM)
    if first + BN > num_keys:
        # the last tile holds keys that do not exist, which no query sees: none of its tiles is full
        num_edge += num_full
        num_full = 0
    p_q = head_of(p_q, b, head * GROUP, batch_q, head_q, TMA)
    p_grad = head_of(p_grad, b, head * GROUP, batch_grad, head_grad, TMA)
    p_lse2 += (b * K + head) * GROUP * padded_queries
    p_delta += (b * K + head) * GROUP * padded_queries
    for PARTIAL in tl.static_range(2):
        b_dk, b_dv = bwd_keys_inner(
            b_dk, b_dv, b_k, b_v, p_query_lo, p_query_hi, key, p_q, p_grad, b, head * GROUP, p_lse2, p_delta, stride_q,
            stride_grad, head_q, head_grad, start, num_left, num_full, num_edge if PARTIAL else num_full, num_queries,
            num_keys, padded_queries, scale_log2, GROUP, BM, BD, D, PARTIAL == 1, TMA, PRECISION,
        )  # fmt: skip
    out_at = (keys_at * K + head) * D
    store_tile(p_dk + out_at, first, K * D, num_keys, b_dk * scale, BN, BD, D)
    store_tile(p_dv + out_at, first, K * D, num_keys, b_dv, BN, BD, D)


@triton.jit
def bwd_queries_inner(
    b_dq, b_q, b_grad, b_lse2, b_delta, p_k, p_v, b, head, stride_k, stride_v, p_lo, p_hi, query, start, num_left,
    num_full, num_tiles, num_queries, num_keys, scale_log2, BN: tl.constexpr, BD: tl.constexpr, D: tl.constexpr,
    PARTIAL: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the partial or the full tiles of keys to dq [BM, BD] fp32 of one tile of queries."""
    if PARTIAL:
        b_lo, b_hi = load_spans(p_lo, p_hi, query, num_queries)
    for i in tl.range(0, num_tiles):
        n = tile_at(i, start, num_left, num_full, BN, PARTIAL)
        b_k = load_tile(p_k, b, head, n, stride_k, num_keys, BN, BD, D, PARTIAL, TMA)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # [BM, BN]
        b_p = tl.exp2(b_s * scale_log2 - b_lse2[:, None])
        if PARTIAL:
            key = n + tl.arange(0, BN)
            b_p = tl.where(visible(b_lo[:, None], b_hi[:, None], key[None, :]), b_p, 0.0)
        b_v = load_tile(p_v, b, head, n, stride_v, num_keys, BN, BD, D, PARTIAL, TMA)
        b_dp = tl.dot(b_grad, tl.trans(b_v), input_precision=PRECISION)
        b_ds = b_p * (b_dp - b_delta[:, None])
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision=PRECISION)
    return b_dq


@triton.jit(do_not_specialize=["num_queries", "num_keys"])
def span_attention_bwd_exact_delta_kernel(
    p_q, p_k, p_v, p_lo, p_hi, p_sink, p_grad, p_lse2, p_delta,
    batch_q: tl.int64, batch_k: tl.int64, batch_v: tl.int64, batch_grad: tl.int64,
    stride_q: tl.int64, stride_k: tl.int64, stride_v: tl.int64, stride_grad: tl.int64,
    head_q: tl.int64, head_k: tl.int64, head_v: tl.int64, head_grad: tl.int64,
    num_queries, num_keys, padded_queries, scale_log2,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SINK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """delta = sum_j p_ij dp_ij over the sum of the weights, sink included (README.md, "Numerics").

    Overwrites p_delta (B, H, padded_queries). Two more matmuls, for fp32 alone. Grid: (tiles of queries, B * H).
    """
    b, h = (tl.program_id(1) // H).to(tl.int64), (tl.program_id(1) % H).to(tl.int64)
    first = tl.program_id(0) * BM
    last = tl.minimum(first + BM, num_queries) - 1
    p_k += b * batch_k + (h // GROUP) * head_k
    p_v += b * batch_v + (h // GROUP) * head_v
    p_lo += b * num_queries
    p_hi += b * num_queries

    query = first + tl.arange(0, BM)
    b_lo, b_hi = load_spans(p_lo, p_hi, query, num_queries)
    at = (b * H + h) * padded_queries + query
    b_lse2 = tl.load(p_lse2 + at)
    p_q += b * batch_q + h * head_q
    p_grad += b * batch_grad + h * head_grad
    b_q = load_tile(p_q, b, h, first, stride_q, num_queries, BM, BD, D, True, False)
    b_grad = load_tile(p_grad, b, h, first, stride_grad, num_queries, BM, BD, D, True, False)
    b_delta = tl.zeros([BM], tl.float32)
    b_mass = tl.zeros([BM], tl.float32)
    start, _, num_full, num_edge = tile_ends(p_lo, p_hi, first, last, BN)
    for i in tl.range(0, num_full + num_edge):
        n = start + i * BN
        key = n + tl.arange(0, BN)
        b_k = load_tile(p_k, b, h, n, stride_k, num_keys, BN, BD, D, True, False)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # [BM, BN]
        b_p = tl.exp2(b_s * scale_log2 - b_lse2[:, None])
        b_p = tl.where(visible(b_lo[:, None], b_hi[:, None], key[None, :]), b_p, 0.0)
        b_v = load_tile(p_v, b, h, n, stride_v, num_keys, BN, BD, D, True, False)
        b_delta += tl.sum(b_p * tl.dot(b_grad, tl.trans(b_v), input_precision=PRECISION), 1)
        b_mass += tl.sum(b_p, 1)
    if SINK:
        b_mass += tl.exp2(tl.load(p_sink + h).to(tl.float32) * LOG2E - b_lse2)
    # empty queries, and padding, have an infinite lse and no mass
    tl.store(p_delta + at, b_delta / tl.where(b_mass > 0.0, b_mass, 1.0))


@triton.jit(do_not_specialize=["num_queries", "num_keys"])
def span_attention_bwd_queries_kernel(
    p_q, p_k, p_v, p_lo, p_hi, p_grad, p_lse2, p_delta, p_dq,
    batch_q: tl.int64, batch_k: tl.int64, batch_v: tl.int64, batch_grad: tl.int64,
    stride_q: tl.int64, stride_k: tl.int64, stride_v: tl.int64, stride_grad: tl.int64,
    head_q: tl.int64, head_k: tl.int64, head_v: tl.int64, head_grad: tl.int64,
    num_queries, num_keys, padded_queries, scale, scale_log2,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq (B, T, H, D), contiguous. Grid: (tiles of queries, B * H)."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    b, h = (tl.program_id(1) // H).to(tl.int64), (tl.program_id(1) % H).to(tl.int64)
    first = tile * BM
    last = tl.minimum(first + BM, num_queries) - 1
    queries_at = b * num_queries
    head = h // GROUP
    p_k = head_of(p_k, b, head, batch_k, head_k, TMA)
    p_v = head_of(p_v, b, head, batch_v, head_v, TMA)
    p_lo += queries_at
    p_hi += queries_at

    query = first + tl.arange(0, BM)
    at = (b * H + h) * padded_queries + query
    b_lse2, b_delta = tl.load(p_lse2 + at), tl.load(p_delta + at)
    p_q = head_of(p_q, b, h, batch_q, head_q, TMA)
    p_grad = head_of(p_grad, b, h, batch_grad, head_grad, TMA)
    b_q = load_tile(p_q, b, h, first, stride_q, num_queries, BM, BD, D, True, TMA)
    b_grad = load_tile(p_grad, b, h, first, stride_grad, num_queries, BM, BD, D, True, TMA)
    b_dq = tl.zeros([BM, BD], tl.float32)
    start, num_left, num_full, num_edge = tile_ends(p_lo, p_hi, first, last, BN)
    for PARTIAL in tl.static_range(2):
        b_dq = bwd_queries_inner(
            b_dq, b_q, b_grad, b_lse2, b_delta, p_k, p_v, b, head, stride_k, stride_v, p_lo, p_hi, query, start,
            num_left, num_full, num_edge if PARTIAL else num_full, num_queries, num_keys, scale_log2, BN, BD, D,
            PARTIAL == 1, TMA, PRECISION,
        )  # fmt: skip
    store_tile(p_dq + (queries_at * H + h) * D, first, H * D, num_queries, b_dq * scale, BM, BD, D)
