"""The forward of attention over spans, specialized for Hopper in Gluon: one warp group copies, two multiply.

A program computes 2 x 64 queries of one head with three warp groups. One thread of the last, the producer, has the TMA
unit copy tiles of keys and values into a ring in shared memory; two consumers, 64 queries each, multiply and take the
softmax. Barriers say that a stage of the ring is full (by one copy), or empty (by both consumers). README.md ("In
Gluon, on Hopper") explains FlashAttention-3's design (Shah et al. 2024, 2407.08608), OVERLAP and TURNS. Full tiles come
first; the first tile, taken before the loops, is compared with the mask in any case. Missing tokens are zeros, by TMA.

Legend: B batch, T queries, S keys, H query heads, D head dim, BD = D rounded up to 64 or 128; BM = 64 queries of a
consumer, BN keys of a tile; walk = (start, num_left, num_full, num_tiles) of `tile_ends`; keys = (s_k, s_v, k_full,
k_empty, v_full, v_empty), the ring.
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
    """Which stage of the ring the i-th tile goes to."""
    return i % STAGES


@gluon.jit
def phase_of(i, STAGES: gl.constexpr):
    """The parity of the phase in which it does; a stage is waited for as empty with the other one."""
    return (i // STAGES) & 1


@gluon.jit
def tile_start(walk, i, BLOCK: gl.constexpr):
    """First token of the tile that comes i-th in a walk: full ones first, then partial ones, left to right."""
    start, num_left, num_full, _ = walk
    j = i - num_full
    return start + gl.where(i < num_full, i + num_left, gl.where(j < num_left, j, i)) * BLOCK


@gluon.jit
def barriers(NUM: gl.constexpr):
    """Barriers in shared memory."""
    return gl.allocate_shared_memory(gl.int64, [NUM, 1], mbarrier.MBarrierLayout())


@gluon.jit
def copy_keys(p_k, p_v, keys, b, head, walk, BN: gl.constexpr, STAGES: gl.constexpr):
    """Copy keys and values into the ring, tile after tile of a walk, as stages come empty."""
    s_k, s_v, k_full, k_empty, v_full, v_empty = keys
    for i in range(walk[3]):
        n = tile_start(walk, i, BN)
        stage, turn = stage_of(i, STAGES), phase_of(i, STAGES)
        mbarrier.wait(k_empty.index(stage), turn ^ 1)
        mbarrier.expect(k_full.index(stage), p_k.block_type.nbytes)
        copy_tile(p_k, [b, head, n, 0], k_full.index(stage), s_k.index(stage))
        mbarrier.wait(v_empty.index(stage), turn ^ 1)
        mbarrier.expect(v_full.index(stage), p_v.block_type.nbytes)
        copy_tile(p_v, [b, head, n, 0], v_full.index(stage), s_v.index(stage))


@gluon.jit
def produce(
    p_q, p_k, p_v, s_q, q_full, keys, b, h, head, first, walk, BM: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr
):
    """Copy each consumer's queries once, then keys and values, tile after tile."""
    for c in gl.static_range(2):
        mbarrier.expect(q_full.index(c), p_q.block_type.nbytes)
        copy_tile(p_q, [b, h, first + c * BM, 0], q_full.index(c), s_q.index(c))
    copy_keys(p_k, p_v, keys, b, head, walk, BN, STAGES)


@gluon.jit
def scores(
    b_q, keys, i, BM: gl.constexpr, BN: gl.constexpr, BD: gl.constexpr, STAGES: gl.constexpr, S_LAYOUT: gl.constexpr
):
    """Start q k^T of the i-th tile as soon as its keys are there -> [BM, BN] fp32, not there yet."""
    s_k, _, k_full, _, _, _ = keys
    stage = stage_of(i, STAGES)
    mbarrier.wait(k_full.index(stage), phase_of(i, STAGES))
    b_k = s_k.index(stage).reshape([BN, BD]).permute((1, 0))
    zeros = gl.zeros([BM, BN], gl.float32, S_LAYOUT)
    return hopper.warpgroup_mma(b_q, b_k, zeros, use_acc=False, is_async=True)


