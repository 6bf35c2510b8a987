"""A fused backward of attention over spans for Hopper in Gluon: five products, dq summed up in memory.

The two passes of `gluon/backward.py` multiply seven times, since each takes the scores and dP anew. Here, as in
FlashAttention-3 (Shah et al. 2024, 2407.08608), the walk of dk/dv makes dq too:

    a tile of 2 x 64 keys, walking over the rows of all query heads of its key head
        S^T = K Q^T, dP^T = V dO^T;  P^T = exp2(S^T scale - lse), dS^T = P^T (dP^T - delta);  dV += P^T dO, dK += dS^T Q
        dQ of these rows += dS K, over all 128 keys, in memory

Programs of other keys add to the same rows, in any order: the last bits differ from run to run. Who wants the same
bits takes the two passes.

Both consumers write their dS^T, 16 bits wide, to shared memory, and wait for each other's. Then each multiplies that of
all 128 keys with its half of the head dim, of which it has keys of its own, and adds half of a row: what goes through
memory is half of what it would be if each added up its own keys. There are two places for dS^T, in turns. Who writes to
one has come through the barrier of the tile before, for which the other has not arrived before its products of the
tile before that were done; so one barrier does. Gluon's TMA has no adding copy for Hopper (Triton 3.6.0, 3.7.1), so
the adding is `red`, two numbers at a time.

With OVERLAP the product for dk is started in the next tile only, as in `gluon/backward.py`; without, it runs while dq
is added. Roles, barriers, masks and walks are as there.

Legend: B batch, T query rows, S keys, H query heads, K key heads, D head dim, BD = D rounded up to 64 or 128; BM rows
of a tile, BN = 64 keys of a consumer.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from brine.kernels.attention.gluon.backward import copy_rows, init_ring, weights_of_rows
from brine.kernels.attention.gluon.forward import copy_tile, phase_of, stage_of, tile_ends, tile_index_of


@gluon.jit
def produce(
    p_q, p_k, p_k_half, p_v, p_grad, p_lse2, p_delta, s_q, s_k, s_k_half, s_v, s_grad, s_lse2, s_delta, own_full,
    q_full, q_empty, grad_full, grad_empty, b, head, first, start, num_left, num_full, num_tiles, padded_rows,
    H: gl.constexpr, GROUP: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BD: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Copy each consumer's keys and values and its half of all keys once, then q with lse and grad_out with delta."""
    for c in gl.static_range(2):
        mbarrier.expect(
            own_full.index(c), p_k.block_type.nbytes + p_v.block_type.nbytes + 2 * p_k_half.block_type.nbytes
        )
        copy_tile(p_k, [b, head, first + c * BN, 0], own_full.index(c), s_k.index(c))
        copy_tile(p_v, [b, head, first + c * BN, 0], own_full.index(c), s_v.index(c))
        for other in gl.static_range(2):
            copy_tile(
                p_k_half, [b, head, first + other * BN, c * (BD // 2)], own_full.index(c), s_k_half.index(2 * c + other)
            )
    copy_rows(
        p_q, p_grad, p_lse2, p_delta, s_q, s_grad, s_lse2, s_delta, q_full, q_empty, grad_full, grad_empty, b, head,
        start, num_left, num_full, num_tiles, padded_rows, H, GROUP, BM, STAGES,
    )  # fmt: skip


@gluon.jit
def step(
    b_dk, b_dv, b_ds, b_row_lo, b_row_hi, p_dq, s_q, s_k, s_k_half, s_v, s_grad, s_lse2, s_delta, s_ds, q_full, q_empty,
    grad_full, grad_empty, ds_full, i, m, num_queries, scale_log2, C: gl.constexpr, FIRST: gl.constexpr,
    MASK: gl.constexpr, OVERLAP: gl.constexpr, EARLY: gl.constexpr, H: gl.constexpr, BM: gl.constexpr,
    BN: gl.constexpr, D: gl.constexpr, BD: gl.constexpr, STAGES: gl.constexpr, S_LAYOUT: gl.constexpr,
    O_LAYOUT: gl.constexpr, Q_LAYOUT: gl.constexpr,
):  # fmt: skip
    """Take one tile of rows into dk and dv [BN, BD], and add this half of its dq. b_ds, FIRST, OVERLAP and EARLY are
    those of `backward.keys_step`. p_dq: of the head's first row."""
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    HALF: gl.constexpr = BD // 2
    slot, turn = stage_of(i, STAGES), phase_of(i, STAGES)
    b_dk, b_ds, b_dv, b_p, b_dst = weights_of_rows(
        b_dk, b_dv, b_ds, b_row_lo, b_row_hi, s_k.index(C).reshape([BN, BD]), s_v.index(C).reshape([BN, BD]), s_q,
        s_grad, s_lse2, s_delta, q_full, q_empty, grad_full, i, m, scale_log2, FIRST, MASK, OVERLAP, EARLY, BM, BN, BD,
        STAGES, S_LAYOUT, P_LAYOUT,
    )  # fmt: skip
    b_dst = b_dst.to(s_q.dtype)
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
        b_dk = hopper.warpgroup_mma(b_ds, s_q.index(slot).reshape([BM, BD]), b_dk, is_async=True)
        b_dv, b_p, b_dq = hopper.warpgroup_mma_wait(1, deps=(b_dv, b_p, b_dq))
    mbarrier.arrive(grad_empty.index(slot))

    row = m + gl.arange(0, BM, gl.SliceLayout(1, Q_LAYOUT))
    dim = C * HALF + gl.arange(0, HALF, gl.SliceLayout(0, Q_LAYOUT))
    p_tile = p_dq + row.to(gl.int64)[:, None] * (H * D) + dim[None, :]
    inside = (row < num_queries)[:, None] & (dim < D)[None, :]
    gl.atomic_add(p_tile, b_dq, mask=inside, sem="relaxed", scope="gpu")
    if not OVERLAP:
        # has come long ago, and keeps the wait below from moving up
        mbarrier.wait(grad_full.index(slot), turn)
        b_dk, b_ds = hopper.warpgroup_mma_wait(0, deps=(b_dk, b_ds))
        mbarrier.arrive(q_empty.index(slot))
    return b_dk, b_dv, b_ds


@gluon.jit
def consume(
    p_row_lo, p_row_hi, p_dq, p_dk, p_dv, s_q, s_k, s_k_half, s_v, s_grad, s_lse2, s_delta, s_ds, own_full, q_full,
    q_empty, grad_full, grad_empty, ds_full, first, start, num_left, num_full, num_tiles, num_queries, num_keys, scale,
    scale_log2, C: gl.constexpr, K: gl.constexpr, GROUP: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    D: gl.constexpr, BD: gl.constexpr, STAGES: gl.constexpr, OVERLAP: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """dk and dv of the C-th 64 keys, and the C-th half of dq from all 128. p_dq: of the group's first head."""
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BM, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BD, 16])
    Q_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BD // 2, 16])
    H: gl.constexpr = K * GROUP
    key = first + C * BN + gl.arange(0, BN, gl.SliceLayout(1, S_LAYOUT))
    b_row_lo = gl.load(p_row_lo + key, mask=key < num_keys, other=0)
    b_row_hi = gl.load(p_row_hi + key, mask=key < num_keys, other=0)
    b_dk = gl.zeros([BN, BD], gl.float32, O_LAYOUT)
    b_dv = gl.zeros([BN, BD], gl.float32, O_LAYOUT)
    b_ds = gl.zeros([BN, BM], s_q.dtype, gl.DotOperandLayout(0, O_LAYOUT, 2))
    mbarrier.wait(own_full.index(C), 0)

    if OVERLAP:
        m = start + tile_index_of(0, num_left, num_full) * BM
        b_dk, b_dv, b_ds = step(
            b_dk, b_dv, b_ds, b_row_lo, b_row_hi, p_dq, s_q, s_k, s_k_half, s_v, s_grad, s_lse2, s_delta, s_ds, q_full,
            q_empty, grad_full, grad_empty, ds_full, 0, m, num_queries, scale_log2, C, True, True, True, EARLY, H, BM,
            BN, D, BD, STAGES, S_LAYOUT, O_LAYOUT, Q_LAYOUT,
        )  # fmt: skip
    for g in range(GROUP):
        done = gl.where(g == 0, 1, 0) if OVERLAP else 0
        for j in range(done, num_full):
            m = start + tile_index_of(j, num_left, num_full) * BM
            b_dk, b_dv, b_ds = step(
                b_dk, b_dv, b_ds, b_row_lo, b_row_hi, p_dq + g * D, s_q, s_k, s_k_half, s_v, s_grad, s_lse2, s_delta,
                s_ds, q_full, q_empty, grad_full, grad_empty, ds_full, g * num_tiles + j, m, num_queries, scale_log2, C,
                False, False, OVERLAP, EARLY, H, BM, BN, D, BD, STAGES, S_LAYOUT, O_LAYOUT, Q_LAYOUT,
            )  # fmt: skip
        for j in range(gl.maximum(num_full, done), num_tiles):
            m = start + tile_index_of(j, num_left, num_full) * BM
            b_dk, b_dv, b_ds = step(
                b_dk, b_dv, b_ds, b_row_lo, b_row_hi, p_dq + g * D, s_q, s_k, s_k_half, s_v, s_grad, s_lse2, s_delta,
                s_ds, q_full, q_empty, grad_full, grad_empty, ds_full, g * num_tiles + j, m, num_queries, scale_log2, C,
                False, True, OVERLAP, EARLY, H, BM, BN, D, BD, STAGES, S_LAYOUT, O_LAYOUT, Q_LAYOUT,
            )  # fmt: skip
    if OVERLAP:
        last = stage_of(GROUP * num_tiles - 1, STAGES)
        b_dk = hopper.warpgroup_mma(b_ds, s_q.index(last).reshape([BM, BD]), b_dk, is_async=True)
        b_dk, b_ds = hopper.warpgroup_mma_wait(0, deps=(b_dk, b_ds))

    token = first + C * BN + gl.arange(0, BN, gl.SliceLayout(1, O_LAYOUT))
    dim = gl.arange(0, BD, gl.SliceLayout(0, O_LAYOUT))
    at = token.to(gl.int64)[:, None] * (K * D) + dim[None, :]
    inside = (token < num_keys)[:, None] & (dim < D)[None, :]
    gl.store(p_dk + at, (b_dk * scale).to(p_dk.dtype.element_ty), mask=inside)
    gl.store(p_dv + at, b_dv.to(p_dv.dtype.element_ty), mask=inside)


@gluon.jit(do_not_specialize=["num_queries", "num_keys", "padded_rows"])
def span_attention_gluon_bwd_fused_kernel(
    p_q, p_k, p_k_half, p_v, p_grad, p_lse2, p_delta, p_row_lo, p_row_hi, p_dq, p_dk, p_dv, num_queries, num_keys,
    padded_rows, scale, scale_log2,
    K: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, BD: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    STAGES: gl.constexpr, OVERLAP: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """dk and dv (B, S, K, D), contiguous; to p_dq (B, T, H, D) fp32 dq without the scale is added. Grid: (tiles of
    2 BN keys, B * K). p_q .. p_grad are descriptors of (B, heads, tokens, D), p_k_half of tiles of half the head dim,
    p_lse2 and p_delta of B * H * padded_rows numbers.
    """
    b, head = gl.program_id(1) // K, gl.program_id(1) % K
    first = gl.program_id(0) * (2 * BN)
    last = gl.minimum(first + 2 * BN, num_keys) - 1
    keys_at = b.to(gl.int64) * num_keys
    p_row_lo += keys_at
    p_row_hi += keys_at
    p_dk += (keys_at * K + head) * D
    p_dv += (keys_at * K + head) * D
    p_dq += (b.to(gl.int64) * num_queries * K + head) * (GROUP * D)
    start, num_left, num_full, num_edge = tile_ends(p_row_lo, p_row_hi, first, last, BM)
    # keys that no row sees still take one tile, all of it masked
    num_tiles = gl.maximum(num_full + num_edge, 1)

    s_k = gl.allocate_shared_memory(p_k.dtype, [2, 1, 1, BN, BD], p_k.layout)
    s_k_half = gl.allocate_shared_memory(p_k.dtype, [4, 1, 1, BN, BD // 2], p_k_half.layout)
    s_v = gl.allocate_shared_memory(p_v.dtype, [2, 1, 1, BN, BD], p_v.layout)
    s_q = gl.allocate_shared_memory(p_q.dtype, [STAGES, 1, 1, BM, BD], p_q.layout)
    s_grad = gl.allocate_shared_memory(p_grad.dtype, [STAGES, 1, 1, BM, BD], p_grad.layout)
    s_lse2 = gl.allocate_shared_memory(gl.float32, [STAGES, BM], p_lse2.layout)
    s_delta = gl.allocate_shared_memory(gl.float32, [STAGES, BM], p_delta.layout)
    DS_LAYOUT: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    s_ds = gl.allocate_shared_memory(p_q.dtype, [4, BN, BM], DS_LAYOUT)
    own_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    q_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    grad_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    grad_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    ds_full = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    mbarrier.init(ds_full.index(0), count=2)
    init_ring(q_full, grad_full, q_empty, grad_empty, own_full, STAGES)

    gl.warp_specialize(
        [
            (consume, (
                p_row_lo, p_row_hi, p_dq, p_dk, p_dv, s_q, s_k, s_k_half, s_v, s_grad, s_lse2, s_delta, s_ds, own_full,
                q_full, q_empty, grad_full, grad_empty, ds_full, first, start, num_left, num_full, num_tiles,
                num_queries, num_keys, scale, scale_log2, 0, K, GROUP, BM, BN, D, BD, STAGES, OVERLAP, EARLY,
            )),
            (consume, (
                p_row_lo, p_row_hi, p_dq, p_dk, p_dv, s_q, s_k, s_k_half, s_v, s_grad, s_lse2, s_delta, s_ds, own_full,
                q_full, q_empty, grad_full, grad_empty, ds_full, first, start, num_left, num_full, num_tiles,
                num_queries, num_keys, scale, scale_log2, 1, K, GROUP, BM, BN, D, BD, STAGES, OVERLAP, EARLY,
            )),
            (produce, (
                p_q, p_k, p_k_half, p_v, p_grad, p_lse2, p_delta, s_q, s_k, s_k_half, s_v, s_grad, s_lse2, s_delta,
                own_full, q_full, q_empty, grad_full, grad_empty, b, head, first, start, num_left, num_full, num_tiles,
                padded_rows, K * GROUP, GROUP, BM, BN, BD, STAGES,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
