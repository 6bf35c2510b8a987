"""Ranks that share rows: each holds some chunks of every row, and attention goes over all of them in a ring.

    share = share_rows(batch, geometry, world, model)     this rank's tokens, labels and patches, and their masks

Rows are cut after labels were shifted, so a target never asks what lies on another rank, and a rank embeds only its
own patches. Chunks are dealt anew for each batch by what its masks cost this model (`kernels.ring_attention.deal`), the
same on every rank that shares them, since all have the same batch. Gradients need nothing more: the loss is a sum over
targets, so summing gradients over all ranks, whoever shares rows, and dividing by the step's targets is exact.

What this does not do: read only a share of the rows (every rank of a group loads and decodes whole rows).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from data.batch import ROW_FIELDS
from kernels import Spans
from kernels.ring_attention.deal import deal
from kernels.ring_attention.layout import Layout, ShardedSpans
from model.flops import matrix_parameters
from training.distributed import World

if TYPE_CHECKING:
    from data.batch import Batch
    from model.geometry import Geometry

CHUNKS = 16
"""Chunks a rank holds of a row, where they are not shorter than `MIN_CHUNK` tokens."""
MIN_CHUNK = 16


@dataclass(frozen=True)
class Share:
    """One rank's part of a batch."""

    batch: Batch
    """Its tokens, with the rows' ids and places as they were, and its patches."""
    layout: Layout
    geometry: Geometry
    """Masks over all ranks' keys: those that were made for the whole rows."""


def share_rows(batch: Batch, geometry: Geometry, world: World, model: nn.Module) -> Share:
    """This rank's part of a batch that all ranks of its group have, on the host; dealt by what it costs `model`.

    geometry: of the whole rows, with the masks of every model that the rank's part goes through.
    """
    layout = _layout(batch, world, model, geometry.spans(model.config))
    index = layout.index().to(batch.token_ids.device)
    fields = {name: getattr(batch, name).index_select(1, index) for name in ROW_FIELDS}
    num_rows, row_tokens = batch.token_ids.shape
    # whole slot -> slot here; what lies on another rank, and padding, is past the end
    size = num_rows * len(index)
    place = torch.full((num_rows * row_tokens + 1,), size, dtype=torch.int64, device=index.device)
    rows = torch.arange(num_rows, device=index.device)[:, None]
    place[(rows * row_tokens + index).flatten()] = torch.arange(size, device=index.device)
    media = {name: _own(patches, place[slot], size) for name, (patches, slot) in batch.media.items()}
    batch = dataclasses.replace(batch, **fields, media=media)
    part = geometry.at(batch.segment, batch.block, batch.position, lambda spans: ShardedSpans.shard(spans, layout))
    return Share(batch, layout, part)


def _own(patches: Tensor, slot: Tensor, size: int) -> tuple[Tensor, Tensor]:
    kept = slot < size
    return patches[kept], slot[kept]


def _layout(batch: Batch, world: World, model: nn.Module, whole: tuple[Spans, Spans]) -> Layout:
    config, row_tokens = model.config, batch.token_ids.shape[1]
    local, everywhere = whole
    num_global = config.num_global_layers
    masks: list[tuple[Spans, float]] = [(local, config.num_layers - num_global), (everywhere, num_global)]
    # FLOPs of a token's linear layers over those of one row and key
    linear = matrix_parameters(config) / config.num_layers / (2 * config.num_heads * config.head_dim)
    chunk = chunk_tokens(row_tokens, world.context)
    owner = deal(masks, world_size=world.context, chunk=chunk, linear=linear).owner
    return Layout(owner, chunk, row_tokens, world.rank % world.context, world.context, world.context_group)


def chunk_tokens(row_tokens: int, context: int) -> int:
    """Tokens of a chunk: up to CHUNKS chunks a rank, equal ones where the row can be cut so."""
    for chunks in range(CHUNKS, 0, -1):
        if row_tokens % (chunks * context) == 0 and row_tokens // (chunks * context) >= MIN_CHUNK:
            return row_tokens // (chunks * context)
    return max(1, -(-row_tokens // (context * max(1, min(CHUNKS, row_tokens // (context * MIN_CHUNK))))))
