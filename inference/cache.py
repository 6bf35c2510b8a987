"""Keys and values of what was already read, so that a new token costs one query and not the whole prompt.

Besides keys (after their rotary embedding) and values, the cache keeps three numbers per sequence, from which it makes
the spans of an uncached forward: cached and uncached logits agree, whatever the mask. Local layers drop keys older than
window - 1, lazily, unless `keep_all_keys`. Buffers of global layers double when full. A media block attends to itself
in both directions, so `extend` refuses the rest of one. B batch, S keys, T new tokens, K KV heads, D head dim.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from brine.kernels.attention import Spans
from brine.model.config import ModelConfig


class LayerCache:
    """Keys and values of one layer in a buffer that grows by doubling."""

    def __init__(self, reserve: int = 0):
        """reserve: keys that the first buffer holds."""
        self.reserve = reserve
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.start = 0
        self.stop = 0
        self.drop = 0

    @property
    def cached(self) -> tuple[Tensor, Tensor]:
        """Keys and values in use, (B, S, K, D) each: views of the buffer."""
        return self.keys[:, self.start : self.stop], self.values[:, self.start : self.stop]

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add k, v (B, T, K, D), first dropping the `drop` oldest; returns all that are kept, (B, S, K, D) each."""
        self.start += self.drop
        cached, new = self.stop - self.start, k.shape[1]
        if self.keys is None or self.stop + new > self.keys.shape[1]:
            # twice what is kept: the next copy is that many tokens away
            capacity = max(self.reserve, max(2 * cached, 64) + new)
            keys, values = (x.new_empty((x.shape[0], capacity, *x.shape[2:])) for x in (k, v))
            if cached:
                keys[:, :cached], values[:, :cached] = self.cached
            self.keys, self.values, self.start, self.stop = keys, values, 0, cached
        self.keys[:, self.stop : self.stop + new] = k
        self.values[:, self.stop : self.stop + new] = v
        self.stop += new
        return self.cached

    def select(self, rows: list[int]) -> None:
        """Keep only these rows of the batch, ascending; moved in place, since a copy could be gigabytes."""
        if self.keys is None:
            return
        for part in self.cached:
            for new, old in enumerate(rows):
                if new != old:
                    part[new].copy_(part[old])
        self.keys, self.values = self.keys[: len(rows)], self.values[: len(rows)]

    def batch_repeat_interleave(self, count: int) -> "LayerCache":
        """A new cache with `count` copies of a single row."""
        copy = LayerCache()
        copy.keys, copy.values = (part.repeat_interleave(count, dim=0) for part in self.cached)
        copy.stop, copy.drop = copy.keys.shape[1], self.drop
        return copy

    def gather(self, parts: "Sequence[LayerCache]", cached: int) -> None:
        """Take the last `cached` keys of all rows of several caches, with zeros before those that have fewer."""
        wholes = []
        for which, like in enumerate(parts[0].cached):
            num_rows = sum(part.keys.shape[0] for part in parts)
            whole, row = like.new_empty((num_rows, max(self.reserve, 2 * cached + 64), *like.shape[2:])), 0
            for have in (part.cached[which] for part in parts):
                used, rows = min(cached, have.shape[1]), slice(row, row + have.shape[0])
                # zeros, since a key that no query sees must still be a number
                whole[rows, : cached - used] = 0
                whole[rows, cached - used : cached] = have[:, have.shape[1] - used :]
                row = rows.stop
            wholes.append(whole)
        self.keys, self.values = wholes
        self.start, self.stop = 0, cached