@gluon.jit
def online_softmax(
    b_s, b_max, b_sum, b_lo, b_hi, n, scale_log2, MASK: gl.constexpr, BN: gl.constexpr, S_LAYOUT: gl.constexpr
):
    """Scores [BM, BN] -> weights, factor for earlier sums, maximum (scaled, base 2), sum; no key yet: shifted by 0."""
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
    b_acc, b_p, b_max, b_sum, b_lo, b_hi, b_q, keys, turns, i, walk, scale_log2, C: gl.constexpr, TURNS: gl.constexpr,
    MASK: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BD: gl.constexpr, STAGES: gl.constexpr,
    S_LAYOUT: gl.constexpr, O_LAYOUT: gl.constexpr,
):  # fmt: skip
    """The i-th tile's scores and softmax, and in the meantime the weights of the tile before, b_p, times its values."""
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    _, s_v, _, k_empty, v_full, v_empty = keys
    if TURNS:
        mbarrier.wait(turns.index(C), (i - C) & 1)
    b_s = scores(b_q, keys, i, BM, BN, BD, STAGES, S_LAYOUT)
    before = stage_of(i - 1, STAGES)
    b_acc = hopper.warpgroup_mma(b_p, s_v.index(before).reshape([BN, BD]), b_acc, is_async=True)
    if TURNS:
        mbarrier.arrive(turns.index(1 - C))
    b_s = hopper.warpgroup_mma_wait(1, deps=(b_s,))
    mbarrier.arrive(k_empty.index(stage_of(i, STAGES)))
    n = tile_start(walk, i, BN)
    b_next, b_alpha, b_max, b_sum = online_softmax(b_s, b_max, b_sum, b_lo, b_hi, n, scale_log2, MASK, BN, S_LAYOUT)
    mbarrier.wait(v_full.index(stage_of(i, STAGES)), phase_of(i, STAGES))
    b_acc, b_p = hopper.warpgroup_mma_wait(0, deps=(b_acc, b_p))
    mbarrier.arrive(v_empty.index(before))
    b_acc = b_acc * gl.convert_layout(b_alpha, gl.SliceLayout(1, O_LAYOUT))[:, None]
    return b_acc, gl.convert_layout(b_next.to(s_v.dtype), P_LAYOUT), b_max, b_sum


@gluon.jit
def step_single(
    b_acc, b_max, b_sum, b_lo, b_hi, b_q, keys, i, walk, scale_log2, MASK: gl.constexpr, BM: gl.constexpr,
    BN: gl.constexpr, BD: gl.constexpr, STAGES: gl.constexpr, S_LAYOUT: gl.constexpr, O_LAYOUT: gl.constexpr,
):  # fmt: skip
    """The i-th tile from scores to values, one after the other."""
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    _, s_v, _, k_empty, v_full, v_empty = keys
    b_s = scores(b_q, keys, i, BM, BN, BD, STAGES, S_LAYOUT)
    b_s = hopper.warpgroup_mma_wait(0, deps=(b_s,))
    stage = stage_of(i, STAGES)
    mbarrier.arrive(k_empty.index(stage))
    n = tile_start(walk, i, BN)
    b_p, b_alpha, b_max, b_sum = online_softmax(b_s, b_max, b_sum, b_lo, b_hi, n, scale_log2, MASK, BN, S_LAYOUT)
    b_p = gl.convert_layout(b_p.to(s_v.dtype), P_LAYOUT)
    b_acc = b_acc * gl.convert_layout(b_alpha, gl.SliceLayout(1, O_LAYOUT))[:, None]
    mbarrier.wait(v_full.index(stage), phase_of(i, STAGES))
    b_acc = hopper.warpgroup_mma(b_p, s_v.index(stage).reshape([BN, BD]), b_acc, is_async=True)
    b_acc, b_p = hopper.warpgroup_mma_wait(0, deps=(b_acc, b_p))
    mbarrier.arrive(v_empty.index(stage))
    return b_acc, b_max, b_sum


