"""The queries' half of the backward in `backward.py`: dq, a tile of 2 x 64 query rows, walking over keys.

Legend: B batch, T query rows, S keys, H query heads, D head dim, BD = D rounded up to 64 or 128; BM rows and BN keys of
a tile, BM = 64 being a consumer's share.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from brine.kernels.attention.gluon.backward import init_ring, product
from brine.kernels.attention.gluon.forward import (
    copy_keys,
    copy_tile,
    phase_of,
    stage_of,
    tile_ends,
    tile_index_of,
    visible,
)


@gluon.jit
def produce_for_rows(
    p_q, p_k, p_v, p_grad, s_q, s_k, s_v, s_grad, own_full, k_full, k_empty, v_full, v_empty, b, h, head, first, start,
    num_left, num_full, num_tiles, BM: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Copy each consumer's rows of q and grad_out once, then keys and values, tile after tile."""
    for c in gl.static_range(2):
        mbarrier.expect(own_full.index(c), p_q.block_type.nbytes + p_grad.block_type.nbytes)
        copy_tile(p_q, [b, h, first + c * BM, 0], own_full.index(c), s_q.index(c))
        copy_tile(p_grad, [b, h, first + c * BM, 0], own_full.index(c), s_grad.index(c))
    copy_keys(
        p_k, p_v, s_k, s_v, k_full, k_empty, v_full, v_empty, b, head, start, num_left, num_full, num_tiles, BN, STAGES
    )


@gluon.jit
def rows_step(
    b_dq, b_ds, b_lo, b_hi, b_lse2, b_delta, b_q, b_grad, s_k, s_v, k_full, k_empty, v_full, v_empty, i, n, scale_log2,
    FIRST: gl.constexpr, MASK: gl.constexpr, OVERLAP: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    BD: gl.constexpr, STAGES: gl.constexpr, S_LAYOUT: gl.constexpr, O_LAYOUT: gl.constexpr,
):  # fmt: skip
    """Take one tile of keys into dq [BM, BD]. b_ds is dS of the tile before, as in `keys_step`."""
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    CARRIED: gl.constexpr = OVERLAP and not FIRST
    slot, turn = stage_of(i, STAGES), phase_of(i, STAGES)
    before = stage_of(i + STAGES - 1, STAGES)
    mbarrier.wait(k_full.index(slot), turn)
    b_s = product(b_q, s_k.index(slot), BM, BN, BD, S_LAYOUT)
    mbarrier.wait(v_full.index(slot), turn)
    b_dp = product(b_grad, s_v.index(slot), BM, BN, BD, S_LAYOUT)
    if CARRIED:
        b_dq = hopper.warpgroup_mma(b_ds, s_k.index(before).reshape([BN, BD]), b_dq, is_async=True)
    b_s = hopper.warpgroup_mma_wait(2 if CARRIED else 1, deps=(b_s,))

    b_p = gl.exp2(b_s * scale_log2 - b_lse2[:, None])
    if MASK:
        key = n + gl.arange(0, BN, gl.SliceLayout(0, S_LAYOUT))
        b_p = gl.where(visible(b_lo[:, None], b_hi[:, None], key[None, :]), b_p, 0.0)
    # both have come long ago, and keep the waits below from moving up
    mbarrier.wait(k_full.index(slot), turn)
    b_dp = hopper.warpgroup_mma_wait(1 if CARRIED else 0, deps=(b_dp,))
    mbarrier.arrive(v_empty.index(slot))
    b_next = gl.convert_layout((b_p * (b_dp - b_delta[:, None])).to(s_k.dtype), P_LAYOUT)
    if CARRIED:
        mbarrier.wait(k_full.index(slot), turn)
        b_dq, b_ds = hopper.warpgroup_mma_wait(0, deps=(b_dq, b_ds))
        mbarrier.arrive(k_empty.index(before))
    if not OVERLAP:
        b_dq = hopper.warpgroup_mma(b_next, s_k.index(slot).reshape([BN, BD]), b_dq, is_async=True)
        b_dq, b_next = hopper.warpgroup_mma_wait(0, deps=(b_dq, b_next))
        mbarrier.arrive(k_empty.index(slot))
    return b_dq, b_next


