"""Where packed documents begin, as varlen kernels take it: starts (N + 1,) int32 among the B * T flattened tokens.

Such kernels start a block for every document, and some take at most 65,535. Padding is a document for each token, so
neighbouring documents of one token are grouped here, up to `GROUP` at a time, and listed in `singletons` for the caller
to correct. Everything is found on the host, in a few passes (8 ms at a million tokens), and moved.

Legend: B batch, T queries and keys, N documents.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 128  # documents of one token that are put together: a tile of queries


@dataclass(frozen=True)
class VarlenDocuments:
    """The packed documents of spans of kind "causal" or "window"."""

    cu_seqlens: Tensor
    """(N + 1,) int32, first token of each document among B * T, and their end; groups count as one document."""
    max_seqlen: int  # tokens of the longest document or group
    singletons: Tensor  # (n,) int64, tokens that are a document each, ascending


def find_documents(lo: Tensor) -> VarlenDocuments:
    """The documents behind lo (B, T) int32 on the host: a query that begins one is its first visible key."""
    size = lo.numel()
    if not size:
        return VarlenDocuments(torch.zeros(1, dtype=torch.int32), 0, torch.zeros(0, dtype=torch.int64))
    opens = (lo == torch.arange(lo.shape[1], dtype=torch.int32)).flatten()
    first = opens.nonzero().flatten()
    length = torch.diff(first, append=first.new_tensor([size]))
    single = length == 1
    singletons = first[single]
    # a single document after another opens a group only at every GROUP-th of them
    number = torch.arange(len(first))
    run_start = torch.where(single & ~torch.cat((single.new_zeros(1), single[:-1])), number, 0).cummax(0).values
    cu_seqlens = first[~single | ((number - run_start) % GROUP == 0)]
    cu_seqlens = torch.cat((cu_seqlens, cu_seqlens.new_tensor([size])))
    return VarlenDocuments(cu_seqlens.int(), int(cu_seqlens.diff().max()), singletons)


def to_device(documents: VarlenDocuments, device: torch.device) -> VarlenDocuments:
    return VarlenDocuments(
        copy_to_device(documents.cu_seqlens, device), documents.max_seqlen, copy_to_device(documents.singletons, device)
    )


def copy_to_device(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device, copied beside what runs there: from pageable memory a copy would wait."""
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)
