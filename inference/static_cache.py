"""Keys and values of a batch being decoded, at addresses and in shapes that stay: the memory of
`brine.inference.static_decoder`.

    global layers    (B, capacity, K, D): columns as the prompt left them, padded on the left; row b sees [start_b, now]
    local layers     (B, window, K, D), a ring: token n of row b (counted in its own document) lies at n mod window, and
                     the row sees [0, min(n + 1, window)). Which keys a softmax is over matters, their order does not;
                     counted so, rows of unequal prompts need no interval that wraps around

What the rows see are two `Spans` of kind "moving", made once, whose `lo` and `hi` are advanced in place. Every number
that a step needs is counted on the device; the host counts columns beside it, to know when a buffer is full. Buffers
are taken over from the reading of the prompts where they have room already, else copied, one layer at a time.

B batch, S keys of a buffer, n columns kept, K key heads, D head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from brine.inference.cache import KeyValueCache, LayerCache
from brine.kernels.attention import Spans


class StaticLayerCache:
    """Keys and values of one layer at fixed addresses; takes the place of a `LayerCache`."""

    def __init__(self, keys: Tensor, values: Tensor, row: Tensor, write_index: Tensor):
        """keys, values: (B, S, K, D), numbers everywhere. row: (B,) int64, 0 to B - 1. write_index: (B,)
        int64, where in S the next key of each row goes; shared with other layers and advanced by the cache."""
        self.keys, self.values, self.row, self.write_index = keys, values, row, write_index

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, 1, K, D) there -> the whole buffers, (B, S, K, D) each."""
        self.keys.index_put_((self.row, self.write_index), k[:, 0])
        self.values.index_put_((self.row, self.write_index), v[:, 0])
        return self.keys, self.values


