"""The forward of attention over spans, specialised for Hopper in Gluon: who copies does not multiply.

A program computes 2 x 64 rows of one head with three warp groups. One thread of the last, the producer, has the TMA
unit copy tiles of keys and values into a ring in shared memory. Two consumers, 64 rows each, multiply and take the
softmax. Barriers say that a place of the ring is full (by one copy), or empty again (by both consumers). Registers are
dealt anew at the start, 240 to a consumer's thread and 24 to a producer's. This is FlashAttention-3's design (Shah et
al. 2024, 2407.08608), and so are the two ways to have softmax and products run at the same time:

    OVERLAP   the scores of the next tile are multiplied, and then this one's values, while the softmax of the next runs
    TURNS     the consumers start their products in turns, so that one's softmax lies under the other's products

Without either the two consumers still drift apart by themselves. Weights stay in registers: the layout of an
accumulator is, 16 bits wide, that of a left operand.

A wait for products is a point that the assembler may move up over arithmetic that does not depend on it, and then
nothing overlaps. Between the softmax and the wait for the values' product a barrier is waited for, whose loop is not
crossed.

The walk over keys, the mask and what rows see are those of `triton/forward.py`; full tiles come first, so that the
first tile, which is taken before the loops, is compared with the mask in any case. Tokens that do not exist are zeros,
by TMA. Launching is in `gluon/launch.py`; numbers of a card are in README.md.

Legend: B batch, T query rows, S keys, H query heads, D head dim, BD = D rounded up to 64 or 128; BM = 64 rows of a
consumer, BN keys of a tile.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from brine.kernels.attention.triton import forward as triton_kernels

LOG2E = gl.constexpr(1.4426950408889634)
LN2 = gl.constexpr(0.6931471805599453)
copy_tile = tma.async_copy_global_to_shared if hasattr(tma, "async_copy_global_to_shared") else tma.async_load
tile_ends = gluon.jit(triton_kernels.tile_ends.fn)
visible = gluon.jit(triton_kernels.visible.fn)


@gluon.jit
def stage_of(i, STAGES: gl.constexpr):
    """Which place of the ring the i-th tile goes to."""
    return i % STAGES


@gluon.jit
def phase_of(i, STAGES: gl.constexpr):
    """The parity of the phase in which it does; a place is waited for as empty with the other one."""
    return (i // STAGES) & 1


@gluon.jit
def tile_index_of(i, num_left, num_full):
    """Which tile of the walk, counted from `start`, comes i-th: full ones first, then partial ones, left to right."""
    j = i - num_full
    return gl.where(i < num_full, i + num_left, gl.where(j < num_left, j, i))


@gluon.jit
def copy_keys(
    p_k, p_v, s_k, s_v, k_full, k_empty, v_full, v_empty, b, head, start, num_left, num_full, num_tiles,
    BN: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Copy keys and values into the ring, tile after tile of a walk, as places come empty."""
    for i in range(num_tiles):
        n = start + tile_index_of(i, num_left, num_full) * BN
        slot, turn = stage_of(i, STAGES), phase_of(i, STAGES)
        mbarrier.wait(k_empty.index(slot), turn ^ 1)
        mbarrier.expect(k_full.index(slot), p_k.block_type.nbytes)
        copy_tile(p_k, [b, head, n, 0], k_full.index(slot), s_k.index(slot))
        mbarrier.wait(v_empty.index(slot), turn ^ 1)
        mbarrier.expect(v_full.index(slot), p_v.block_type.nbytes)
        copy_tile(p_v, [b, head, n, 0], v_full.index(slot), s_v.index(slot))


