"""Any spans by flash-attn-4, whose kernels take a mask function and walk lists of tiles.

    mask function    (lo[b, row] <= key) & (key < hi[b, row]), in partial tiles alone
    lists            for each tile of rows its partial and its full tiles of keys; for the backward the reverse

`tiles.py` makes the lists. The calls are those of 4.0.0b36, `_flash_attn_fwd` and `_flash_attn_bwd`, below its
autograd. The sizes of a list's tiles have to be multiples of what its kernels compute at once, which depends on the
card, the direction and the head dim (`sizes`, from its `_tile_size_fwd_sm90` and `_tile_size_bwd_sm90`, and two tiles
of rows at a time on Blackwell).

Its backward over lists adds dq up in any order on Hopper. On Blackwell it can be told an order: each tile of keys waits
until those before it have added to a tile of rows, and its place among them is its number less that of the first one.

Legend: B batch, T query rows, S keys, H query heads, K key heads, D head dim, N tiles of rows, M tiles of keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from brine.kernels.attention.documents import copy_to_device
from brine.kernels.attention.flash.varlen import load
from brine.kernels.attention.spans import cached_by_mask, host_of
from brine.kernels.attention.tiles import TileLists, key_tiles_of_queries, query_tiles_of_keys

PACKAGE = "flash-attn-4"


def unsupported_reason(q: Tensor, capability: tuple[int, int]) -> str | None:
    """Why these kernels cannot serve q (B, T, H, D) on a card, in a sentence; None where they can."""
    major = capability[0]
    if major not in (9, 10, 11):
        return f"flash-attn-4 has kernels with masks for sm_90 to sm_110, not for sm_{major}{capability[1]}"
    if major > 9 and q.shape[3] > 128:
        return f"flash-attn-4 takes masks at head dims up to 128 on sm_{major}{capability[1]}, not {q.shape[3]}"
    if major == 9 and torch.are_deterministic_algorithms_enabled():
        return "flash-attn-4 has no deterministic backward with a mask on sm_90"
    if load(PACKAGE) is None:
        return "masks beyond documents and windows need flash-attn-4, which is not installed (extra [flash])"
    return None


def sizes(capability: tuple[int, int], dim: int, *, backward: bool) -> tuple[int, int]:
    """(rows, keys) of a list's tiles."""
    if capability[0] > 9:
        return 256, 128
    if dim <= 128:
        return 128, 128
    return 128, 96 if backward and dim <= 192 else 64


def forward(
    q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, serial: int, *, scale: float
) -> tuple[Tensor, Tensor]:
    """q: (B, T, H, D); k, v: (B, S, K, D) -> out (B, T, H, D), lse (B, H, T) float32."""
    out, lse, *_ = load(PACKAGE)._flash_attn_fwd(
        q, k, v, softmax_scale=scale, pack_gqa=False, mask_mod=_visible(),
        aux_tensors=[lo.contiguous(), hi.contiguous()],
        block_sparse_tensors=_lists(q, k, lo, hi, serial, backward=False), return_lse=True,
    )  # fmt: skip
    return out, lse


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, serial: int, out: Tensor, lse: Tensor,
    *, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """-> dq, dk, dv, shapes as in `forward`, given out and lse over all keys and the sink."""
    return load(PACKAGE)._flash_attn_bwd(
        q, k, v, out, grad_out, lse, softmax_scale=scale, mask_mod=_visible(),
        aux_tensors=[lo.contiguous(), hi.contiguous()],
        block_sparse_tensors=_lists(q, k, lo, hi, serial, backward=True),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )[:3]  # fmt: skip


@functools.cache
def _visible() -> Callable[..., Any]:
    """The mask function, in the package's language; its arguments are vectors of one number."""
    import cutlass
    from cutlass import cute
    from flash_attn.cute import utils

    @cute.jit
    def visible(batch, head, row, key, seqlen_info, aux_tensors):
        first = utils.scalar_to_ssa(aux_tensors[0][batch[0], row[0]], cutlass.Int32)
        stop = utils.scalar_to_ssa(aux_tensors[1][batch[0], row[0]], cutlass.Int32)
        return (first <= key) & (key < stop)

    return visible


def _lists(q: Tensor, k: Tensor, lo: Tensor, hi: Tensor, serial: int, *, backward: bool) -> Any:
    """The package's BlockSparseTensorsTorch of a mask: (B, 1, N) counts and (B, 1, N, W) tiles, kept with the spans."""
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    tiles = sizes(torch.cuda.get_device_capability(q.device), q.shape[3], backward=backward)
    ordered = backward and torch.are_deterministic_algorithms_enabled()

    def make() -> Any:
        build = query_tiles_of_keys if backward else key_tiles_of_queries
        # a device might work the order out in any order
        device = torch.device("cpu") if ordered else lo.device
        found = build(*host_of(serial, lo, hi), k.shape[1], *tiles, device)
        lists = [x[:, None] for x in (found.partial_count, found.partial, found.full_count, found.full)]
        if not ordered:
            return BlockSparseTensorsTorch(*lists, block_size=tiles)
        lists += [x[:, None] for x in write_orders(found, -(-q.shape[1] // tiles[0]))]
        *lists, order, order_full = (copy_to_device(x, lo.device) for x in lists)
        orders = {"dq_write_order": order, "dq_write_order_full": order_full, "spt": False}
        return BlockSparseTensorsTorch(*lists, block_size=tiles, **orders)

    return cached_by_mask(serial, f"flash {tiles} {'keys' if backward else 'rows'} {ordered}", make)


def write_orders(lists: TileLists, num_row_tiles: int) -> tuple[Tensor, Tensor]:
    """For each entry of lists by keys, how many tiles of keys add to the same tile of rows before it.

    lists: partial (B, M, W), full (B, M, W') -> int32 of their shapes; what is past a count means nothing.
    A tile of rows is listed by neighbouring tiles of keys: both ends of their ranges never decrease.
    """
    batch, num_key_tiles, _ = lists.partial.shape
    first = torch.full((batch, num_row_tiles), num_key_tiles, dtype=torch.int32, device=lists.partial.device)
    number = torch.arange(num_key_tiles, dtype=torch.int32, device=first.device)[:, None]
    for count, tiles in ((lists.partial_count, lists.partial), (lists.full_count, lists.full)):
        listed = torch.arange(tiles.shape[2], device=first.device) < count[..., None]
        source = torch.where(listed, number, num_key_tiles)
        first.scatter_reduce_(1, tiles.flatten(1).long(), source.flatten(1), "amin")
    return tuple(
        (number - first.gather(1, tiles.flatten(1).long()).view_as(tiles)).clamp(min=0)
        for tiles in (lists.partial, lists.full)
    )