class KeyValueCache:
    """The state of decoding: pass the same object to each `Transformer.forward` of one sequence or batch."""

    def __init__(self, config: ModelConfig, *, keep_all_keys: bool = False, reserve: int = 0):
        """keep_all_keys: keep every key of local layers too (for probing); by default only those in the window.

        reserve: tokens that global layers allocate for at the start (the prompt and its answer).
        """
        self.config = config
        self.keep_all_keys = keep_all_keys
        self.layers = [LayerCache(reserve * config.is_global(layer)) for layer in range(config.num_layers)]
        # tokens read, padding included; index of the oldest key that local layers keep
        self.num_tokens = self.first_local_key = 0
        # (B,) int32: segment and block ids of the last token, and where its document starts
        self.segment: Tensor | None = None
        self.block: Tensor | None = None
        self.start: Tensor | None = None
        # the largest of `start`; None until it is needed, since reading it is a device sync
        self._newest_start: int | None = 0
        self._steady: Spans | None = None

    def extend(self, segment: Tensor, block: Tensor) -> tuple[Spans, Spans]:
        """Add the ids of the next T tokens; returns their spans for local and for global layers.

        segment, block: (B, T) int32. Raises ValueError when the batch changes or a media block is continued.
        """
        before, new = self.num_tokens, segment.shape[1]
        continues, all_continue = self._continues(segment, block)
        if new == 1 and all_continue:
            lo = self.start[:, None]
            hi = hi_block = torch.full(segment.shape, before + 1, dtype=torch.int32, device=segment.device)
        else:
            chunk = Spans.packed(segment, block=block)
            lo, hi_block = chunk.lo + before, chunk.hi + before
            if continues is not None:
                # a document that continues began before these tokens
                lo = torch.where((chunk.lo == 0) & continues[:, None], self.start[:, None], lo)
            index = torch.arange(before, before + new, dtype=torch.int32, device=segment.device)
            hi = (index + 1).expand(segment.shape).contiguous()
            self.start = lo[:, -1].clone()
            self._newest_start = None
        self.num_tokens = before + new
        self.segment, self.block = segment[:, -1].clone(), block[:, -1].clone()
        # valid by construction: checking them would be a device sync
        return self._local_spans(lo, hi, hi_block), Spans(lo, hi, self.num_tokens, valid=True)

    def _continues(self, segment: Tensor, block: Tensor) -> tuple[Tensor | None, bool]:
        """((B,) bool: the last token's document continues; whether in all rows); None before the first token."""
        if self.segment is None:
            return None, False
        if segment.shape[0] != self.segment.shape[0]:
            raise ValueError(f"the cache is of batch {len(self.segment)}, this forward of {len(segment)}: use another")
        same = self.segment == segment[:, 0]
        continues = same & (self.segment >= 0)
        cut = same & (self.block == block[:, 0]) & (self.block != 0)
        # both at once, as each would be a device sync
        all_continue, any_cut = torch.stack((continues.all(), cut.any())).tolist()
        if any_cut:
            raise ValueError(
                f"a media block continues across token {self.num_tokens}: give all tokens of a block in one forward"
            )
        return continues, all_continue

    def _local_spans(self, lo: Tensor, hi: Tensor, hi_block: Tensor) -> Spans:
        """Spans of the new queries over the keys that local layers keep; sets what those have to drop."""
        window, new = self.config.window, lo.shape[1]
        before = self.num_tokens - new
        first = self.first_local_key
        if not self.keep_all_keys and window is not None:
            # the oldest new query, at `before`, sees back to before - window + 1
            first = max(0, before - window + 1)
        for layer, cache in enumerate(self.layers):
            cache.drop = 0 if self.config.is_global(layer) else first - self.first_local_key
        self.first_local_key = first
        cached = self.num_tokens - first
        if new == 1 and cached == window and self._newest_start is None:
            self._newest_start = int(self.start.max())
        steady = new == 1 and cached == window and self._newest_start <= first
        if steady and self._steady is not None:
            return self._steady
        if window is not None:
            lo = torch.maximum(lo, hi - window)
            # a window near 2**31 would overflow int32; past the last token it changes nothing
            hi_block = torch.minimum(hi_block, hi + (min(window, self.num_tokens) - 1))
        spans = Spans((lo - first).clamp_(min=0), hi_block - first, cached, valid=True)
        self._steady = spans if steady else None
        return spans

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch (1-D int64 index, ascending), for instance those that have not ended."""
        cached = rows.tolist()
        if cached != sorted(set(cached)):
            raise ValueError(f"rows to keep must ascend, each once; got {cached}")
        self.segment, self.block, self.start = self.segment[rows], self.block[rows], self.start[rows]
        self._newest_start, self._steady = None, None
        for cache in self.layers:
            cache.select(cached)

    def batch_repeat_interleave(self, count: int) -> "KeyValueCache":
        """A new cache with `count` copies of this one's single row, to continue it in several ways. Raises ValueError
        for a cache of several rows or without any."""
        if self.segment is None or len(self.segment) != 1:
            raise ValueError("only a cache of one row can be repeated: read the context alone")
        copy = KeyValueCache(self.config, keep_all_keys=self.keep_all_keys)
        copy.num_tokens, copy.first_local_key = self.num_tokens, self.first_local_key
        copy._newest_start = self._newest_start
        per_row = (self.segment, self.block, self.start)
        copy.segment, copy.block, copy.start = (ids.repeat_interleave(count) for ids in per_row)
        copy.layers = [layer.batch_repeat_interleave(count) for layer in self.layers]
        return copy

    def state(self) -> dict[str, Tensor]:
        """All tensors of the cache, by name: views, to be saved before the next forward. "counts" (2,) int64 is
        num_tokens and first_local_key. Raises ValueError before the first token."""
        if not self.num_tokens:
            raise ValueError("the cache is empty: there is nothing to save before the first forward")
        tensors = {"segment": self.segment, "block": self.block, "start": self.start}
        tensors["counts"] = torch.tensor([self.num_tokens, self.first_local_key])
        for layer, cache in enumerate(self.layers):
            tensors[f"layers.{layer}.keys"], tensors[f"layers.{layer}.values"] = cache.cached
        return tensors

    def load_state(self, read: Callable[[str], Tensor]) -> None:
        """Restore what `state` gave, into an empty cache. read: name -> tensor, called once for each name, so that only
        one layer at a time is in memory twice. Raises ValueError for a state that no cache has given."""
        self.num_tokens, self.first_local_key = read("counts").tolist()
        self.segment, self.block, self.start = (read(name).clone() for name in ("segment", "block", "start"))
        least, self._newest_start = torch.stack((self.start.min(), self.start.max())).tolist()
        if not 0 <= least <= self._newest_start < self.num_tokens:
            raise ValueError(
                f"document starts {least} to {self._newest_start} do not belong to a cache of {self.num_tokens}: "
                "read the prompt again"
            )
        for layer, cache in enumerate(self.layers):
            cache.drop = 0
            cache.append(read(f"layers.{layer}.keys"), read(f"layers.{layer}.values"))

    @classmethod
    def merge(cls, caches: "Sequence[KeyValueCache]", *, reserve: int = 0) -> "KeyValueCache":
        """One cache of all rows of several, which are emptied: as if all had been read together, padded on the left.

        Shorter rows get keys of zeros in front, which no query sees. One layer at a time is in memory twice. reserve:
        as for a new cache, counted from the longest row's start.
        """
        config, keep_all_keys = caches[0].config, caches[0].keep_all_keys
        merged = cls(config, keep_all_keys=keep_all_keys, reserve=reserve)
        merged.num_tokens = max(cache.num_tokens for cache in caches)
        if not keep_all_keys and config.window is not None:
            merged.first_local_key = max(0, merged.num_tokens - config.window + 1)
        pads = [merged.num_tokens - cache.num_tokens for cache in caches]
        merged.segment, merged.block = (torch.cat([getattr(c, name) for c in caches]) for name in ("segment", "block"))
        merged.start = torch.cat([cache.start + pad for cache, pad in zip(caches, pads, strict=True)])
        merged._newest_start = None
        for layer, target in enumerate(merged.layers):
            cached = merged.num_tokens - (0 if config.is_global(layer) else merged.first_local_key)
            target.gather([cache.layers[layer] for cache in caches], cached)
            for cache in caches:
                cache.layers[layer] = LayerCache()
        return merged
