"""Attention over spans in Triton, portable over NVIDIA's sm_80, sm_90 and sm_100: the device code.

One program computes one tile of queries and walks the keys that they see, which are one range (README.md, "The tile
walk"): full tiles without a comparison, partial tiles with one. Follows FlashAttention-2 (Dao 2023, 2307.08691) in the
online softmax and in what is kept for the backward. Scores are in base 2; sums, softmax and accumulators are fp32.
Addresses are int64 where they grow with B, T or S, and int32 inside a tile. Kernels are not specialized on token
counts.

Legend: B batch, T queries, S keys, H query heads, K KV heads, D head dim; BM queries of a tile, BN keys of a tile,
BD = D rounded up to a power of two.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def visible(lo, hi, key):
    """The mask by value: does a query see a key? Also with query_lo, query_hi and a query. Broadcasts."""
    return (lo <= key) & (key < hi)


@triton.jit
def load_spans(p_lo, p_hi, at, size):
    """lo and hi of some queries (or query_lo and query_hi of some keys); those that do not exist see nothing."""
    return tl.load(p_lo + at, mask=at < size, other=0), tl.load(p_hi + at, mask=at < size, other=0)


@triton.jit
def head_of(p_x, b, head, batch_stride, head_stride, TMA: tl.constexpr):
    """What `load_tile` reads one head of one sequence from: its first token's address, or the descriptor as it is."""
    # one return: what follows a return is compiled as well, and a descriptor has no sum
    if not TMA:
        p_x += b * batch_stride + head * head_stride
    return p_x


