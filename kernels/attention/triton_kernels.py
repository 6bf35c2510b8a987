"""Attention over spans in Triton, portable over NVIDIA's sm_80, sm_90 and sm_100: the device code.

One program computes one tile. Since both ends of the spans never decrease along the rows, the keys that a tile of rows
sees are one range, and so are the keys that all of its rows see; a program walks

    [min lo, max lo)   partial: scores are compared with lo and hi, row by row
    [max lo, min hi)   full:    no comparison at all
    [min hi, max hi)   partial

rounded to whole tiles of keys (README.md has the figure). Where max lo >= min hi there is no full range and all of
[min lo, max hi) is partial. The backward walks keys the same way for dq; for dk and dv it walks the rows that see a
tile of keys, which are one range too, found beforehand by search (`row_lo`, `row_hi`: the columns of the mask).

The backward is two passes, dk/dv and dq: seven matrix products where a fused one needs five, but no atomics, so the
same inputs give the same bits. Follows FlashAttention-2 (Dao 2023, 2307.08691) in the online softmax and in what is
kept for the backward. Scores are in base 2: exp2 of scale * log2(e) * q . k.

Sums, softmax and accumulators are fp32. Addresses are int64 where they grow with B, T or S; inside a tile they are
int32. Token counts are never specialised on, so other lengths or documents do not compile anew.

Launching, tile sizes and what is refused are in `triton_launch.py`; decoding with few rows is in `triton_decode.py`.

Legend: B batch, T query rows, S keys, H query heads, K key heads, D head dim; BM rows of a tile, BN keys of a tile,
BD = D rounded up to a power of two.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def seen(lo, hi, key):
    """The mask, the only place where the Triton backend applies it by value: does a row see a key? With row_lo, row_hi
    and a row instead of lo, hi and a key: is a key seen by a row? Broadcasts."""
    return (lo <= key) & (key < hi)


@triton.jit
def load_spans(p_lo, p_hi, at, size):
    """lo and hi of some rows (or row_lo and row_hi of some keys); those that do not exist see nothing."""
    return tl.load(p_lo + at, mask=at < size, other=0), tl.load(p_hi + at, mask=at < size, other=0)


@triton.jit
def load_tile(p_base, first, stride, size, BLOCK: tl.constexpr, BD: tl.constexpr, D: tl.constexpr, CHECK: tl.constexpr):
    """[BLOCK, BD] consecutive tokens of one head from token `first` on. 0 beyond D, and beyond `size` with CHECK."""
    token, dim = tl.arange(0, BLOCK), tl.arange(0, BD)
    p_tile = p_base + first * stride.to(tl.int64) + (token * stride.to(tl.int32))[:, None] + dim[None, :]
    inside = (first + token < size)[:, None]
    if BD == D:
        if CHECK:
            return tl.load(p_tile, mask=inside, other=0.0)
        return tl.load(p_tile)
    if CHECK:
        return tl.load(p_tile, mask=inside & (dim < D)[None, :], other=0.0)
    return tl.load(p_tile, mask=(dim < D)[None, :], other=0.0)


@triton.jit
def store_tile(p_base, first, stride, size, b_x, BLOCK: tl.constexpr, BD: tl.constexpr, D: tl.constexpr):
    """Write [BLOCK, BD] to consecutive tokens of one head, those inside `size` and D."""
    token, dim = tl.arange(0, BLOCK), tl.arange(0, BD)
    p_tile = p_base + (first + token).to(tl.int64)[:, None] * stride + dim[None, :]
    tl.store(p_tile, b_x.to(p_base.dtype.element_ty), mask=(first + token < size)[:, None] & (dim < D)[None, :])


@triton.jit
def tile_ends(p_lo, p_hi, first, last, BLOCK: tl.constexpr):
    """How the rows first .. last walk their keys, in tiles of BLOCK.

    -> start, num_left, num_full, num_edge: from key `start` on come num_left partial tiles, num_full full ones and the
    rest of the num_edge partial ones. Full tiles are seen whole by all of the rows.
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
def fwd_walk(
    b_acc, b_max, b_sum, b_q, p_k, p_v, stride_k, stride_v, p_lo, p_hi, row, start, num_left, num_full, num_tiles,
    num_rows, num_keys, scale_log2,
    BN: tl.constexpr, BD: tl.constexpr, D: tl.constexpr, PARTIAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take the partial or the full tiles of keys into the running softmax: b_acc [BM, BD], b_max, b_sum [BM], fp32."""
    if PARTIAL:
        b_lo, b_hi = load_spans(p_lo, p_hi, row, num_rows)
    for i in tl.range(0, num_tiles):
        n = tile_at(i, start, num_left, num_full, BN, PARTIAL)
        b_k = load_tile(p_k, n, stride_k, num_keys, BN, BD, D, PARTIAL)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale_log2  # [BM, BN]
        if PARTIAL:
            key = n + tl.arange(0, BN)
            b_s = tl.where(seen(b_lo[:, None], b_hi[:, None], key[None, :]), b_s, -float("inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        # a row that has seen nothing yet keeps -inf; shifting by 0 instead gives exp2(-inf) = 0, not NaN
        b_shift = tl.where(b_new == -float("inf"), 0.0, b_new) if PARTIAL else b_new
        b_p = tl.exp2(b_s - b_shift[:, None])
        b_alpha = tl.exp2(b_max - b_shift)
        b_sum = b_sum * b_alpha + tl.sum(b_p, 1)
        b_v = load_tile(p_v, n, stride_v, num_keys, BN, BD, D, PARTIAL)
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_alpha[:, None], input_precision=PRECISION)
        b_max = b_new
    return b_acc, b_max, b_sum


@triton.jit(do_not_specialize=["num_rows", "num_keys"])
def span_attention_fwd_kernel(
    p_q, p_k, p_v, p_lo, p_hi, p_sink, p_out, p_lse,
    batch_q: tl.int64, batch_k: tl.int64, batch_v: tl.int64,
    stride_q: tl.int64, stride_k: tl.int64, stride_v: tl.int64, head_q: tl.int64, head_k: tl.int64, head_v: tl.int64,
    num_rows, num_keys, scale_log2,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SINK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out (B, T, H, D) and lse (B, H, T), contiguous. Grid: (tiles of rows, B * H)."""
    # the last rows see most where spans are causal, and the longest work had better begin first
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    b, h = (tl.program_id(1) // H).to(tl.int64), (tl.program_id(1) % H).to(tl.int64)
    first = tile * BM
    last = tl.minimum(first + BM, num_rows) - 1
    rows_at = b * num_rows
    p_q += b * batch_q + h * head_q
    p_k += b * batch_k + (h // GROUP) * head_k
    p_v += b * batch_v + (h // GROUP) * head_v
    p_lo += rows_at
    p_hi += rows_at

    row = first + tl.arange(0, BM)
    b_q = load_tile(p_q, first, stride_q, num_rows, BM, BD, D, True)
    b_acc = tl.zeros([BM, BD], tl.float32)
    b_max = tl.full([BM], -float("inf"), tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    if SINK:
        # a key with this score and value 0, seen by every row
        b_max = tl.zeros([BM], tl.float32) + tl.load(p_sink + h).to(tl.float32) * LOG2E
        b_sum = tl.full([BM], 1.0, tl.float32)

    start, num_left, num_full, num_edge = tile_ends(p_lo, p_hi, first, last, BN)
    b_acc, b_max, b_sum = fwd_walk(
        b_acc, b_max, b_sum, b_q, p_k, p_v, stride_k, stride_v, p_lo, p_hi, row, start, num_left, num_full, num_full,
        num_rows, num_keys, scale_log2, BN, BD, D, False, PRECISION,
    )  # fmt: skip
    b_acc, b_max, b_sum = fwd_walk(
        b_acc, b_max, b_sum, b_q, p_k, p_v, stride_k, stride_v, p_lo, p_hi, row, start, num_left, num_full, num_edge,
        num_rows, num_keys, scale_log2, BN, BD, D, True, PRECISION,
    )  # fmt: skip

    b_out = b_acc / tl.where(b_sum == 0.0, 1.0, b_sum)[:, None]
    b_lse = (b_max + tl.log2(b_sum)) * LN2
    store_tile(p_out + (rows_at * H + h) * D, first, H * D, num_rows, b_out, BM, BD, D)
    tl.store(p_lse + rows_at * H + h * num_rows + row, b_lse, mask=row < num_rows)


@triton.jit(do_not_specialize=["num_rows"])
def span_attention_bwd_delta_kernel(
    p_out, p_grad, p_lse, p_delta, p_lse2,
    batch_out: tl.int64, batch_grad: tl.int64, stride_out: tl.int64, stride_grad: tl.int64,
    head_out: tl.int64, head_grad: tl.int64, num_rows, padded_rows,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """delta = grad_out . out, and lse in base 2 with +inf for rows that see nothing, so that their weights are 0.

    Both (B, H, padded_rows) fp32, all of which is written, so that whole tiles of them can be read. Grid: (tiles of
    padded rows, B * H).
    """
    b, h = (tl.program_id(1) // H).to(tl.int64), (tl.program_id(1) % H).to(tl.int64)
    first = tl.program_id(0) * BM
    row = first + tl.arange(0, BM)
    b_out = load_tile(p_out + b * batch_out + h * head_out, first, stride_out, num_rows, BM, BD, D, True)
    b_grad = load_tile(p_grad + b * batch_grad + h * head_grad, first, stride_grad, num_rows, BM, BD, D, True)
    b_delta = tl.sum(b_out.to(tl.float32) * b_grad.to(tl.float32), 1)
    p_lse += tl.program_id(1).to(tl.int64) * num_rows
    b_lse = tl.load(p_lse + row, mask=row < num_rows, other=-float("inf"))
    at = tl.program_id(1).to(tl.int64) * padded_rows + row
    tl.store(p_delta + at, b_delta)
    tl.store(p_lse2 + at, tl.where(b_lse == -float("inf"), float("inf"), b_lse * LOG2E))


@triton.jit
def bwd_keys_walk(
    b_dk, b_dv, b_k, b_v, p_row_lo, p_row_hi, key, p_q, p_grad, p_lse2, p_delta, stride_q, stride_grad,
    head_q, head_grad, start, num_left, num_full, num_tiles, num_rows, num_keys, padded_rows, scale_log2,
    GROUP: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, D: tl.constexpr, PARTIAL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what the partial or the full tiles of rows of all GROUP query heads give to dk and dv, both [BN, BD] fp32.

    One loop over heads and tiles: a loop in a loop costs registers that this walk has not got to spare.
    """
    if PARTIAL:
        # the same mask from the keys' side: two numbers for each key instead of two for each row
        b_row_lo, b_row_hi = load_spans(p_row_lo, p_row_hi, key, num_keys)
    for i in tl.range(0, GROUP * num_tiles):
        g, m = i // num_tiles, tile_at(i % num_tiles, start, num_left, num_full, BM, PARTIAL)
        row = m + tl.arange(0, BM)
        b_q = load_tile(p_q + g * head_q, m, stride_q, num_rows, BM, BD, D, PARTIAL)
        b_grad = load_tile(p_grad + g * head_grad, m, stride_grad, num_rows, BM, BD, D, PARTIAL)
        # both products before either softmax or delta is read: at D = 128 this order alone fits the registers
        b_st = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION) * scale_log2  # [BN, BM]
        b_dpt = tl.dot(b_v, tl.trans(b_grad), input_precision=PRECISION)
        b_pt = tl.exp2(b_st - tl.load(p_lse2 + g * padded_rows + row)[None, :])
        if PARTIAL:
            b_pt = tl.where(seen(b_row_lo[:, None], b_row_hi[:, None], row[None, :]), b_pt, 0.0)
        b_dst = b_pt * (b_dpt - tl.load(p_delta + g * padded_rows + row)[None, :])
        b_dv = tl.dot(b_pt.to(b_grad.dtype), b_grad, b_dv, input_precision=PRECISION)
        b_dk = tl.dot(b_dst.to(b_q.dtype), b_q, b_dk, input_precision=PRECISION)
    return b_dk, b_dv


@triton.jit(do_not_specialize=["num_rows", "num_keys"])
def span_attention_bwd_keys_kernel(
    p_q, p_k, p_v, p_row_lo, p_row_hi, p_grad, p_lse2, p_delta, p_dk, p_dv,
    batch_q: tl.int64, batch_k: tl.int64, batch_v: tl.int64, batch_grad: tl.int64,
    stride_q: tl.int64, stride_k: tl.int64, stride_v: tl.int64, stride_grad: tl.int64,
    head_q: tl.int64, head_k: tl.int64, head_v: tl.int64, head_grad: tl.int64,
    num_rows, num_keys, padded_rows, scale, scale_log2,
    K: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv (B, S, K, D), contiguous. Grid: (tiles of keys, B * K). All query heads of a key head in one program.

    Key j is seen by the rows [row_lo[j], row_hi[j]); both never decrease, so the walk over rows has the form of the
    walk over keys.
    """
    first = tl.program_id(0) * BN
    b, head = (tl.program_id(1) // K).to(tl.int64), (tl.program_id(1) % K).to(tl.int64)
    last = tl.minimum(first + BN, num_keys) - 1
    keys_at = b * num_keys
    p_row_lo += keys_at
    p_row_hi += keys_at
    key = first + tl.arange(0, BN)
    b_k = load_tile(p_k + b * batch_k + head * head_k, first, stride_k, num_keys, BN, BD, D, True)
    b_v = load_tile(p_v + b * batch_v + head * head_v, first, stride_v, num_keys, BN, BD, D, True)
    b_dk = tl.zeros([BN, BD], tl.float32)
    b_dv = tl.zeros([BN, BD], tl.float32)
    start, num_left, num_full, num_edge = tile_ends(p_row_lo, p_row_hi, first, last, BM)
    if first + BN > num_keys:
        # the last tile holds keys that do not exist, which no row sees: none of its tiles is full
        num_edge += num_full
        num_full = 0
    p_q += b * batch_q + head * GROUP * head_q
    p_grad += b * batch_grad + head * GROUP * head_grad
    p_lse2 += (b * K + head) * GROUP * padded_rows
    p_delta += (b * K + head) * GROUP * padded_rows
    b_dk, b_dv = bwd_keys_walk(
        b_dk, b_dv, b_k, b_v, p_row_lo, p_row_hi, key, p_q, p_grad, p_lse2, p_delta, stride_q, stride_grad,
        head_q, head_grad, start, num_left, num_full, num_full, num_rows, num_keys, padded_rows, scale_log2,
        GROUP, BM, BD, D, False, PRECISION,
    )  # fmt: skip
    b_dk, b_dv = bwd_keys_walk(
        b_dk, b_dv, b_k, b_v, p_row_lo, p_row_hi, key, p_q, p_grad, p_lse2, p_delta, stride_q, stride_grad,
        head_q, head_grad, start, num_left, num_full, num_edge, num_rows, num_keys, padded_rows, scale_log2,
        GROUP, BM, BD, D, True, PRECISION,
    )  # fmt: skip
    out_at = (keys_at * K + head) * D
    store_tile(p_dk + out_at, first, K * D, num_keys, b_dk * scale, BN, BD, D)
    store_tile(p_dv + out_at, first, K * D, num_keys, b_dv, BN, BD, D)


@triton.jit
def bwd_rows_walk(
    b_dq, b_q, b_grad, b_lse2, b_delta, p_k, p_v, stride_k, stride_v, p_lo, p_hi, row, start, num_left, num_full,
    num_tiles, num_rows, num_keys, scale_log2,
    BN: tl.constexpr, BD: tl.constexpr, D: tl.constexpr, PARTIAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what the partial or the full tiles of keys give to dq of one tile of rows. b_dq [BM, BD] fp32."""
    if PARTIAL:
        b_lo, b_hi = load_spans(p_lo, p_hi, row, num_rows)
    for i in tl.range(0, num_tiles):
        n = tile_at(i, start, num_left, num_full, BN, PARTIAL)
        b_k = load_tile(p_k, n, stride_k, num_keys, BN, BD, D, PARTIAL)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale_log2  # [BM, BN]
        b_p = tl.exp2(b_s - b_lse2[:, None])
        if PARTIAL:
            key = n + tl.arange(0, BN)
            b_p = tl.where(seen(b_lo[:, None], b_hi[:, None], key[None, :]), b_p, 0.0)
        b_v = load_tile(p_v, n, stride_v, num_keys, BN, BD, D, PARTIAL)
        b_dp = tl.dot(b_grad, tl.trans(b_v), input_precision=PRECISION)
        b_ds = b_p * (b_dp - b_delta[:, None])
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision=PRECISION)
    return b_dq


@triton.jit(do_not_specialize=["num_rows", "num_keys"])
def span_attention_bwd_exact_delta_kernel(
    p_q, p_k, p_v, p_lo, p_hi, p_grad, p_lse2, p_delta,
    batch_q: tl.int64, batch_k: tl.int64, batch_v: tl.int64, batch_grad: tl.int64,
    stride_q: tl.int64, stride_k: tl.int64, stride_v: tl.int64, stride_grad: tl.int64,
    head_q: tl.int64, head_k: tl.int64, head_v: tl.int64, head_grad: tl.int64,
    num_rows, num_keys, padded_rows, scale_log2,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """delta = sum_j p_ij dp_ij over the keys, free of the rounding of out; overwrites p_delta (B, H, padded_rows).

    Two more matrix products, for fp32 alone. Grid: (tiles of rows, B * H).
    """
    b, h = (tl.program_id(1) // H).to(tl.int64), (tl.program_id(1) % H).to(tl.int64)
    first = tl.program_id(0) * BM
    last = tl.minimum(first + BM, num_rows) - 1
    p_k += b * batch_k + (h // GROUP) * head_k
    p_v += b * batch_v + (h // GROUP) * head_v
    p_lo += b * num_rows
    p_hi += b * num_rows

    row = first + tl.arange(0, BM)
    b_lo, b_hi = load_spans(p_lo, p_hi, row, num_rows)
    at = (b * H + h) * padded_rows + row
    b_lse2 = tl.load(p_lse2 + at)
    b_q = load_tile(p_q + b * batch_q + h * head_q, first, stride_q, num_rows, BM, BD, D, True)
    b_grad = load_tile(p_grad + b * batch_grad + h * head_grad, first, stride_grad, num_rows, BM, BD, D, True)
    b_delta = tl.zeros([BM], tl.float32)
    start, _, num_full, num_edge = tile_ends(p_lo, p_hi, first, last, BN)
    for i in tl.range(0, num_full + num_edge):
        n = start + i * BN
        key = n + tl.arange(0, BN)
        b_k = load_tile(p_k, n, stride_k, num_keys, BN, BD, D, True)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale_log2  # [BM, BN]
        b_p = tl.where(seen(b_lo[:, None], b_hi[:, None], key[None, :]), tl.exp2(b_s - b_lse2[:, None]), 0.0)
        b_v = load_tile(p_v, n, stride_v, num_keys, BN, BD, D, True)
        b_delta += tl.sum(b_p * tl.dot(b_grad, tl.trans(b_v), input_precision=PRECISION), 1)
    tl.store(p_delta + at, b_delta)


@triton.jit(do_not_specialize=["num_rows", "num_keys"])
def span_attention_bwd_rows_kernel(
    p_q, p_k, p_v, p_lo, p_hi, p_grad, p_lse2, p_delta, p_dq,
    batch_q: tl.int64, batch_k: tl.int64, batch_v: tl.int64, batch_grad: tl.int64,
    stride_q: tl.int64, stride_k: tl.int64, stride_v: tl.int64, stride_grad: tl.int64,
    head_q: tl.int64, head_k: tl.int64, head_v: tl.int64, head_grad: tl.int64,
    num_rows, num_keys, padded_rows, scale, scale_log2,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dq (B, T, H, D), contiguous. Grid: (tiles of rows, B * H)."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    b, h = (tl.program_id(1) // H).to(tl.int64), (tl.program_id(1) % H).to(tl.int64)
    first = tile * BM
    last = tl.minimum(first + BM, num_rows) - 1
    rows_at = b * num_rows
    p_k += b * batch_k + (h // GROUP) * head_k
    p_v += b * batch_v + (h // GROUP) * head_v
    p_lo += rows_at
    p_hi += rows_at

    row = first + tl.arange(0, BM)
    at = (b * H + h) * padded_rows + row
    b_lse2, b_delta = tl.load(p_lse2 + at), tl.load(p_delta + at)
    b_q = load_tile(p_q + b * batch_q + h * head_q, first, stride_q, num_rows, BM, BD, D, True)
    b_grad = load_tile(p_grad + b * batch_grad + h * head_grad, first, stride_grad, num_rows, BM, BD, D, True)
    b_dq = tl.zeros([BM, BD], tl.float32)
    start, num_left, num_full, num_edge = tile_ends(p_lo, p_hi, first, last, BN)
    b_dq = bwd_rows_walk(
        b_dq, b_q, b_grad, b_lse2, b_delta, p_k, p_v, stride_k, stride_v, p_lo, p_hi, row, start, num_left,
        num_full, num_full, num_rows, num_keys, scale_log2, BN, BD, D, False, PRECISION,
    )  # fmt: skip
    b_dq = bwd_rows_walk(
        b_dq, b_q, b_grad, b_lse2, b_delta, p_k, p_v, stride_k, stride_v, p_lo, p_hi, row, start, num_left,
        num_full, num_edge, num_rows, num_keys, scale_log2, BN, BD, D, True, PRECISION,
    )  # fmt: skip
    store_tile(p_dq + (rows_at * H + h) * D, first, H * D, num_rows, b_dq * scale, BM, BD, D)
