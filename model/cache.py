"""Keys and values of what was already read, so that a new token costs one row and not the whole prompt.

The cache keeps, for every token so far, its document and block id, and for every layer its keys
and values. From the ids it makes the same spans that an uncached forward over the whole sequence would have
made, cut to the rows that are new (`Spans.packed(..., num_rows=T)`): cached and uncached logits therefore
agree, whatever the mask. Positions are not its business: keys are stored after their rotary turn.

Local layers need no more than the last window - 1 keys; with `keep_all=False` (the default) older ones are dropped,
so memory grows with the global layers only. Dropping is lazy: a buffer is moved to its start when it
is full, which costs one copy per window and not one per token.

A media block sees itself whole, so it must come whole: a chunk that ends inside a block has already
computed its rows without the rest. `extend` refuses the rest, instead of giving other logits.

B batch, S keys, T new tokens, K key heads, D head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import Spans
from model.config import ModelConfig


class LayerCache:
    """Keys and values of one layer in a buffer that grows by doubling."""

    def __init__(self):
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.start = 0
        self.stop = 0
        self.drop = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add k, v (B, T, K, D), first forgetting the `drop` oldest; returns all that is kept, (B, S, K, D) each."""
        self.start += self.drop
        kept, new = self.stop - self.start, k.shape[1]
        if self.keys is None or self.stop + new > self.keys.shape[1]:
            # twice what is kept: the next copy is that many tokens away
            shape = (k.shape[0], max(2 * kept, 64) + new, *k.shape[2:])
            keys, values = k.new_empty(shape), v.new_empty(shape)
            if kept:
                keys[:, :kept] = self.keys[:, self.start : self.stop]
                values[:, :kept] = self.values[:, self.start : self.stop]
            self.keys, self.values, self.start, self.stop = keys, values, 0, kept
        self.keys[:, self.stop : self.stop + new] = k
        self.values[:, self.stop : self.stop + new] = v
        self.stop += new
        return self.keys[:, self.start : self.stop], self.values[:, self.start : self.stop]

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""
        if self.keys is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]


class KeyValueCache:
    """The state of a decoding: pass the same object to each `Transformer.forward` of one sequence or batch."""

    def __init__(self, config: ModelConfig, *, keep_all: bool = False):
        """keep_all: keep every key of local layers too (for probing); by default only those in the window."""
        self.config = config
        self.keep_all = keep_all
        self.layers = [LayerCache() for _ in range(config.num_layers)]
        self.document: Tensor | None = None
        self.block: Tensor | None = None
        self.first_local = 0

    @property
    def num_tokens(self) -> int:
        """Tokens read so far, padding included."""
        return 0 if self.document is None else self.document.shape[1]

    def extend(self, document: Tensor, block: Tensor) -> tuple[Spans, Spans]:
        """Take in the ids of the next T tokens; returns their spans for local and for global layers.

        document, block: (B, T) int32. Raises ValueError when the batch changes or a media block is continued.
        """
        new = document.shape[1]
        before = self.num_tokens
        if before:
            if document.shape[0] != self.document.shape[0]:
                raise ValueError(
                    f"the cache holds {self.document.shape[0]} rows, this forward has {document.shape[0]}: "
                    "use one cache per batch"
                )
            same = (self.document[:, -1] == document[:, 0]) & (self.block[:, -1] == block[:, 0])
            if bool((same & (block[:, 0] != 0)).any()):
                raise ValueError(
                    f"a media block continues across token {before} of the cache, but its rows must see it whole: "
                    "give all tokens of a block in one forward"
                )
            document = torch.cat((self.document, document), dim=1)
            block = torch.cat((self.block, block), dim=1)
        self.document, self.block = document, block

        window = self.config.window
        first = self.first_local
        if not self.keep_all and window is not None:
            # the oldest new row, number `before`, sees back to before - window + 1
            first = max(0, before - window + 1)
        for layer, cache in enumerate(self.layers):
            cache.drop = 0 if self.config.is_global(layer) else first - self.first_local
        self.first_local = first
        local = Spans.packed(document, block=block, window=window, num_rows=new)
        if first:
            local = local.onto(range(new), range(first, before + new))
        return local, Spans.packed(document, num_rows=new)

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch (1-D int64 index), for instance those that have not ended."""
        self.document, self.block = self.document[rows], self.block[rows]
        for cache in self.layers:
            cache.select(rows)
