"""The backward of attention over spans, specialized for Hopper in Gluon: two passes, deterministic.

As in `forward.py` one warp group copies tiles and two consumers multiply, each 64 tokens of the result: keys for dk/dv
here, queries for dq in `backward_queries.py`. With OVERLAP the last matmul of a tile is started only after
the first one of the next tile; a wait must not move up over the exponentials, so a barrier that is known to have come
is waited for there (README.md, "In Gluon, on Hopper").

    dk/dv, a tile of 2 x 64 keys, walking over the queries of all heads of its KV head
        S^T = K Q^T, dP^T = V dO^T;  P^T = exp2(S^T scale - lse), dS^T = P^T (dP^T - delta);  dV += P^T dO, dK += dS^T Q

Legend: as in `forward.py`; BM queries of a tile, BN = 64 keys of a consumer; fixed = (s_k, s_v, fixed_full); ring =
(s_q, s_grad, s_lse2, s_delta, q_full, q_empty, grad_full, grad_empty).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from brine.kernels.attention.gluon.forward import (
    barriers,
    copy_tile,
    phase_of,
    stage_of,
    store_tile,
    tile_ends,
    tile_start,
    visible,
)


@gluon.jit
def init_ring(first_full, second_full, first_empty, second_empty, fixed_full, STAGES: gl.constexpr):
    """Every barrier of a program: a stage is full by one copy, and empty when both consumers say so."""
    for c in gl.static_range(2):
        mbarrier.init(fixed_full.index(c), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(first_full.index(i), count=1)
        mbarrier.init(second_full.index(i), count=1)
        mbarrier.init(first_empty.index(i), count=2)
        mbarrier.init(second_empty.index(i), count=2)
    hopper.fence_async_shared()


@gluon.jit
def product(b_left, s_right, TOKENS: gl.constexpr, COLUMNS: gl.constexpr, BD: gl.constexpr, LAYOUT: gl.constexpr):
    """Start left x right^T over the head dim -> [TOKENS, COLUMNS] fp32, not there yet."""
    zeros = gl.zeros([TOKENS, COLUMNS], gl.float32, LAYOUT)
    b_right = s_right.reshape([COLUMNS, BD]).permute((1, 0))
    return hopper.warpgroup_mma(b_left, b_right, zeros, use_acc=False, is_async=True)


@gluon.jit
def copy_queries(
    p_q, p_grad, p_lse2, p_delta, ring, b, head, walk, padded_queries, H: gl.constexpr, GROUP: gl.constexpr,
    BM: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Copy q with lse and grad_out with delta into the ring, head after head of a group, as stages come empty."""
    s_q, s_grad, s_lse2, s_delta, q_full, q_empty, grad_full, grad_empty = ring
    num_tiles = walk[3]
    for g in range(GROUP):
        h = head * GROUP + g
        for j in range(num_tiles):
            i = g * num_tiles + j
            m = tile_start(walk, j, BM)
            at = (b * H + h) * padded_queries + m
            stage, turn = stage_of(i, STAGES), phase_of(i, STAGES)
            mbarrier.wait(q_empty.index(stage), turn ^ 1)
            mbarrier.expect(q_full.index(stage), p_q.block_type.nbytes + p_lse2.block_type.nbytes)
            copy_tile(p_q, [b, h, m, 0], q_full.index(stage), s_q.index(stage))
            copy_tile(p_lse2, [at], q_full.index(stage), s_lse2.index(stage))
            mbarrier.wait(grad_empty.index(stage), turn ^ 1)
            mbarrier.expect(grad_full.index(stage), p_grad.block_type.nbytes + p_delta.block_type.nbytes)
            copy_tile(p_grad, [b, h, m, 0], grad_full.index(stage), s_grad.index(stage))
            copy_tile(p_delta, [at], grad_full.index(stage), s_delta.index(stage))


