"""Any spans by flash-attn-4, whose kernels take a mask function and walk lists of tiles.

The mask function is applied in partial tiles alone; the lists, made by `tiles.py`, name for each tile of queries its
partial and full tiles of keys, and for the backward the reverse. Calls are those of 4.0.0b36, below its autograd. Its
backward over lists accumulates dq non-deterministically on Hopper; on Blackwell a deterministic order can be set
(`write_orders`).

Legend: B batch, T queries, S keys, H query heads, K KV heads, D head dim, N tiles of queries, M tiles of keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from brine.kernels.attention.documents import copy_to_device
from brine.kernels.attention.flash.varlen import load
from brine.kernels.attention.spans import AttentionRequest, Mask, cached_by_mask, host_of
from brine.kernels.attention.tiles import TileLists, key_tiles_of_queries, query_tiles_of_keys

PACKAGE = "flash-attn-4"


def unsupported_reason(q: Tensor, capability: tuple[int, int]) -> str | None:
    """Why these kernels cannot serve q (B, T, H, D) on a GPU, in a sentence; None where they can."""
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
    """(queries, keys) of a list's tiles, multiples of what the package's kernels compute at once."""
    if capability[0] > 9:
        return 256, 128
    if dim <= 128:
        return 128, 128
    return 128, 96 if backward and dim <= 192 else 64


def forward(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> tuple[Tensor, Tensor]:
    """q: (B, T, H, D); k, v: (B, S, K, D) -> out (B, T, H, D), lse (B, H, T) float32, without the sink."""
    out, lse, *_ = load(PACKAGE)._flash_attn_fwd(
        q, k, v, **_options(q, k, request, backward=False), pack_gqa=False, return_lse=True
    )
    return out, lse


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, request: AttentionRequest
) -> tuple[Tensor, Tensor, Tensor]:
    """-> dq, dk, dv, shapes as in `forward`, given out and lse over all keys and the sink."""
    options = _options(q, k, request, backward=True)
    deterministic = torch.are_deterministic_algorithms_enabled()
    return load(PACKAGE)._flash_attn_bwd(q, k, v, out, grad_out, lse, **options, deterministic=deterministic)[:3]


def _options(q: Tensor, k: Tensor, request: AttentionRequest, *, backward: bool) -> dict[str, Any]:
    mask = request.mask
    return {
        "softmax_scale": request.scale,
        "mask_mod": _visible(),
        "aux_tensors": [mask.lo.contiguous(), mask.hi.contiguous()],
        "block_sparse_tensors": _lists(q, k, mask, backward=backward),
    }


@functools.cache
def _visible() -> Callable[..., Any]:
    """The mask function, in the package's language; its arguments are vectors of one number."""
    import cutlass
    from cutlass import cute
    from flash_attn.cute import utils

    @cute.jit
    def visible(batch, head, query, key, seqlen_info, aux_tensors):
        first = utils.scalar_to_ssa(aux_tensors[0][batch[0], query[0]], cutlass.Int32)
        stop = utils.scalar_to_ssa(aux_tensors[1][batch[0], query[0]], cutlass.Int32)
        return (first <= key) & (key < stop)

    return visible


def _lists(q: Tensor, k: Tensor, mask: Mask, *, backward: bool) -> Any:
    """The package's BlockSparseTensorsTorch of a mask: (B, 1, N) counts and (B, 1, N, W) tiles, kept with the spans."""
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    tiles = sizes(torch.cuda.get_device_capability(q.device), q.shape[3], backward=backward)
    ordered = backward and torch.are_deterministic_algorithms_enabled()

    def make() -> Any:
        build = query_tiles_of_keys if backward else key_tiles_of_queries
        # a device might work the order out in any order
        device = torch.device("cpu") if ordered else mask.lo.device
        found = build(*host_of(mask), k.shape[1], *tiles, device)
        lists = [x[:, None] for x in (found.partial_count, found.partial, found.full_count, found.full)]
        if not ordered:
            return BlockSparseTensorsTorch(*lists, block_size=tiles)
        lists += [x[:, None] for x in write_orders(found, -(-q.shape[1] // tiles[0]))]
        *lists, order, order_full = (copy_to_device(x, mask.lo.device) for x in lists)
        orders = {"dq_write_order": order, "dq_write_order_full": order_full, "spt": False}
        return BlockSparseTensorsTorch(*lists, block_size=tiles, **orders)

    return cached_by_mask(mask.serial, f"flash {tiles} {'keys' if backward else 'queries'} {ordered}", make)


def write_orders(lists: TileLists, num_query_tiles: int) -> tuple[Tensor, Tensor]:
    """For each tile listed by keys (B, M, W), the number of earlier tiles of keys that add to its queries; int32."""
    batch, num_key_tiles, _ = lists.partial.shape
    first = torch.full((batch, num_query_tiles), num_key_tiles, dtype=torch.int32, device=lists.partial.device)
    number = torch.arange(num_key_tiles, dtype=torch.int32, device=first.device)[:, None]
    for count, tiles in ((lists.partial_count, lists.partial), (lists.full_count, lists.full)):
        listed = torch.arange(tiles.shape[2], device=first.device) < count[..., None]
        source = torch.where(listed, number, num_key_tiles)
        first.scatter_reduce_(1, tiles.flatten(1).long(), source.flatten(1), "amin")
    partial, full = (
        (number - first.gather(1, tiles.flatten(1).long()).view_as(tiles)).clamp(min=0)
        for tiles in (lists.partial, lists.full)
    )
    return partial, full