@gluon.jit
def produce(
    p_q, p_k, p_v, s_q, s_k, s_v, q_full, k_full, k_empty, v_full, v_empty, b, h, head, first, start, num_left,
    num_full, num_tiles, BM: gl.constexpr, BN: gl.constexpr, BD: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Copy each consumer's rows once, then keys and values, tile after tile."""
    for c in gl.static_range(2):
        mbarrier.expect(q_full.index(c), p_q.block_type.nbytes)
        copy_tile(p_q, [b, h, first + c * BM, 0], q_full.index(c), s_q.index(c))
    copy_keys(
        p_k, p_v, s_k, s_v, k_full, k_empty, v_full, v_empty, b, head, start, num_left, num_full, num_tiles, BN, STAGES
    )


@gluon.jit
def scores(
    b_q, s_k, k_full, i, BM: gl.constexpr, BN: gl.constexpr, BD: gl.constexpr, STAGES: gl.constexpr,
    S_LAYOUT: gl.constexpr,
):  # fmt: skip
    """Start q k^T of the i-th tile as soon as its keys are there -> [BM, BN] fp32, not there yet."""
    slot = stage_of(i, STAGES)
    mbarrier.wait(k_full.index(slot), phase_of(i, STAGES))
    b_k = s_k.index(slot).reshape([BN, BD]).permute((1, 0))
    zeros = gl.zeros([BM, BN], gl.float32, S_LAYOUT)
    return hopper.warpgroup_mma(b_q, b_k, zeros, use_acc=False, is_async=True)


@gluon.jit
def online_softmax(
    b_s, b_max, b_sum, b_lo, b_hi, n, scale_log2, MASK: gl.constexpr, BN: gl.constexpr, S_LAYOUT: gl.constexpr
):
    """Take scores [BM, BN] into the running softmax -> weights, the factor for what was summed before, maximum, sum.

    b_max is scaled already, and in base 2; scores are not. A row that has seen nothing yet is shifted by 0.
    """
    if MASK:
        key = n + gl.arange(0, BN, gl.SliceLayout(0, S_LAYOUT))
        b_s = gl.where(visible(b_lo[:, None], b_hi[:, None], key[None, :]), b_s, -float("inf"))
    b_new = gl.maximum(b_max, gl.max(b_s, 1) * scale_log2)
    b_shift = b_new
    if MASK:
        b_shift = gl.where(b_new == -float("inf"), 0.0, b_new)
    b_p = gl.exp2(b_s * scale_log2 - b_shift[:, None])
    b_alpha = gl.exp2(b_max - b_shift)
    b_sum = b_sum * b_alpha + gl.sum(b_p, 1)
    return b_p, b_alpha, b_new, b_sum


@gluon.jit
def step(
    b_acc, b_p, b_max, b_sum, b_lo, b_hi, b_q, s_k, s_v, k_full, k_empty, v_full, v_empty, turns, i, start, num_left,
    num_full, scale_log2, C: gl.constexpr, TURNS: gl.constexpr, MASK: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    BD: gl.constexpr, STAGES: gl.constexpr, S_LAYOUT: gl.constexpr, O_LAYOUT: gl.constexpr,
):  # fmt: skip
    """The i-th tile's scores and softmax, and in the meantime the weights of the tile before, b_p, times its values."""
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    if TURNS:
        mbarrier.wait(turns.index(C), (i - C) & 1)
    b_s = scores(b_q, s_k, k_full, i, BM, BN, BD, STAGES, S_LAYOUT)
    before = stage_of(i - 1, STAGES)
    b_acc = hopper.warpgroup_mma(b_p, s_v.index(before).reshape([BN, BD]), b_acc, is_async=True)
    if TURNS:
        mbarrier.arrive(turns.index(1 - C))
    b_s = hopper.warpgroup_mma_wait(1, deps=(b_s,))
    mbarrier.arrive(k_empty.index(stage_of(i, STAGES)))
    n = start + tile_index_of(i, num_left, num_full) * BN
    b_next, b_alpha, b_max, b_sum = online_softmax(b_s, b_max, b_sum, b_lo, b_hi, n, scale_log2, MASK, BN, S_LAYOUT)
    mbarrier.wait(v_full.index(stage_of(i, STAGES)), phase_of(i, STAGES))
    b_acc, b_p = hopper.warpgroup_mma_wait(0, deps=(b_acc, b_p))
    mbarrier.arrive(v_empty.index(before))
    b_acc = b_acc * gl.convert_layout(b_alpha, gl.SliceLayout(1, O_LAYOUT))[:, None]
    return b_acc, gl.convert_layout(b_next.to(s_v.dtype), P_LAYOUT), b_max, b_sum


@gluon.jit
def step_single(
    b_acc, b_max, b_sum, b_lo, b_hi, b_q, s_k, s_v, k_full, k_empty, v_full, v_empty, i, start, num_left, num_full,
    scale_log2, MASK: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BD: gl.constexpr, STAGES: gl.constexpr,
    S_LAYOUT: gl.constexpr, O_LAYOUT: gl.constexpr,
):  # fmt: skip
    """The i-th tile from scores to values, one after the other."""
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    b_s = scores(b_q, s_k, k_full, i, BM, BN, BD, STAGES, S_LAYOUT)
    b_s = hopper.warpgroup_mma_wait(0, deps=(b_s,))
    slot = stage_of(i, STAGES)
    mbarrier.arrive(k_empty.index(slot))
    n = start + tile_index_of(i, num_left, num_full) * BN
    b_p, b_alpha, b_max, b_sum = online_softmax(b_s, b_max, b_sum, b_lo, b_hi, n, scale_log2, MASK, BN, S_LAYOUT)
    b_p = gl.convert_layout(b_p.to(s_v.dtype), P_LAYOUT)
    b_acc = b_acc * gl.convert_layout(b_alpha, gl.SliceLayout(1, O_LAYOUT))[:, None]
    mbarrier.wait(v_full.index(slot), phase_of(i, STAGES))
    b_acc = hopper.warpgroup_mma(b_p, s_v.index(slot).reshape([BN, BD]), b_acc, is_async=True)
    b_acc, b_p = hopper.warpgroup_mma_wait(0, deps=(b_acc, b_p))
    mbarrier.arrive(v_empty.index(slot))
    return b_acc, b_max, b_sum


@gluon.jit
def consume(
    p_lo, p_hi, p_sink, p_out, p_lse, s_q, s_k, s_v, q_full, k_full, k_empty, v_full, v_empty, turns, h, first, start,
    num_left, num_full, num_tiles, num_queries, scale_log2, C: gl.constexpr, H: gl.constexpr, BM: gl.constexpr,
    BN: gl.constexpr, D: gl.constexpr, BD: gl.constexpr, STAGES: gl.constexpr, SINK: gl.constexpr,
    OVERLAP: gl.constexpr, TURNS: gl.constexpr,
):  # fmt: skip
    """out and lse of the C-th 64 rows. A sink is a score that is there from the beginning, with no value."""
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BD, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    ROWS: gl.constexpr = gl.SliceLayout(1, S_LAYOUT)
    row = first + C * BM + gl.arange(0, BM, ROWS)
    b_lo = gl.load(p_lo + row, mask=row < num_queries, other=0)
    b_hi = gl.load(p_hi + row, mask=row < num_queries, other=0)
    b_max = gl.full([BM], -float("inf"), gl.float32, ROWS)
    b_sum = gl.zeros([BM], gl.float32, ROWS)
    if SINK:
        b_max = gl.zeros([BM], gl.float32, ROWS) + gl.load(p_sink + h).to(gl.float32) * LOG2E
        b_sum = gl.full([BM], 1.0, gl.float32, ROWS)
    b_acc = gl.zeros([BM, BD], gl.float32, O_LAYOUT)
    b_q = s_q.index(C).reshape([BM, BD])
    mbarrier.wait(q_full.index(C), 0)

    if OVERLAP:
        b_s = scores(b_q, s_k, k_full, 0, BM, BN, BD, STAGES, S_LAYOUT)
        b_s = hopper.warpgroup_mma_wait(0, deps=(b_s,))
        mbarrier.arrive(k_empty.index(0))
        n = start + tile_index_of(0, num_left, num_full) * BN
        b_p, _, b_max, b_sum = online_softmax(b_s, b_max, b_sum, b_lo, b_hi, n, scale_log2, True, BN, S_LAYOUT)
        b_p = gl.convert_layout(b_p.to(s_v.dtype), P_LAYOUT)
        mbarrier.wait(v_full.index(0), 0)
        for i in range(1, num_full):
            b_acc, b_p, b_max, b_sum = step(
                b_acc, b_p, b_max, b_sum, b_lo, b_hi, b_q, s_k, s_v, k_full, k_empty, v_full, v_empty, turns, i, start,
                num_left, num_full, scale_log2, C, TURNS, False, BM, BN, BD, STAGES, S_LAYOUT, O_LAYOUT,
            )  # fmt: skip
        for i in range(gl.maximum(num_full, 1), num_tiles):
            b_acc, b_p, b_max, b_sum = step(
                b_acc, b_p, b_max, b_sum, b_lo, b_hi, b_q, s_k, s_v, k_full, k_empty, v_full, v_empty, turns, i, start,
                num_left, num_full, scale_log2, C, TURNS, True, BM, BN, BD, STAGES, S_LAYOUT, O_LAYOUT,
            )  # fmt: skip
        last = stage_of(num_tiles - 1, STAGES)
        b_acc = hopper.warpgroup_mma(b_p, s_v.index(last).reshape([BN, BD]), b_acc, is_async=True)
        b_acc, b_p = hopper.warpgroup_mma_wait(0, deps=(b_acc, b_p))
    else:
        for i in range(num_full):
            b_acc, b_max, b_sum = step_single(
                b_acc, b_max, b_sum, b_lo, b_hi, b_q, s_k, s_v, k_full, k_empty, v_full, v_empty, i, start, num_left,
                num_full, scale_log2, False, BM, BN, BD, STAGES, S_LAYOUT, O_LAYOUT,
            )  # fmt: skip
        for i in range(num_full, num_tiles):
            b_acc, b_max, b_sum = step_single(
                b_acc, b_max, b_sum, b_lo, b_hi, b_q, s_k, s_v, k_full, k_empty, v_full, v_empty, i, start, num_left,
                num_full, scale_log2, True, BM, BN, BD, STAGES, S_LAYOUT, O_LAYOUT,
            )  # fmt: skip

    b_lse = (b_max + gl.log2(b_sum)) * LN2
    gl.store(p_lse + row, b_lse, mask=row < num_queries)
    b_share = gl.convert_layout(gl.where(b_sum == 0.0, 0.0, 1.0 / b_sum), gl.SliceLayout(1, O_LAYOUT))
    b_out = gl.where((b_share == 0.0)[:, None], 0.0, b_acc * b_share[:, None])
    token = first + C * BM + gl.arange(0, BM, gl.SliceLayout(1, O_LAYOUT))
    dim = gl.arange(0, BD, gl.SliceLayout(0, O_LAYOUT))
    p_tile = p_out + token.to(gl.int64)[:, None] * (H * D) + dim[None, :]
    gl.store(p_tile, b_out.to(p_out.dtype.element_ty), mask=(token < num_queries)[:, None] & (dim < D)[None, :])


@gluon.jit(do_not_specialize=["num_queries"])
def span_attention_gluon_fwd_kernel(
    p_q, p_k, p_v, p_lo, p_hi, p_sink, p_out, p_lse, num_queries, scale_log2,
    H: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, BD: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    STAGES: gl.constexpr, SINK: gl.constexpr, OVERLAP: gl.constexpr, TURNS: gl.constexpr,
):  # fmt: skip
    """out (B, T, H, D), contiguous, and lse (B, H, T). Grid: (tiles of 2 BM rows, B * H), the last rows first, as they
    see the most. p_q, p_k and p_v are descriptors of (B, heads, tokens, D).
    """
    tile = gl.num_programs(0) - 1 - gl.program_id(0)
    b, h = gl.program_id(1) // H, gl.program_id(1) % H
    head = h // GROUP
    first = tile * (2 * BM)
    last = gl.minimum(first + 2 * BM, num_queries) - 1
    rows_at = b.to(gl.int64) * num_queries
    p_lo += rows_at
    p_hi += rows_at
    p_out += (rows_at * H + h) * D
    p_lse += rows_at * H + h.to(gl.int64) * num_queries
    start, num_left, num_full, num_edge = tile_ends(p_lo, p_hi, first, last, BN)
    num_tiles = gl.maximum(num_full + num_edge, 1)

    s_q = gl.allocate_shared_memory(p_q.dtype, [2, 1, 1, BM, BD], p_q.layout)
    s_k = gl.allocate_shared_memory(p_k.dtype, [STAGES, 1, 1, BN, BD], p_k.layout)
    s_v = gl.allocate_shared_memory(p_v.dtype, [STAGES, 1, 1, BN, BD], p_v.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for c in gl.static_range(2):
        mbarrier.init(q_full.index(c), count=1)
        mbarrier.init(turns.index(c), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)
        mbarrier.init(v_empty.index(i), count=2)
    hopper.fence_async_shared()

    gl.warp_specialize(
        [
            (consume, (
                p_lo, p_hi, p_sink, p_out, p_lse, s_q, s_k, s_v, q_full, k_full, k_empty, v_full, v_empty, turns, h,
                first, start, num_left, num_full, num_tiles, num_queries, scale_log2, 0, H, BM, BN, D, BD, STAGES, SINK,
                OVERLAP, TURNS,
            )),
            (consume, (
                p_lo, p_hi, p_sink, p_out, p_lse, s_q, s_k, s_v, q_full, k_full, k_empty, v_full, v_empty, turns, h,
                first, start, num_left, num_full, num_tiles, num_queries, scale_log2, 1, H, BM, BN, D, BD, STAGES, SINK,
                OVERLAP, TURNS,
            )),
            (produce, (
                p_q, p_k, p_v, s_q, s_k, s_v, q_full, k_full, k_empty, v_full, v_empty, b, h, head, first, start,
                num_left, num_full, num_tiles, BM, BN, BD, STAGES,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
