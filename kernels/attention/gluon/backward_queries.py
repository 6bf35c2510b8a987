"""The queries' half of the backward in `backward.py`: dq, a tile of 2 x 64 queries, walking over keys.

        S = Q K^T, dP = dO V^T;  P = exp2(S scale - lse), dS = P (dP - delta);  dQ += dS K

Legend: as in `forward.py`; BM = 64 queries of a consumer and BN keys of a tile; fixed = (s_q, s_grad, fixed_full).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from brine.kernels.attention.gluon.backward import init_ring, product
from brine.kernels.attention.gluon.forward import (
    barriers,
    copy_keys,
    copy_tile,
    phase_of,
    stage_of,
    store_tile,
    tile_ends,
    tile_start,
    visible,
)


@gluon.jit
def produce_for_queries(
    p_q,
    p_k,
    p_v,
    p_grad,
    fixed,
    keys,
    b,
    h,
    head,
    first,
    walk,
    BM: gl.constexpr,
    BN: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Copy each consumer's q and grad_out once, then keys and values, tile after tile."""
    s_q, s_grad, fixed_full = fixed
    for c in gl.static_range(2):
        mbarrier.expect(fixed_full.index(c), p_q.block_type.nbytes + p_grad.block_type.nbytes)
        copy_tile(p_q, [b, h, first + c * BM, 0], fixed_full.index(c), s_q.index(c))
        copy_tile(p_grad, [b, h, first + c * BM, 0], fixed_full.index(c), s_grad.index(c))
    copy_keys(p_k, p_v, keys, b, head, walk, BN, STAGES)


@gluon.jit
def queries_step(
    b_dq, b_ds, b_lo, b_hi, b_lse2, b_delta, b_q, b_grad, keys, i, n, scale_log2, FIRST: gl.constexpr,
    MASK: gl.constexpr, OVERLAP: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BD: gl.constexpr,
    STAGES: gl.constexpr, S_LAYOUT: gl.constexpr, O_LAYOUT: gl.constexpr,
):  # fmt: skip
    """Take one tile of keys into dq [BM, BD]. b_ds is dS of the tile before, as in `keys_step`."""
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    CARRIED: gl.constexpr = OVERLAP and not FIRST
    s_k, s_v, k_full, k_empty, v_full, v_empty = keys
    stage, turn = stage_of(i, STAGES), phase_of(i, STAGES)
    before = stage_of(i + STAGES - 1, STAGES)
    mbarrier.wait(k_full.index(stage), turn)
    b_s = product(b_q, s_k.index(stage), BM, BN, BD, S_LAYOUT)
    mbarrier.wait(v_full.index(stage), turn)
    b_dp = product(b_grad, s_v.index(stage), BM, BN, BD, S_LAYOUT)
    if CARRIED:
        b_dq = hopper.warpgroup_mma(b_ds, s_k.index(before).reshape([BN, BD]), b_dq, is_async=True)
    b_s = hopper.warpgroup_mma_wait(2 if CARRIED else 1, deps=(b_s,))

    b_p = gl.exp2(b_s * scale_log2 - b_lse2[:, None])
    if MASK:
        key = n + gl.arange(0, BN, gl.SliceLayout(0, S_LAYOUT))
        b_p = gl.where(visible(b_lo[:, None], b_hi[:, None], key[None, :]), b_p, 0.0)
    # both have come long ago, and keep the waits below from moving up
    mbarrier.wait(k_full.index(stage), turn)
    b_dp = hopper.warpgroup_mma_wait(1 if CARRIED else 0, deps=(b_dp,))
    mbarrier.arrive(v_empty.index(stage))
    b_next = gl.convert_layout((b_p * (b_dp - b_delta[:, None])).to(s_k.dtype), P_LAYOUT)
    if CARRIED:
        mbarrier.wait(k_full.index(stage), turn)
        b_dq, b_ds = hopper.warpgroup_mma_wait(0, deps=(b_dq, b_ds))
        mbarrier.arrive(k_empty.index(before))
    if not OVERLAP:
        b_dq = hopper.warpgroup_mma(b_next, s_k.index(stage).reshape([BN, BD]), b_dq, is_async=True)
        b_dq, b_next = hopper.warpgroup_mma_wait(0, deps=(b_dq, b_next))
        mbarrier.arrive(k_empty.index(stage))
    return b_dq, b_next