@gluon.jit
def consume_for_rows(
    p_lo, p_hi, p_lse2, p_delta, p_dq, s_q, s_k, s_v, s_grad, own_full, k_full, k_empty, v_full, v_empty, first, start,
    num_left, num_full, num_tiles, num_queries, scale, scale_log2, C: gl.constexpr, H: gl.constexpr, BM: gl.constexpr,
    BN: gl.constexpr, D: gl.constexpr, BD: gl.constexpr, STAGES: gl.constexpr, OVERLAP: gl.constexpr,
):  # fmt: skip
    """dq of the C-th 64 rows."""
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BD, 16])
    row = first + C * BM + gl.arange(0, BM, gl.SliceLayout(1, S_LAYOUT))
    b_lo = gl.load(p_lo + row, mask=row < num_queries, other=0)
    b_hi = gl.load(p_hi + row, mask=row < num_queries, other=0)
    # padded to whole tiles
    b_lse2 = gl.load(p_lse2 + row)
    b_delta = gl.load(p_delta + row)
    b_dq = gl.zeros([BM, BD], gl.float32, O_LAYOUT)
    b_ds = gl.zeros([BM, BN], s_k.dtype, gl.DotOperandLayout(0, O_LAYOUT, 2))
    b_q = s_q.index(C).reshape([BM, BD])
    b_grad = s_grad.index(C).reshape([BM, BD])
    mbarrier.wait(own_full.index(C), 0)

    done: gl.constexpr = 1 if OVERLAP else 0
    if OVERLAP:
        n = start + tile_index_of(0, num_left, num_full) * BN
        b_dq, b_ds = rows_step(
            b_dq, b_ds, b_lo, b_hi, b_lse2, b_delta, b_q, b_grad, s_k, s_v, k_full, k_empty, v_full, v_empty, 0, n,
            scale_log2, True, True, True, BM, BN, BD, STAGES, S_LAYOUT, O_LAYOUT,
        )  # fmt: skip
    for i in range(done, num_full):
        n = start + tile_index_of(i, num_left, num_full) * BN
        b_dq, b_ds = rows_step(
            b_dq, b_ds, b_lo, b_hi, b_lse2, b_delta, b_q, b_grad, s_k, s_v, k_full, k_empty, v_full, v_empty, i, n,
            scale_log2, False, False, OVERLAP, BM, BN, BD, STAGES, S_LAYOUT, O_LAYOUT,
        )  # fmt: skip
    for i in range(gl.maximum(num_full, done), num_tiles):
        n = start + tile_index_of(i, num_left, num_full) * BN
        b_dq, b_ds = rows_step(
            b_dq, b_ds, b_lo, b_hi, b_lse2, b_delta, b_q, b_grad, s_k, s_v, k_full, k_empty, v_full, v_empty, i, n,
            scale_log2, False, True, OVERLAP, BM, BN, BD, STAGES, S_LAYOUT, O_LAYOUT,
        )  # fmt: skip
    if OVERLAP:
        last = stage_of(num_tiles - 1, STAGES)
        b_dq = hopper.warpgroup_mma(b_ds, s_k.index(last).reshape([BN, BD]), b_dq, is_async=True)
        b_dq, b_ds = hopper.warpgroup_mma_wait(0, deps=(b_dq, b_ds))

    token = first + C * BM + gl.arange(0, BM, gl.SliceLayout(1, O_LAYOUT))
    dim = gl.arange(0, BD, gl.SliceLayout(0, O_LAYOUT))
    p_tile = p_dq + token.to(gl.int64)[:, None] * (H * D) + dim[None, :]
    b_dq = (b_dq * scale).to(p_dq.dtype.element_ty)
    gl.store(p_tile, b_dq, mask=(token < num_queries)[:, None] & (dim < D)[None, :])


@gluon.jit(do_not_specialize=["num_queries", "padded_rows"])
def span_attention_gluon_bwd_queries_kernel(
    p_q, p_k, p_v, p_grad, p_lo, p_hi, p_lse2, p_delta, p_dq, num_queries, padded_rows, scale, scale_log2,
    H: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, BD: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    STAGES: gl.constexpr, OVERLAP: gl.constexpr,
):  # fmt: skip
    """dq (B, T, H, D), contiguous. Grid: (tiles of 2 BM rows, B * H), the last rows first, as they see the most."""
    tile = gl.num_programs(0) - 1 - gl.program_id(0)
    b, h = gl.program_id(1) // H, gl.program_id(1) % H
    first = tile * (2 * BM)
    last = gl.minimum(first + 2 * BM, num_queries) - 1
    rows_at = b.to(gl.int64) * num_queries
    p_lo += rows_at
    p_hi += rows_at
    p_lse2 += gl.program_id(1).to(gl.int64) * padded_rows
    p_delta += gl.program_id(1).to(gl.int64) * padded_rows
    p_dq += (rows_at * H + h) * D
    start, num_left, num_full, num_edge = tile_ends(p_lo, p_hi, first, last, BN)
    num_tiles = gl.maximum(num_full + num_edge, 1)

    s_q = gl.allocate_shared_memory(p_q.dtype, [2, 1, 1, BM, BD], p_q.layout)
    s_grad = gl.allocate_shared_memory(p_grad.dtype, [2, 1, 1, BM, BD], p_grad.layout)
    s_k = gl.allocate_shared_memory(p_k.dtype, [STAGES, 1, 1, BN, BD], p_k.layout)
    s_v = gl.allocate_shared_memory(p_v.dtype, [STAGES, 1, 1, BN, BD], p_v.layout)
    own_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    init_ring(k_full, v_full, k_empty, v_empty, own_full, STAGES)

    gl.warp_specialize(
        [
            (consume_for_rows, (
                p_lo, p_hi, p_lse2, p_delta, p_dq, s_q, s_k, s_v, s_grad, own_full, k_full, k_empty, v_full, v_empty,
                first, start, num_left, num_full, num_tiles, num_queries, scale, scale_log2, 0, H, BM, BN, D, BD,
                STAGES, OVERLAP,
            )),
            (consume_for_rows, (
                p_lo, p_hi, p_lse2, p_delta, p_dq, s_q, s_k, s_v, s_grad, own_full, k_full, k_empty, v_full, v_empty,
                first, start, num_left, num_full, num_tiles, num_queries, scale, scale_log2, 1, H, BM, BN, D, BD,
                STAGES, OVERLAP,
            )),
            (produce_for_rows, (
                p_q, p_k, p_v, p_grad, s_q, s_k, s_v, s_grad, own_full, k_full, k_empty, v_full, v_empty, b, h,
                h // GROUP, first, start, num_left, num_full, num_tiles, BM, BN, STAGES,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