@gluon.jit
def store_tile(p_x, b_x, first, size, TOKENS: gl.constexpr, STRIDE: gl.constexpr, D: gl.constexpr, BD: gl.constexpr,
               LAYOUT: gl.constexpr):  # fmt: skip
    """Write [TOKENS, BD] to consecutive tokens of one head, those inside `size` and D."""
    token = first + gl.arange(0, TOKENS, gl.SliceLayout(1, LAYOUT))
    dim = gl.arange(0, BD, gl.SliceLayout(0, LAYOUT))
    p_tile = p_x + token.to(gl.int64)[:, None] * STRIDE + dim[None, :]
    gl.store(p_tile, b_x.to(p_x.dtype.element_ty), mask=(token < size)[:, None] & (dim < D)[None, :])


@gluon.jit
def consume(
    given, C: gl.constexpr, H: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr, BD: gl.constexpr,
    STAGES: gl.constexpr, SINK: gl.constexpr, OVERLAP: gl.constexpr, TURNS: gl.constexpr,
):  # fmt: skip
    """out and lse of the C-th 64 queries. A sink is a score that is there from the beginning, with no value."""
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BD, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    QUERIES: gl.constexpr = gl.SliceLayout(1, S_LAYOUT)
    p_lo, p_hi, p_sink, p_out, p_lse, s_q, q_full, keys, turns, h, first, walk, num_queries, scale_log2 = given
    _, s_v, _, k_empty, v_full, _ = keys
    _, _, num_full, num_tiles = walk
    query = first + C * BM + gl.arange(0, BM, QUERIES)
    b_lo = gl.load(p_lo + query, mask=query < num_queries, other=0)
    b_hi = gl.load(p_hi + query, mask=query < num_queries, other=0)
    b_max = gl.full([BM], -float("inf"), gl.float32, QUERIES)
    b_sum = gl.zeros([BM], gl.float32, QUERIES)
    if SINK:
        b_max = gl.zeros([BM], gl.float32, QUERIES) + gl.load(p_sink + h).to(gl.float32) * LOG2E
        b_sum = gl.full([BM], 1.0, gl.float32, QUERIES)
    b_acc = gl.zeros([BM, BD], gl.float32, O_LAYOUT)
    b_q = s_q.index(C).reshape([BM, BD])
    mbarrier.wait(q_full.index(C), 0)

    if OVERLAP:
        b_s = scores(b_q, keys, 0, BM, BN, BD, STAGES, S_LAYOUT)
        b_s = hopper.warpgroup_mma_wait(0, deps=(b_s,))
        mbarrier.arrive(k_empty.index(0))
        n = tile_start(walk, 0, BN)
        b_p, _, b_max, b_sum = online_softmax(b_s, b_max, b_sum, b_lo, b_hi, n, scale_log2, True, BN, S_LAYOUT)
        b_p = gl.convert_layout(b_p.to(s_v.dtype), P_LAYOUT)
        mbarrier.wait(v_full.index(0), 0)
        for MASK in gl.static_range(2):
            for i in range(gl.maximum(num_full, 1) if MASK else 1, num_tiles if MASK else num_full):
                b_acc, b_p, b_max, b_sum = step(
                    b_acc, b_p, b_max, b_sum, b_lo, b_hi, b_q, keys, turns, i, walk, scale_log2, C, TURNS, MASK == 1,
                    BM, BN, BD, STAGES, S_LAYOUT, O_LAYOUT,
                )  # fmt: skip
        last = stage_of(num_tiles - 1, STAGES)
        b_acc = hopper.warpgroup_mma(b_p, s_v.index(last).reshape([BN, BD]), b_acc, is_async=True)
        b_acc, b_p = hopper.warpgroup_mma_wait(0, deps=(b_acc, b_p))
    else:
        for MASK in gl.static_range(2):
            for i in range(num_full if MASK else 0, num_tiles if MASK else num_full):
                b_acc, b_max, b_sum = step_single(
                    b_acc, b_max, b_sum, b_lo, b_hi, b_q, keys, i, walk, scale_log2, MASK == 1, BM, BN, BD, STAGES,
                    S_LAYOUT, O_LAYOUT,
                )  # fmt: skip

    gl.store(p_lse + query, (b_max + gl.log2(b_sum)) * LN2, mask=query < num_queries)
    b_share = gl.convert_layout(gl.where(b_sum == 0.0, 0.0, 1.0 / b_sum), gl.SliceLayout(1, O_LAYOUT))
    b_out = gl.where((b_share == 0.0)[:, None], 0.0, b_acc * b_share[:, None])
    store_tile(p_out, b_out, first + C * BM, num_queries, BM, H * D, D, BD, O_LAYOUT)