@gluon.jit
def produce_for_keys(
    p_q, p_k, p_v, p_grad, p_lse2, p_delta, fixed, ring, b, head, first, walk, padded_queries, H: gl.constexpr,
    GROUP: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Copy each consumer's keys and values once, then q with lse and grad_out with delta, head after head."""
    s_k, s_v, fixed_full = fixed
    for c in gl.static_range(2):
        mbarrier.expect(fixed_full.index(c), p_k.block_type.nbytes + p_v.block_type.nbytes)
        copy_tile(p_k, [b, head, first + c * BN, 0], fixed_full.index(c), s_k.index(c))
        copy_tile(p_v, [b, head, first + c * BN, 0], fixed_full.index(c), s_v.index(c))
    copy_queries(p_q, p_grad, p_lse2, p_delta, ring, b, head, walk, padded_queries, H, GROUP, BM, STAGES)


@gluon.jit
def weights_of_queries(
    b_dk, b_dv, b_ds, b_query_lo, b_query_hi, b_k, b_v, ring, i, m, scale_log2, FIRST: gl.constexpr,
    MASK: gl.constexpr, OVERLAP: gl.constexpr, EARLY: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    BD: gl.constexpr, STAGES: gl.constexpr, S_LAYOUT: gl.constexpr, P_LAYOUT: gl.constexpr,
):  # fmt: skip
    """-> dk, into which the tile before has gone, b_ds that was multiplied for it, dv, to which this tile's matmul is
    on its way with its operand b_p, and this tile's dS^T in fp32 [BN, BM]. As `keys_step` says."""
    COLUMNS: gl.constexpr = gl.SliceLayout(0, S_LAYOUT)
    CARRIED: gl.constexpr = OVERLAP and not FIRST
    s_q, s_grad, s_lse2, s_delta, q_full, q_empty, grad_full, _ = ring
    stage, turn = stage_of(i, STAGES), phase_of(i, STAGES)
    before = stage_of(i + STAGES - 1, STAGES)
    mbarrier.wait(q_full.index(stage), turn)
    b_st = product(b_k, s_q.index(stage), BN, BM, BD, S_LAYOUT)
    if CARRIED:
        b_dk = hopper.warpgroup_mma(b_ds, s_q.index(before).reshape([BM, BD]), b_dk, is_async=True)
    mbarrier.wait(grad_full.index(stage), turn)
    b_dpt = product(b_v, s_grad.index(stage), BN, BM, BD, S_LAYOUT)
    if CARRIED and EARLY:
        b_st, b_dk, b_ds = hopper.warpgroup_mma_wait(1, deps=(b_st, b_dk, b_ds))
        mbarrier.arrive(q_empty.index(before))
    else:
        b_st = hopper.warpgroup_mma_wait(2 if CARRIED else 1, deps=(b_st,))

    b_pt = gl.exp2(b_st * scale_log2 - s_lse2.index(stage).load(COLUMNS)[None, :])
    if MASK:
        query = m + gl.arange(0, BM, COLUMNS)
        b_pt = gl.where(visible(b_query_lo[:, None], b_query_hi[:, None], query[None, :]), b_pt, 0.0)
    b_p = gl.convert_layout(b_pt.to(s_q.dtype), P_LAYOUT)
    b_dv = hopper.warpgroup_mma(b_p, s_grad.index(stage).reshape([BM, BD]), b_dv, is_async=True)
    # of all that was started, only this last matmul may still run
    if CARRIED and not EARLY:
        b_dpt, b_dk, b_ds = hopper.warpgroup_mma_wait(1, deps=(b_dpt, b_dk, b_ds))
        mbarrier.arrive(q_empty.index(before))
    else:
        b_dpt = hopper.warpgroup_mma_wait(1, deps=(b_dpt,))
    return b_dk, b_ds, b_dv, b_p, b_pt * (b_dpt - s_delta.index(stage).load(COLUMNS)[None, :])


@gluon.jit
def keys_step(
    b_dk, b_dv, b_ds, b_query_lo, b_query_hi, b_k, b_v, ring, i, m, scale_log2, FIRST: gl.constexpr,
    MASK: gl.constexpr, OVERLAP: gl.constexpr, EARLY: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    BD: gl.constexpr, STAGES: gl.constexpr, S_LAYOUT: gl.constexpr, O_LAYOUT: gl.constexpr,
):  # fmt: skip
    """Take one tile of queries into dk and dv [BN, BD].

    b_ds is dS^T of the tile before, whose matmul is still to come; with FIRST there is none, and without OVERLAP it is
    not looked at. EARLY waits for it before the exponentials, which frees its operand's registers for this tile's
    weights.
    """
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    s_q, _, _, _, _, q_empty, grad_full, grad_empty = ring
    stage, turn = stage_of(i, STAGES), phase_of(i, STAGES)
    b_dk, b_ds, b_dv, b_p, b_dst = weights_of_queries(
        b_dk, b_dv, b_ds, b_query_lo, b_query_hi, b_k, b_v, ring, i, m, scale_log2, FIRST, MASK, OVERLAP, EARLY, BM,
        BN, BD, STAGES, S_LAYOUT, P_LAYOUT,
    )  # fmt: skip
    b_ds = gl.convert_layout(b_dst.to(s_q.dtype), P_LAYOUT)
    if OVERLAP:
        # has come long ago, and keeps the wait below from moving up
        mbarrier.wait(grad_full.index(stage), turn)
        b_dv, b_p = hopper.warpgroup_mma_wait(0, deps=(b_dv, b_p))
        mbarrier.arrive(grad_empty.index(stage))
    else:
        b_dk = hopper.warpgroup_mma(b_ds, s_q.index(stage).reshape([BM, BD]), b_dk, is_async=True)
        b_dv, b_p = hopper.warpgroup_mma_wait(1, deps=(b_dv, b_p))
        mbarrier.arrive(grad_empty.index(stage))
        b_dk, b_ds = hopper.warpgroup_mma_wait(0, deps=(b_dk, b_ds))
        mbarrier.arrive(q_empty.index(stage))
    return b_dk, b_dv, b_ds


@gluon.jit
def consume_for_keys(
    given, C: gl.constexpr, K: gl.constexpr, GROUP: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr,
    BD: gl.constexpr, STAGES: gl.constexpr, OVERLAP: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """dk and dv of the C-th 64 keys."""
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BM, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BD, 16])
    p_query_lo, p_query_hi, p_dk, p_dv, fixed, ring, first, walk, num_keys, scale, scale_log2 = given
    s_k, s_v, fixed_full = fixed
    s_q, num_full, num_tiles = ring[0], walk[2], walk[3]
    key = first + C * BN + gl.arange(0, BN, gl.SliceLayout(1, S_LAYOUT))
    b_query_lo = gl.load(p_query_lo + key, mask=key < num_keys, other=0)
    b_query_hi = gl.load(p_query_hi + key, mask=key < num_keys, other=0)
    b_dk = gl.zeros([BN, BD], gl.float32, O_LAYOUT)
    b_dv = gl.zeros([BN, BD], gl.float32, O_LAYOUT)
    b_ds = gl.zeros([BN, BM], s_q.dtype, gl.DotOperandLayout(0, O_LAYOUT, 2))
    b_k = s_k.index(C).reshape([BN, BD])
    b_v = s_v.index(C).reshape([BN, BD])
    mbarrier.wait(fixed_full.index(C), 0)

    if OVERLAP:
        b_dk, b_dv, b_ds = keys_step(
            b_dk, b_dv, b_ds, b_query_lo, b_query_hi, b_k, b_v, ring, 0, tile_start(walk, 0, BM), scale_log2, True,
            True, True, EARLY, BM, BN, BD, STAGES, S_LAYOUT, O_LAYOUT,
        )  # fmt: skip
    for g in range(GROUP):
        done = gl.where(g == 0, 1, 0) if OVERLAP else 0
        for MASK in gl.static_range(2):
            for j in range(gl.maximum(num_full, done) if MASK else done, num_tiles if MASK else num_full):
                b_dk, b_dv, b_ds = keys_step(
                    b_dk, b_dv, b_ds, b_query_lo, b_query_hi, b_k, b_v, ring, g * num_tiles + j,
                    tile_start(walk, j, BM), scale_log2, False, MASK == 1, OVERLAP, EARLY, BM, BN, BD, STAGES,
                    S_LAYOUT, O_LAYOUT,
                )  # fmt: skip
    if OVERLAP:
        last = stage_of(GROUP * num_tiles - 1, STAGES)
        b_dk = hopper.warpgroup_mma(b_ds, s_q.index(last).reshape([BM, BD]), b_dk, is_async=True)
        b_dk, b_ds = hopper.warpgroup_mma_wait(0, deps=(b_dk, b_ds))
    store_tile(p_dk, b_dk * scale, first + C * BN, num_keys, BN, K * D, D, BD, O_LAYOUT)
    store_tile(p_dv, b_dv, first + C * BN, num_keys, BN, K * D, D, BD, O_LAYOUT)