@gluon.jit
def consume_for_queries(
    given, C: gl.constexpr, H: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr, BD: gl.constexpr,
    STAGES: gl.constexpr, OVERLAP: gl.constexpr,
):  # fmt: skip
    """dq of the C-th 64 queries."""
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BD, 16])
    p_lo, p_hi, p_lse2, p_delta, p_dq, fixed, keys, first, walk, num_queries, scale, scale_log2 = given
    s_q, s_grad, fixed_full = fixed
    s_k, num_full, num_tiles = keys[0], walk[2], walk[3]
    query = first + C * BM + gl.arange(0, BM, gl.SliceLayout(1, S_LAYOUT))
    b_lo = gl.load(p_lo + query, mask=query < num_queries, other=0)
    b_hi = gl.load(p_hi + query, mask=query < num_queries, other=0)
    # padded to whole tiles
    b_lse2 = gl.load(p_lse2 + query)
    b_delta = gl.load(p_delta + query)
    b_dq = gl.zeros([BM, BD], gl.float32, O_LAYOUT)
    b_ds = gl.zeros([BM, BN], s_k.dtype, gl.DotOperandLayout(0, O_LAYOUT, 2))
    b_q = s_q.index(C).reshape([BM, BD])
    b_grad = s_grad.index(C).reshape([BM, BD])
    mbarrier.wait(fixed_full.index(C), 0)

    done: gl.constexpr = 1 if OVERLAP else 0
    if OVERLAP:
        b_dq, b_ds = queries_step(
            b_dq, b_ds, b_lo, b_hi, b_lse2, b_delta, b_q, b_grad, keys, 0, tile_start(walk, 0, BN), scale_log2, True,
            True, True, BM, BN, BD, STAGES, S_LAYOUT, O_LAYOUT,
        )  # fmt: skip
    for MASK in gl.static_range(2):
        for i in range(gl.maximum(num_full, done) if MASK else done, num_tiles if MASK else num_full):
            b_dq, b_ds = queries_step(
                b_dq, b_ds, b_lo, b_hi, b_lse2, b_delta, b_q, b_grad, keys, i, tile_start(walk, i, BN), scale_log2,
                False, MASK == 1, OVERLAP, BM, BN, BD, STAGES, S_LAYOUT, O_LAYOUT,
            )  # fmt: skip
    if OVERLAP:
        last = stage_of(num_tiles - 1, STAGES)
        b_dq = hopper.warpgroup_mma(b_ds, s_k.index(last).reshape([BN, BD]), b_dq, is_async=True)
        b_dq, b_ds = hopper.warpgroup_mma_wait(0, deps=(b_dq, b_ds))
    store_tile(p_dq, b_dq * scale, first + C * BM, num_queries, BM, H * D, D, BD, O_LAYOUT)


@gluon.jit(do_not_specialize=["num_queries", "padded_queries"])
def span_attention_gluon_bwd_queries_kernel(
    p_q, p_k, p_v, p_grad, p_lo, p_hi, p_lse2, p_delta, p_dq, num_queries, padded_queries, scale, scale_log2,
    H: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, BD: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    STAGES: gl.constexpr, OVERLAP: gl.constexpr,
):  # fmt: skip
    """dq (B, T, H, D), contiguous. Grid: (tiles of 2 BM queries, B * H), the last first, as they see the most."""
    tile = gl.num_programs(0) - 1 - gl.program_id(0)
    b, h = gl.program_id(1) // H, gl.program_id(1) % H
    first = tile * (2 * BM)
    last = gl.minimum(first + 2 * BM, num_queries) - 1
    queries_at = b.to(gl.int64) * num_queries
    p_lo += queries_at
    p_hi += queries_at
    p_lse2 += gl.program_id(1).to(gl.int64) * padded_queries
    p_delta += gl.program_id(1).to(gl.int64) * padded_queries
    p_dq += (queries_at * H + h) * D
    start, num_left, num_full, num_edge = tile_ends(p_lo, p_hi, first, last, BN)
    walk = (start, num_left, num_full, gl.maximum(num_full + num_edge, 1))

    s_q = gl.allocate_shared_memory(p_q.dtype, [2, 1, 1, BM, BD], p_q.layout)
    s_grad = gl.allocate_shared_memory(p_grad.dtype, [2, 1, 1, BM, BD], p_grad.layout)
    s_k = gl.allocate_shared_memory(p_k.dtype, [STAGES, 1, 1, BN, BD], p_k.layout)
    s_v = gl.allocate_shared_memory(p_v.dtype, [STAGES, 1, 1, BN, BD], p_v.layout)
    fixed_full, k_full, k_empty = barriers(2), barriers(STAGES), barriers(STAGES)
    v_full, v_empty = barriers(STAGES), barriers(STAGES)
    init_ring(k_full, v_full, k_empty, v_empty, fixed_full, STAGES)

    fixed, keys = (s_q, s_grad, fixed_full), (s_k, s_v, k_full, k_empty, v_full, v_empty)
    given = (p_lo, p_hi, p_lse2, p_delta, p_dq, fixed, keys, first, walk, num_queries, scale, scale_log2)
    gl.warp_specialize(
        [
            (consume_for_queries, (given, 0, H, BM, BN, D, BD, STAGES, OVERLAP)),
            (consume_for_queries, (given, 1, H, BM, BN, D, BD, STAGES, OVERLAP)),
            (produce_for_queries, (p_q, p_k, p_v, p_grad, fixed, keys, b, h, h // GROUP, first, walk, BM, BN, STAGES)),
        ],
        [4, 1],
        [240, 24],
    )