@gluon.jit(do_not_specialize=["num_queries"])
def span_attention_gluon_fwd_kernel(
    p_q, p_k, p_v, p_lo, p_hi, p_sink, p_out, p_lse, num_queries, scale_log2,
    H: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, BD: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    STAGES: gl.constexpr, SINK: gl.constexpr, OVERLAP: gl.constexpr, TURNS: gl.constexpr,
):  # fmt: skip
    """out (B, T, H, D), contiguous, and lse (B, H, T).

    Grid: (tiles of 2 BM queries, B * H), the last queries first, as they see the most. p_q, p_k and p_v are descriptors
    of (B, heads, tokens, D).
    """
    tile = gl.num_programs(0) - 1 - gl.program_id(0)
    b, h = gl.program_id(1) // H, gl.program_id(1) % H
    head = h // GROUP
    first = tile * (2 * BM)
    last = gl.minimum(first + 2 * BM, num_queries) - 1
    queries_at = b.to(gl.int64) * num_queries
    p_lo += queries_at
    p_hi += queries_at
    p_out += (queries_at * H + h) * D
    p_lse += queries_at * H + h.to(gl.int64) * num_queries
    start, num_left, num_full, num_edge = tile_ends(p_lo, p_hi, first, last, BN)
    walk = (start, num_left, num_full, gl.maximum(num_full + num_edge, 1))

    s_q = gl.allocate_shared_memory(p_q.dtype, [2, 1, 1, BM, BD], p_q.layout)
    s_k = gl.allocate_shared_memory(p_k.dtype, [STAGES, 1, 1, BN, BD], p_k.layout)
    s_v = gl.allocate_shared_memory(p_v.dtype, [STAGES, 1, 1, BN, BD], p_v.layout)
    q_full, k_full, k_empty = barriers(2), barriers(STAGES), barriers(STAGES)
    v_full, v_empty, turns = barriers(STAGES), barriers(STAGES), barriers(2)
    for c in gl.static_range(2):
        mbarrier.init(q_full.index(c), count=1)
        mbarrier.init(turns.index(c), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)
        mbarrier.init(v_empty.index(i), count=2)
    hopper.fence_async_shared()

    keys = (s_k, s_v, k_full, k_empty, v_full, v_empty)
    given = (p_lo, p_hi, p_sink, p_out, p_lse, s_q, q_full, keys, turns, h, first, walk, num_queries, scale_log2)
    gl.warp_specialize(
        [
            (consume, (given, 0, H, BM, BN, D, BD, STAGES, SINK, OVERLAP, TURNS)),
            (consume, (given, 1, H, BM, BN, D, BD, STAGES, SINK, OVERLAP, TURNS)),
            (produce, (p_q, p_k, p_v, s_q, q_full, keys, b, h, head, first, walk, BM, BN, STAGES)),
        ],
        [4, 1],
        [240, 24],
    )
