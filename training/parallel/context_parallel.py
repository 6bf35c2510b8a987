"""Context parallelism: each rank holds some chunks of every sequence, and attention runs over all of them in a ring.

Sequences are cut after labels were shifted, so a target never depends on another rank, and a rank embeds only its
patches. Chunks are assigned for each batch by what its masks cost this model (load-balanced,
`brine.kernels.context_parallel.sharding`), the same on every rank that shares them. Every rank of a group still loads
and decodes whole sequences.
"""

import dataclasses
from typing import Any

import torch

from brine.data.batch import TENSOR_FIELDS, Batch
from brine.kernels.attention import Spans
from brine.kernels.context_parallel.layout import ContextLayout, ShardedSpans
from brine.kernels.context_parallel.sharding import assign_chunks
from brine.model.config import ModelConfig
from brine.model.flops import matrix_parameters
from brine.model.inputs import Inputs
from brine.training.parallel.distributed import World

CHUNKS = 16
"""Chunks a rank holds of a sequence, where they are not shorter than `MIN_CHUNK` tokens."""
MIN_CHUNK = 16


def shard_sequences(batch: Batch, world: World, model: Any) -> Batch:
    """This rank's part of a batch that all context-parallel ranks have, on the host; assigned by what it costs `model`.

    The masks that `batch.inputs` has made, of every model that the rank's part goes through, become masks over the keys
    of all ranks.
    """
    whole = batch.inputs
    layout = _layout(whole, world, model.config)
    index = layout.index().to(whole.token_ids.device)
    num_sequences, seq_len = whole.token_ids.shape
    # media index in the whole -> here; what lies on another rank, and padding, is past the end
    size = num_sequences * len(index)
    here = torch.full((num_sequences * seq_len + 1,), size, dtype=torch.int64, device=index.device)
    first = torch.arange(num_sequences, device=index.device)[:, None] * seq_len
    here[(first + index).flatten()] = torch.arange(size, device=index.device)
    media = {}
    for name, (patches, media_index) in whole.media.items():
        kept = here[media_index] < size
        media[name] = patches[kept], here[media_index][kept]
    inputs = whole.map(lambda x: x.index_select(1, index), lambda spans: ShardedSpans.shard(spans, layout), media=media)
    fields = {name: getattr(batch, name).index_select(1, index) for name in TENSOR_FIELDS}
    return dataclasses.replace(batch, inputs=inputs, **fields)


def _layout(inputs: Inputs, world: World, config: ModelConfig) -> ContextLayout:
    seq_len, ranks = inputs.token_ids.shape[1], world.context_parallel
    local, everywhere = inputs.spans(config)
    num_global = config.num_global_layers
    masks: list[tuple[Spans, float]] = [(local, config.num_layers - num_global), (everywhere, num_global)]
    # FLOPs of a token's linear layers over those of one query and key
    linear = matrix_parameters(config) / config.num_layers / (2 * config.num_heads * config.head_dim)
    chunk = chunk_tokens(seq_len, ranks)
    chunk_ranks = assign_chunks(masks, world_size=ranks, chunk=chunk, linear=linear).chunk_ranks
    return ContextLayout(chunk_ranks, chunk, seq_len, world.rank % ranks, ranks, world.context_parallel_group)


def chunk_tokens(seq_len: int, context_parallel: int) -> int:
    """Tokens of a chunk: up to CHUNKS chunks per rank, equal ones where the sequence can be cut so."""
    for chunks in range(CHUNKS, 0, -1):
        if seq_len % (chunks * context_parallel) == 0 and seq_len // (chunks * context_parallel) >= MIN_CHUNK:
            return seq_len // (chunks * context_parallel)
    return max(1, -(-seq_len // (context_parallel * max(1, min(CHUNKS, seq_len // (context_parallel * MIN_CHUNK))))))
