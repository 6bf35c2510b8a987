"""Which tiles of keys each tile of queries sees, and the reverse: the lists that block-sparse kernels walk.

As both ends of spans are non-decreasing, four numbers describe a tile of queries [a, b): lo[a] .. hi[b - 1] are the
keys that some query sees, lo[b - 1] .. hi[a] those that all see, so its tiles of keys are partial | full | partial. The
queries that see a tile of keys are intervals of the same kind. The numbers are read off the host copy of the spans, so
that the width of a list is known without a wait; the lists are filled on the device. README.md has their size.

Legend: B batch, T queries, S keys, N tiles of queries, M tiles of keys, W the longest range.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from brine.kernels.attention.documents import copy_to_device


@dataclass(frozen=True)
class TileLists:
    """For each tile of one side, the tiles of the other that it sees."""

    partial_count: Tensor  # (B, N) int32, tiles that need a comparison
    partial: Tensor  # (B, N, W) int32, which ones, ascending; past the count any tile that exists
    full_count: Tensor  # (B, N) int32, tiles that are visible as a whole
    full: Tensor  # (B, N, W') int32, which ones


def key_tiles_of_queries(lo: Tensor, hi: Tensor, num_keys: int, query_tile: int, key_tile: int, device: torch.device):
    """TileLists over keys for each tile of queries. lo, hi: (B, T) int32 on the host, with T > 0 and num_keys > 0."""
    first, last = _edges(lo.shape[1], query_tile)
    return _lists(lo[:, first], hi[:, last], lo[:, last], hi[:, first], num_keys, key_tile, device)


def query_tiles_of_keys(lo: Tensor, hi: Tensor, num_keys: int, query_tile: int, key_tile: int, device: torch.device):
    """TileLists over queries for each tile of keys. lo, hi: (B, T) int32 on the host, with T > 0 and num_keys > 0."""
    first, last = _edges(num_keys, key_tile)
    (begin, stop), (begin_last, stop_last) = queries_of_keys(lo, hi, first), queries_of_keys(lo, hi, last)
    return _lists(begin, stop_last, begin_last, stop, lo.shape[1], query_tile, device)


def queries_of_keys(lo: Tensor, hi: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """(begin, stop), each (B, n) int32: queries that see keys (n,): hi[i] > j from some i on, lo[i] <= j up to one."""
    key = key.to(torch.int32).expand(lo.shape[0], -1).contiguous()
    begin = torch.searchsorted(hi.contiguous(), key, right=True, out_int32=True)
    return begin, torch.searchsorted(lo.contiguous(), key, right=True, out_int32=True)


def _edges(size: int, tile: int) -> tuple[Tensor, Tensor]:
    first = torch.arange(0, size, tile)
    return first, (first + tile).clamp(max=size) - 1


def _lists(
    some_first: Tensor, some_last: Tensor, all_first: Tensor, all_last: Tensor, size: int, tile: int,
    device: torch.device,
) -> TileLists:  # fmt: skip
    """From what some and what all members of each tile see, (B, N) int32 ends among `size`, in tiles of `tile`."""
    first, last = some_first // tile, -(-some_last // tile)
    full = -(-all_first // tile)
    # a last tile that is cut off counts as partial, since kernels compute it whole
    rest = torch.maximum(all_last // tile, full)
    none = rest == full
    front = torch.where(none, last - first, full - first).clamp(min=0)
    back = torch.where(none, 0, last - rest).clamp(min=0)
    wide, wide_full = max(1, int((front + back).max())), max(1, int((rest - full).max()))

    front, back, first, full, rest = copy_to_device(torch.stack((front, back, first, full, rest)).int(), device)
    end = -(-size // tile) - 1
    step = torch.arange(wide, dtype=torch.int32, device=device)
    partial = torch.where(step < front[..., None], first[..., None] + step, (rest - front)[..., None] + step)
    step = torch.arange(wide_full, dtype=torch.int32, device=device)
    return TileLists(
        partial_count=front + back,
        partial=partial.clamp_(0, end),
        full_count=rest - full,
        full=(full[..., None] + step).clamp_(0, end),
    )