class StaticCache:
    """Keys and values of a batch being decoded, all at fixed addresses; `Transformer.forward` takes it as its cache.

    Each new token goes on with the document of the one before it, outside of media blocks.
    """

    def __init__(self, cache: KeyValueCache, *, capacity: int):
        """Take over what was read; the layers of `cache` are emptied, one at a time. capacity: tokens that global
        layers have room for, padding included."""
        self.config = cache.config
        batch, device = cache.start.shape[0], cache.start.device
        self.row = torch.arange(batch, device=device)
        # of the newest token: its column, and its number in its row's document
        self.column = torch.zeros(batch, dtype=torch.int64, device=device)
        self.doc_position = torch.zeros_like(self.column)
        self.write_index = torch.zeros_like(self.column)
        self.start, self.hi, self.ring_lo, self.ring_hi = (
            torch.zeros(batch, 1, dtype=torch.int32, device=device) for _ in range(4)
        )
        self.layers: list[StaticLayerCache] = []
        self.length = 0
        """Columns in use; the host counts along."""
        self._take(cache, capacity)

    @property
    def state(self) -> tuple[Tensor, ...]:
        """What a step changes, but for keys and values."""
        return self.column, self.doc_position, self.write_index, self.hi, self.ring_hi

    @property
    def full(self) -> bool:
        """Whether there is no room for one more token."""
        return self.length == self.capacity

    def extend(self, segment: Tensor, block: Tensor) -> tuple[Spans, Spans]:
        """Make room for one more token per row -> what it sees in local and in global layers: the same two objects at
        each step, whose numbers have moved. The ids are taken for those of the token before."""
        self.column.add_(1)
        self.doc_position.add_(1)
        self.hi.add_(1)
        if self.ring:
            torch.remainder(self.doc_position, self.config.window, out=self.write_index)
            self.ring_hi.add_(1).clamp_(max=self.config.window)
        return self.spans

    def fits(self, cache: KeyValueCache, num_tokens: int) -> bool:
        """Whether `refill` can take over another reading with room for `num_tokens` more."""
        return len(cache.start) == len(self.row) and cache.num_tokens + num_tokens <= self.capacity

    def refill(self, cache: KeyValueCache) -> None:
        """Take over another reading, of as many rows, at the same addresses."""
        self._count_from(cache)
        for number, layer in enumerate(self.layers):
            new = self._buffers(cache, number, self.capacity)
            layer.keys.copy_(new[0])
            layer.values.copy_(new[1])

    def grow(self, capacity: int) -> None:
        """Move to larger buffers, with new addresses."""
        for number, layer in enumerate(self.layers):
            size = self._size(number, capacity)
            layer.keys, layer.values = (_padded(x, size) for x in (layer.keys, layer.values))
        self.capacity = capacity
        self._make_spans()

    def _take(self, cache: KeyValueCache, capacity: int) -> None:
        window = self.config.window
        # what the prompt was read into may have more room
        has = [layer.keys.shape[1] for number, layer in enumerate(cache.layers) if self.config.is_global(number)]
        self.capacity = capacity = max(capacity, *has)
        self.ring = window is not None and self.config.num_global_layers < self.config.num_layers
        self._count_from(cache)
        for number in range(self.config.num_layers):
            keys, values = self._buffers(cache, number, capacity)
            write_index = self.column if self._is_whole(number) else self.write_index
            self.layers.append(StaticLayerCache(keys, values, self.row, write_index))
        self._make_spans()

    def _count_from(self, cache: KeyValueCache) -> None:
        """Set every number to what it is after the last token of `cache`."""
        self.length = cache.num_tokens
        self.start.copy_(cache.start[:, None])
        self.column.fill_(cache.num_tokens - 1)
        self.doc_position.copy_(self.column - cache.start)
        self.hi.fill_(cache.num_tokens)
        if self.ring:
            torch.remainder(self.doc_position, self.config.window, out=self.write_index)
            self.ring_hi.copy_((self.doc_position[:, None] + 1).clamp(max=self.config.window))

    def _is_whole(self, layer: int) -> bool:
        """Whether a layer keeps all tokens, in columns."""
        return not self.ring or self.config.is_global(layer)

    def _size(self, layer: int, capacity: int) -> int:
        return capacity if self._is_whole(layer) else min(capacity, self.config.window)

    def _buffers(self, cache: KeyValueCache, number: int, capacity: int) -> list[Tensor]:
        """Keys and values of one layer as static decoding wants them; the layer of `cache` is emptied."""
        layer, size = cache.layers[number], self._size(number, capacity)
        cache.layers[number] = LayerCache()
        if not self._is_whole(number):
            return [self._in_ring(x, size, cache) for x in layer.cached]
        if layer.start == 0 and layer.keys.shape[1] == size:
            for x in (layer.keys, layer.values):
                # kernels multiply what no row sees by 0, so it must be a number
                x[:, layer.stop :].zero_()
            return [layer.keys, layer.values]
        return [_padded(x, size) for x in layer.cached]

    def _in_ring(self, cached: Tensor, size: int, cache: KeyValueCache) -> Tensor:
        """(B, size, K, D): of the kept columns (B, n, K, D), from `first_local_key` on, each row's newest."""
        window, place = self.config.window, torch.arange(size, device=cached.device)
        # the newest column whose number in its row's document is `place` modulo the window
        back = torch.remainder(self.doc_position[:, None] - place, window)
        column = self.column[:, None] - back
        there = (back <= self.doc_position[:, None]) & (column >= cache.first_local_key)
        index = (column - cache.first_local_key).clamp(min=0)
        ring = cached[self.row[:, None], index]
        return ring.masked_fill_(~there[..., None, None], 0.0)

    def _make_spans(self) -> None:
        whole = Spans(self.start, self.hi, self.capacity, kind="moving", valid=True)
        local = whole
        if self.ring:
            size = min(self.capacity, self.config.window)
            local = Spans(self.ring_lo, self.ring_hi, size, kind="moving", valid=True)
        self.spans = local, whole


def _padded(x: Tensor, size: int) -> Tensor:
    """(B, n, K, D) -> (B, size, K, D), zeros behind; as it is where it has that size."""
    if x.shape[1] == size and x.is_contiguous():
        return x
    larger = x.new_zeros((x.shape[0], size, *x.shape[2:]))
    larger[:, : x.shape[1]] = x
    return larger
