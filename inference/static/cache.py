"""Keys and values of a batch being decoded, at fixed addresses and in fixed shapes: the memory of `StaticDecoder`.

Global layers keep columns as the prompt left them, padded on the left; row b sees [start_b, now]. Local layers are a
ring: token n of row b is at n mod window, and the row sees [0, min(n + 1, window)), since a softmax does not depend on
the order of its keys. The `Spans` of kind "moving" are advanced in place on the device. B batch, S keys of a buffer, n
columns kept, K KV heads, D head dim.
"""

import torch
from torch import Tensor

from brine.inference.cache import KeyValueCache, LayerCache
from brine.kernels.attention import Spans


class StaticLayerCache:
    """Keys and values of one layer at fixed addresses; used in place of a `LayerCache`."""

    def __init__(self, keys: Tensor, values: Tensor, row: Tensor, write_index: Tensor):
        """keys, values: (B, S, K, D), finite everywhere. row: (B,) int64, 0 to B - 1. write_index: (B,) int64, index in
        S of each row's next key; shared with other layers and advanced by the cache."""
        self.keys, self.values, self.row, self.write_index = keys, values, row, write_index

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, 1, K, D) -> the whole buffers, (B, S, K, D) each."""
        self.keys.index_put_((self.row, self.write_index), k[:, 0])
        self.values.index_put_((self.row, self.write_index), v[:, 0])
        return self.keys, self.values


class StaticCache:
    """Keys and values of a batch being decoded; `Transformer.forward` takes it as its cache. Each new token continues
    the document of the one before it, outside of media blocks."""

    def __init__(self, cache: KeyValueCache, *, capacity: int):
        """Take over a prefill; the layers of `cache` are emptied, one at a time. capacity: tokens that global layers
        can hold, padding included."""
        self.config = config = cache.config
        batch, device = cache.start.shape[0], cache.start.device
        self.row = torch.arange(batch, device=device)
        # of the newest token: its column, and its index in its row's document
        self.column, self.doc_position, self.write_index = torch.zeros(3, batch, dtype=torch.int64, device=device)
        self.start, self.hi, self.ring_lo, self.ring_hi = (
            torch.zeros(batch, 1, dtype=torch.int32, device=device) for _ in range(4)
        )
        # the prefill's buffers may be larger
        has = [layer.keys.shape[1] for number, layer in enumerate(cache.layers) if config.is_global(number)]
        self.capacity = max(capacity, *has)
        self.ring = config.window is not None and config.num_global_layers < config.num_layers
        self.length = 0
        """Columns in use, counted on the host."""
        self._count_from(cache)
        self.layers = [
            StaticLayerCache(
                *self._buffers(cache, number), self.row, self.column if self._is_whole(number) else self.write_index
            )
            for number in range(config.num_layers)
        ]
        self._make_spans()

    @property
    def state(self) -> tuple[Tensor, ...]:
        """What a step changes, besides keys and values."""
        return self.column, self.doc_position, self.write_index, self.hi, self.ring_hi

    @property
    def full(self) -> bool:
        """Whether one more token does not fit."""
        return self.length == self.capacity

    def extend(self, segment: Tensor, block: Tensor) -> tuple[Spans, Spans]:
        """Count one more token per row -> its spans in local and in global layers: the same two objects at each step,
        whose numbers have moved. The ids are assumed to be those of the token before."""
        self.column.add_(1)
        self.doc_position.add_(1)
        self.hi.add_(1)
        if self.ring:
            torch.remainder(self.doc_position, self.config.window, out=self.write_index)
            self.ring_hi.add_(1).clamp_(max=self.config.window)
        return self.spans

    def fits(self, cache: KeyValueCache, num_tokens: int) -> bool:
        """Whether `refill` can take over another prefill and `num_tokens` more."""
        return len(cache.start) == len(self.row) and cache.num_tokens + num_tokens <= self.capacity

    def refill(self, cache: KeyValueCache) -> None:
        """Take over another prefill, of as many rows, at the same addresses."""
        self._count_from(cache)
        for number, layer in enumerate(self.layers):
            for old, new in zip((layer.keys, layer.values), self._buffers(cache, number), strict=True):
                old.copy_(new)

    def grow(self, capacity: int) -> None:
        """Move to larger buffers, with new addresses."""
        self.capacity = capacity
        for number, layer in enumerate(self.layers):
            layer.keys, layer.values = (_padded(x, self._size(number)) for x in (layer.keys, layer.values))
        self._make_spans()

    def _count_from(self, cache: KeyValueCache) -> None:
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

    def _size(self, layer: int) -> int:
        return self.capacity if self._is_whole(layer) else min(self.capacity, self.config.window)

    def _buffers(self, cache: KeyValueCache, number: int) -> list[Tensor]:
        """Keys and values of one layer in the shape that decoding needs; the layer of `cache` is emptied."""
        layer, size = cache.layers[number], self._size(number)
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
        index = torch.arange(size, device=cached.device)
        # the newest column whose index in its row's document is `index` modulo the window
        back = torch.remainder(self.doc_position[:, None] - index, self.config.window)
        column = self.column[:, None] - back
        exists = (back <= self.doc_position[:, None]) & (column >= cache.first_local_key)
        ring = cached[self.row[:, None], (column - cache.first_local_key).clamp(min=0)]
        return ring.masked_fill_(~exists[..., None, None], 0.0)

    def _make_spans(self) -> None:
        whole = local = Spans(self.start, self.hi, self.capacity, kind="moving", valid=True)
        if self.ring:
            size = min(self.capacity, self.config.window)
            local = Spans(self.ring_lo, self.ring_hi, size, kind="moving", valid=True)
        self.spans = local, whole


def _padded(x: Tensor, size: int) -> Tensor:
    """(B, n, K, D) -> (B, size, K, D), zeros behind; unchanged where it has that size."""
    if x.shape[1] == size and x.is_contiguous():
        return x
    larger = x.new_zeros((x.shape[0], size, *x.shape[2:]))
    larger[:, : x.shape[1]] = x
    return larger
