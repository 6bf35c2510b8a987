"""A fused backward of attention over spans for Hopper in Gluon: five matmuls, dq accumulated in memory.

The walk of dk/dv in `backward.py` makes dq too, dQ += dS K over all 128 keys, as in FlashAttention-3. Programs of other
keys add to the same queries in no fixed order, so dq is not deterministic. Both consumers write their dS^T to
shared memory, in two buffers in turns, and each multiplies that of all 128 keys with its half of the head dim
(README.md, "Fused"). Gluon's TMA has no adding copy for Hopper, so the adding is `red`, two numbers at a time.

Legend: as in `backward.py`; fixed also has s_k_half, tiles of half the head dim; shared = (s_ds, ds_full).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from brine.kernels.attention.gluon.backward import copy_queries, init_ring, rings_for_keys, weights_of_queries
from brine.kernels.attention.gluon.forward import (
    barriers,
    copy_tile,
    phase_of,
    stage_of,
    store_tile,
    tile_ends,
    tile_start,
)


@gluon.jit
def produce(
    p_q, p_k, p_k_half, p_v, p_grad, p_lse2, p_delta, fixed, s_k_half, ring, b, head, first, walk, padded_queries,
    H: gl.constexpr, GROUP: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BD: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Copy each consumer's keys and values and its half of all keys once, then q with lse and grad_out with delta."""
    s_k, s_v, fixed_full = fixed
    for c in gl.static_range(2):
        mbarrier.expect(
            fixed_full.index(c), p_k.block_type.nbytes + p_v.block_type.nbytes + 2 * p_k_half.block_type.nbytes
        )
        copy_tile(p_k, [b, head, first + c * BN, 0], fixed_full.index(c), s_k.index(c))
        copy_tile(p_v, [b, head, first + c * BN, 0], fixed_full.index(c), s_v.index(c))
        for other in gl.static_range(2):
            copy_tile(
                p_k_half,
                [b, head, first + other * BN, c * (BD // 2)],
                fixed_full.index(c),
                s_k_half.index(2 * c + other),
            )
    copy_queries(p_q, p_grad, p_lse2, p_delta, ring, b, head, walk, padded_queries, H, GROUP, BM, STAGES)


@gluon.jit
def step(
    b_dk, b_dv, b_ds, b_query_lo, b_query_hi, p_dq, fixed, s_k_half, ring, shared, i, m, num_queries, scale_log2,
    C: gl.constexpr, FIRST: gl.constexpr, MASK: gl.constexpr, OVERLAP: gl.constexpr, EARLY: gl.constexpr,
    H: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr, BD: gl.constexpr, STAGES: gl.constexpr,
    S_LAYOUT: gl.constexpr, O_LAYOUT: gl.constexpr, Q_LAYOUT: gl.constexpr,
):  # fmt: skip
    """Take one tile of queries into dk and dv [BN, BD], and add this half of its dq.

    b_ds, FIRST, OVERLAP and EARLY are those of `backward.keys_step`. p_dq: of the head's first query.
    """
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    HALF: gl.constexpr = BD // 2
    s_k, s_v, _ = fixed
    s_q, _, _, _, _, q_empty, grad_full, grad_empty = ring
    s_ds, ds_full = shared
    stage, turn = stage_of(i, STAGES), phase_of(i, STAGES)
    b_dk, b_ds, b_dv, b_p, b_dst = weights_of_queries(
        b_dk, b_dv, b_ds, b_query_lo, b_query_hi, s_k.index(C).reshape([BN, BD]), s_v.index(C).reshape([BN, BD]), ring,
        i, m, scale_log2, FIRST, MASK, OVERLAP, EARLY, BM, BN, BD, STAGES, S_LAYOUT, P_LAYOUT,
    )  # fmt: skip
    b_dst = b_dst.to(s_q.dtype)
    # its readers are done: both came through the barrier of the tile before only after their earlier matmuls
    s_ds.index(2 * (i & 1) + C).store(b_dst)
    hopper.fence_async_shared()
    mbarrier.arrive(ds_full.index(0))
    b_ds = gl.convert_layout(b_dst, P_LAYOUT)
    mbarrier.wait(ds_full.index(0), i & 1)
    b_dq = gl.zeros([BM, HALF], gl.float32, Q_LAYOUT)
    b_dq = hopper.warpgroup_mma(
        s_ds.index(2 * (i & 1)).permute((1, 0)), s_k_half.index(2 * C).reshape([BN, HALF]), b_dq, use_acc=False,
        is_async=True,
    )  # fmt: skip
    b_dq = hopper.warpgroup_mma(
        s_ds.index(2 * (i & 1) + 1).permute((1, 0)), s_k_half.index(2 * C + 1).reshape([BN, HALF]), b_dq, is_async=True
    )
    if OVERLAP:
        b_dv, b_p, b_dq = hopper.warpgroup_mma_wait(0, deps=(b_dv, b_p, b_dq))
    else:
        b_dk = hopper.warpgroup_mma(b_ds, s_q.index(stage).reshape([BM, BD]), b_dk, is_async=True)
        b_dv, b_p, b_dq = hopper.warpgroup_mma_wait(1, deps=(b_dv, b_p, b_dq))
    mbarrier.arrive(grad_empty.index(stage))

    query = m + gl.arange(0, BM, gl.SliceLayout(1, Q_LAYOUT))
    dim = C * HALF + gl.arange(0, HALF, gl.SliceLayout(0, Q_LAYOUT))
    p_tile = p_dq + query.to(gl.int64)[:, None] * (H * D) + dim[None, :]
    inside = (query < num_queries)[:, None] & (dim < D)[None, :]
    gl.atomic_add(p_tile, b_dq, mask=inside, sem="relaxed", scope="gpu")
    if not OVERLAP:
        # has come long ago, and keeps the wait below from moving up
        mbarrier.wait(grad_full.index(stage), turn)
        b_dk, b_ds = hopper.warpgroup_mma_wait(0, deps=(b_dk, b_ds))
        mbarrier.arrive(q_empty.index(stage))
    return b_dk, b_dv, b_ds


@gluon.jit
def consume(
    given, C: gl.constexpr, K: gl.constexpr, GROUP: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr,
    BD: gl.constexpr, STAGES: gl.constexpr, OVERLAP: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """dk and dv of the C-th 64 keys, and the C-th half of dq from all 128. p_dq: of the group's first head."""
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BM, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BD, 16])
    Q_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BD // 2, 16])
    H: gl.constexpr = K * GROUP
    p_query_lo, p_query_hi, p_dq, p_dk, p_dv, fixed, s_k_half, ring, shared, first, walk, sizes = given
    num_queries, num_keys, scale, scale_log2 = sizes
    s_q, num_full, num_tiles = ring[0], walk[2], walk[3]
    key = first + C * BN + gl.arange(0, BN, gl.SliceLayout(1, S_LAYOUT))
    b_query_lo = gl.load(p_query_lo + key, mask=key < num_keys, other=0)
    b_query_hi = gl.load(p_query_hi + key, mask=key < num_keys, other=0)
    b_dk = gl.zeros([BN, BD], gl.float32, O_LAYOUT)
    b_dv = gl.zeros([BN, BD], gl.float32, O_LAYOUT)
    b_ds = gl.zeros([BN, BM], s_q.dtype, gl.DotOperandLayout(0, O_LAYOUT, 2))
    mbarrier.wait(fixed[2].index(C), 0)

    if OVERLAP:
        b_dk, b_dv, b_ds = step(
            b_dk, b_dv, b_ds, b_query_lo, b_query_hi, p_dq, fixed, s_k_half, ring, shared, 0, tile_start(walk, 0, BM),
            num_queries, scale_log2, C, True, True, True, EARLY, H, BM, BN, D, BD, STAGES, S_LAYOUT, O_LAYOUT, Q_LAYOUT,
        )  # fmt: skip
    for g in range(GROUP):
        done = gl.where(g == 0, 1, 0) if OVERLAP else 0
        for MASK in gl.static_range(2):
            for j in range(gl.maximum(num_full, done) if MASK else done, num_tiles if MASK else num_full):
                b_dk, b_dv, b_ds = step(
                    b_dk, b_dv, b_ds, b_query_lo, b_query_hi, p_dq + g * D, fixed, s_k_half, ring, shared,
                    g * num_tiles + j, tile_start(walk, j, BM), num_queries, scale_log2, C, False, MASK == 1, OVERLAP,
                    EARLY, H, BM, BN, D, BD, STAGES, S_LAYOUT, O_LAYOUT, Q_LAYOUT,
                )  # fmt: skip
    if OVERLAP:
        last = stage_of(GROUP * num_tiles - 1, STAGES)
        b_dk = hopper.warpgroup_mma(b_ds, s_q.index(last).reshape([BM, BD]), b_dk, is_async=True)
        b_dk, b_ds = hopper.warpgroup_mma_wait(0, deps=(b_dk, b_ds))
    store_tile(p_dk, b_dk * scale, first + C * BN, num_keys, BN, K * D, D, BD, O_LAYOUT)
    store_tile(p_dv, b_dv, first + C * BN, num_keys, BN, K * D, D, BD, O_LAYOUT)


@gluon.jit(do_not_specialize=["num_queries", "num_keys", "padded_queries"])
def span_attention_gluon_bwd_fused_kernel(
    p_q, p_k, p_k_half, p_v, p_grad, p_lse2, p_delta, p_query_lo, p_query_hi, p_dq, p_dk, p_dv, num_queries, num_keys,
    padded_queries, scale, scale_log2,
    K: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, BD: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    STAGES: gl.constexpr, OVERLAP: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """dk and dv (B, S, K, D), contiguous; to p_dq (B, T, H, D) fp32 dq without the scale is added.

    Grid: (tiles of 2 BN keys, B * K). p_q .. p_grad are descriptors of (B, heads, tokens, D), p_k_half of tiles of half
    the head dim, p_lse2 and p_delta of B * H * padded_queries numbers.
    """
    b, head = gl.program_id(1) // K, gl.program_id(1) % K
    first = gl.program_id(0) * (2 * BN)
    last = gl.minimum(first + 2 * BN, num_keys) - 1
    keys_at = b.to(gl.int64) * num_keys
    p_query_lo += keys_at
    p_query_hi += keys_at
    p_dk += (keys_at * K + head) * D
    p_dv += (keys_at * K + head) * D
    p_dq += (b.to(gl.int64) * num_queries * K + head) * (GROUP * D)
    start, num_left, num_full, num_edge = tile_ends(p_query_lo, p_query_hi, first, last, BM)
    # keys that no query sees still take one tile, all of it masked
    walk = (start, num_left, num_full, gl.maximum(num_full + num_edge, 1))

    fixed, ring = rings_for_keys(p_q, p_k, p_v, p_grad, p_lse2, p_delta, BM, BN, BD, STAGES)
    s_k_half = gl.allocate_shared_memory(p_k.dtype, [4, 1, 1, BN, BD // 2], p_k_half.layout)
    DS_LAYOUT: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    shared = (gl.allocate_shared_memory(p_q.dtype, [4, BN, BM], DS_LAYOUT), barriers(1))
    mbarrier.init(shared[1].index(0), count=2)
    init_ring(ring[4], ring[6], ring[5], ring[7], fixed[2], STAGES)

    sizes = (num_queries, num_keys, scale, scale_log2)
    given = (p_query_lo, p_query_hi, p_dq, p_dk, p_dv, fixed, s_k_half, ring, shared, first, walk, sizes)
    gl.warp_specialize(
        [
            (consume, (given, 0, K, GROUP, BM, BN, D, BD, STAGES, OVERLAP, EARLY)),
            (consume, (given, 1, K, GROUP, BM, BN, D, BD, STAGES, OVERLAP, EARLY)),
            (produce, (
                p_q, p_k, p_k_half, p_v, p_grad, p_lse2, p_delta, fixed, s_k_half, ring, b, head, first, walk,
                padded_queries, K * GROUP, GROUP, BM, BN, BD, STAGES,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