@gluon.jit
def rings_for_keys(p_q, p_k, p_v, p_grad, p_lse2, p_delta, BM: gl.constexpr, BN: gl.constexpr, BD: gl.constexpr,
                   STAGES: gl.constexpr):  # fmt: skip
    """Shared memory of a program of keys -> fixed, ring."""
    s_k = gl.allocate_shared_memory(p_k.dtype, [2, 1, 1, BN, BD], p_k.layout)
    s_v = gl.allocate_shared_memory(p_v.dtype, [2, 1, 1, BN, BD], p_v.layout)
    s_q = gl.allocate_shared_memory(p_q.dtype, [STAGES, 1, 1, BM, BD], p_q.layout)
    s_grad = gl.allocate_shared_memory(p_grad.dtype, [STAGES, 1, 1, BM, BD], p_grad.layout)
    s_lse2 = gl.allocate_shared_memory(gl.float32, [STAGES, BM], p_lse2.layout)
    s_delta = gl.allocate_shared_memory(gl.float32, [STAGES, BM], p_delta.layout)
    fixed_full, q_full, q_empty = barriers(2), barriers(STAGES), barriers(STAGES)
    grad_full, grad_empty = barriers(STAGES), barriers(STAGES)
    return (s_k, s_v, fixed_full), (s_q, s_grad, s_lse2, s_delta, q_full, q_empty, grad_full, grad_empty)