@triton.jit
def load_tile(
    p_x, b, head, first, stride, size,
    BLOCK: tl.constexpr, BD: tl.constexpr, D: tl.constexpr, CHECK: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """[BLOCK, BD] consecutive tokens of one head from token `first` on. 0 beyond D, and beyond `size` with CHECK.

    With TMA, p_x is a descriptor of (B, heads, tokens, D), which knows all ends itself; else an address by `head_of`.
    """
    if TMA:
        b_x = p_x.load([b.to(tl.int32), head.to(tl.int32), first, 0]).reshape([BLOCK, BD])
    else:
        token, dim = tl.arange(0, BLOCK), tl.arange(0, BD)
        p_tile = p_x + first * stride.to(tl.int64) + (token * stride.to(tl.int32))[:, None] + dim[None, :]
        if BD == D and not CHECK:
            b_x = tl.load(p_tile)
        elif BD == D:
            b_x = tl.load(p_tile, mask=(first + token < size)[:, None], other=0.0)
        elif CHECK:
            b_x = tl.load(p_tile, mask=(first + token < size)[:, None] & (dim < D)[None, :], other=0.0)
        else:
            b_x = tl.load(p_tile, mask=(dim < D)[None, :], other=0.0)
    return b_x


@triton.jit
def store_tile(p_base, first, stride, size, b_x, BLOCK: tl.constexpr, BD: tl.constexpr, D: tl.constexpr):
    """Write [BLOCK, BD] to consecutive tokens of one head, those inside `size` and D."""
    token, dim = tl.arange(0, BLOCK), tl.arange(0, BD)
    p_tile = p_base + (first + token).to(tl.int64)[:, None] * stride + dim[None, :]
    tl.store(p_tile, b_x.to(p_base.dtype.element_ty), mask=(first + token < size)[:, None] & (dim < D)[None, :])


@triton.jit
def tile_ends(p_lo, p_hi, first, last, BLOCK: tl.constexpr):
    """How queries first .. last walk their keys, in tiles of BLOCK -> start, num_left, num_full, num_edge.

    From key `start` on come num_left partial tiles, num_full full ones (visible to all) and the rest of the num_edge
    partial.
    """
    lo_min, lo_max = tl.load(p_lo + first), tl.load(p_lo + last)
    hi_min, hi_max = tl.load(p_hi + first), tl.load(p_hi + last)
    start = lo_min // BLOCK
    num_tiles = tl.cdiv(hi_max, BLOCK) - start
    num_left = tl.cdiv(lo_max, BLOCK) - start
    num_full = tl.maximum(hi_min // BLOCK - start - num_left, 0)
    # without full tiles there is no left and right, only one range of partial ones
    return start * BLOCK, num_left, num_full, tl.maximum(num_tiles - num_full, 0)


@triton.jit
def tile_at(i, start, num_left, num_full, BLOCK: tl.constexpr, PARTIAL: tl.constexpr):
    """Where the i-th partial tile begins, or the i-th full one."""
    if PARTIAL:
        return start + (i + tl.where(i >= num_left, num_full, 0)) * BLOCK
    return start + (i + num_left) * BLOCK


@triton.jit
def fwd_inner(
    b_acc, b_max, b_sum, b_q, p_k, p_v, b, head, stride_k, stride_v, p_lo, p_hi, query, start, num_left, num_full,
    num_tiles, num_queries, num_keys, scale_log2, BN: tl.constexpr, BD: tl.constexpr, D: tl.constexpr,
    PARTIAL: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take the partial or the full tiles of keys into the running softmax: b_acc [BM, BD], b_max, b_sum [BM], fp32.

    b_max is scaled already; scores are not: scaling and shifting them is one multiply-add in front of exp2.
    """
    if PARTIAL:
        b_lo, b_hi = load_spans(p_lo, p_hi, query, num_queries)
    for i in tl.range(0, num_tiles):
        n = tile_at(i, start, num_left, num_full, BN, PARTIAL)
        b_k = load_tile(p_k, b, head, n, stride_k, num_keys, BN, BD, D, PARTIAL, TMA)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # [BM, BN]
        if PARTIAL:
            key = n + tl.arange(0, BN)
            b_s = tl.where(visible(b_lo[:, None], b_hi[:, None], key[None, :]), b_s, -float("inf"))
        # scale > 0 (the launcher sees to it), so the largest score is the largest scaled one
        b_new = tl.maximum(b_max, tl.max(b_s, 1) * scale_log2)
        # a query that has seen nothing yet keeps -inf; shifting by 0 instead gives exp2(-inf) = 0, not NaN
        b_shift = tl.where(b_new == -float("inf"), 0.0, b_new) if PARTIAL else b_new
        b_p = tl.exp2(b_s * scale_log2 - b_shift[:, None])
        b_alpha = tl.exp2(b_max - b_shift)
        b_sum = b_sum * b_alpha + tl.sum(b_p, 1)
        b_v = load_tile(p_v, b, head, n, stride_v, num_keys, BN, BD, D, PARTIAL, TMA)
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_alpha[:, None], input_precision=PRECISION)
        b_max = b_new
    return b_acc, b_max, b_sum


@triton.jit(do_not_specialize=["num_queries", "num_keys"])
def span_attention_fwd_kernel(
    p_q, p_k, p_v, p_lo, p_hi, p_sink, p_out, p_lse,
    batch_q: tl.int64, batch_k: tl.int64, batch_v: tl.int64,
    stride_q: tl.int64, stride_k: tl.int64, stride_v: tl.int64, head_q: tl.int64, head_k: tl.int64, head_v: tl.int64,
    num_queries, num_keys, scale_log2,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SINK: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out (B, T, H, D) and lse (B, H, T), contiguous. Grid: (tiles of queries, B * H)."""
    # the last queries see most where spans are causal, and the longest work had better begin first
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
    p_q = head_of(p_q, b, h, batch_q, head_q, TMA)
    b_q = load_tile(p_q, b, h, first, stride_q, num_queries, BM, BD, D, True, TMA)
    b_acc = tl.zeros([BM, BD], tl.float32)
    b_max = tl.full([BM], -float("inf"), tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    if SINK:
        # a key with this score and value 0, visible to every query
        b_max = tl.zeros([BM], tl.float32) + tl.load(p_sink + h).to(tl.float32) * LOG2E
        b_sum = tl.full([BM], 1.0, tl.float32)

    start, num_left, num_full, num_edge = tile_ends(p_lo, p_hi, first, last, BN)
    for PARTIAL in tl.static_range(2):
        b_acc, b_max, b_sum = fwd_inner(
            b_acc, b_max, b_sum, b_q, p_k, p_v, b, head, stride_k, stride_v, p_lo, p_hi, query, start, num_left,
            num_full, num_edge if PARTIAL else num_full, num_queries, num_keys, scale_log2, BN, BD, D, PARTIAL == 1,
            TMA, PRECISION,
        )  # fmt: skip

    b_out = b_acc / tl.where(b_sum == 0.0, 1.0, b_sum)[:, None]
    b_lse = (b_max + tl.log2(b_sum)) * LN2
    store_tile(p_out + (queries_at * H + h) * D, first, H * D, num_queries, b_out, BM, BD, D)
    tl.store(p_lse + queries_at * H + h * num_queries + query, b_lse, mask=query < num_queries)