@gluon.jit(do_not_specialize=["num_keys", "padded_queries"])
def span_attention_gluon_bwd_keys_kernel(
    p_q, p_k, p_v, p_grad, p_lse2, p_delta, p_query_lo, p_query_hi, p_dk, p_dv, num_keys, padded_queries, scale,
    scale_log2, K: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, BD: gl.constexpr, BM: gl.constexpr,
    BN: gl.constexpr, STAGES: gl.constexpr, OVERLAP: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """dk and dv (B, S, K, D), contiguous.

    Grid: (tiles of 2 BN keys, B * K). All query heads of a KV head in one program. p_q .. p_grad are descriptors of (B,
    heads, tokens, D), p_lse2 and p_delta of B * H * padded_queries numbers.
    """
    b, head = gl.program_id(1) // K, gl.program_id(1) % K
    first = gl.program_id(0) * (2 * BN)
    last = gl.minimum(first + 2 * BN, num_keys) - 1
    keys_at = b.to(gl.int64) * num_keys
    p_query_lo += keys_at
    p_query_hi += keys_at
    p_dk += (keys_at * K + head) * D
    p_dv += (keys_at * K + head) * D
    start, num_left, num_full, num_edge = tile_ends(p_query_lo, p_query_hi, first, last, BM)
    # keys that no query sees still take one tile, all of it masked
    walk = (start, num_left, num_full, gl.maximum(num_full + num_edge, 1))
    fixed, ring = rings_for_keys(p_q, p_k, p_v, p_grad, p_lse2, p_delta, BM, BN, BD, STAGES)
    init_ring(ring[4], ring[6], ring[5], ring[7], fixed[2], STAGES)

    given = (p_query_lo, p_query_hi, p_dk, p_dv, fixed, ring, first, walk, num_keys, scale, scale_log2)
    gl.warp_specialize(
        [
            (consume_for_keys, (given, 0, K, GROUP, BM, BN, D, BD, STAGES, OVERLAP, EARLY)),
            (consume_for_keys, (given, 1, K, GROUP, BM, BN, D, BD, STAGES, OVERLAP, EARLY)),
            (produce_for_keys, (
                p_q, p_k, p_v, p_grad, p_lse2, p_delta, fixed, ring, b, head, first, walk, padded_queries, K * GROUP,
                GROUP, BM, BN, STAGES,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
