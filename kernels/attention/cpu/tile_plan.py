"""How the CPU walks a mask: queries cut into tiles, tiles into blocks, like blocks batched into one call each.

A *block* is a rectangle of consecutive queries and consecutive keys of one sequence, of one kind:

    full     every query sees every key: no mask
    causal   a square, query i sees keys up to i: the flash op's causal mode, which skips the upper half
    masked   anything else: a small additive mask

README.md ("On the CPU") says how blocks are chosen. A plan depends on `lo` and `hi` alone and is made once per `Spans`,
on the host, in about 5 microseconds per block. The sizes below were measured on 2 cores with AVX-512.

Legend: B batch, T queries, S keys; n blocks in a call, M queries and L keys of a block.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor

MERGE_QUERIES = 32
"""Neighbouring closed segments share a block up to this many queries, or one-token documents would be a block each."""
WHOLE_QUERIES = 80  # a closed segment up to this long is one block, whatever its mask
TILE_QUERIES = 64  # queries of a tile over up to `NEAR_KEYS` keys
NEAR_KEYS = 1024
"""Up to this many keys, narrow tiles with a mask are faster than the op's causal mode, which skips keys by 512."""
FAR_QUERIES = 256
"""Queries of a tile over more keys, and the length from which a run with one shape of mask is a tile there."""
SPLIT_KEYS = 1024  # a tile with at least this many keys that all of its queries see has them computed as a full block
CALL_ROWS = 32768  # queries and keys gathered in one call, which bounds its temporary memory
SHARE_MASKS = 2**21  # elements of all masks of one size from which it pays to look for equal ones
MASK_BYTES = 128 * 2**20  # masks are kept up to this size in all; those beyond are made again at each use

# what two neighbouring queries have in common: the kind of the edge between them
_FLAT, _STEP, _SLIDE, _OTHER, _CLOSED = range(5)


@dataclass
class TileSide:
    """A call's queries, or keys, in (B, N, ...) tensors and flat (B * N + 1, ...) buffers, the last never read."""

    num: int  # n
    size: int  # M or L
    total: int  # N, tokens of a sequence
    window: tuple[slice, slice] | None
    """(sequences, tokens) where the n blocks are one slice of consecutive sequences; None where they are gathered."""
    source: Tensor | None = None  # (n * size,) flat index to read; any index for padding
    target: Tensor | None = None
    """(n * size,) flat index to write, or B * N for padding and for queries that see nothing here."""

    def take(self, x: Tensor) -> Tensor:
        """(B, N, ...) -> (n, size, ...)."""
        if self.window is not None:
            return x[self.window]
        assert self.source is not None
        return x.reshape(-1, *x.shape[2:]).index_select(0, self.source).view(self.num, self.size, *x.shape[2:])

    def view(self, buffer: Tensor) -> Tensor:
        """The window of a (B * N + 1, ...) buffer -> (n, size, ...)."""
        assert self.window is not None
        return buffer[:-1].view(-1, self.total, *buffer.shape[1:])[self.window]

    def read(self, buffer: Tensor) -> Tensor:
        """(B * N + 1, ...) -> (n, size, ...)."""
        if self.window is not None:
            return self.view(buffer)
        assert self.target is not None
        return buffer.index_select(0, self.target).view(self.num, self.size, *buffer.shape[1:])

    def add(self, buffer: Tensor, part: Tensor) -> None:
        if self.window is not None:
            self.view(buffer).add_(part)
        else:
            assert self.target is not None
            buffer.index_add_(0, self.target, part.reshape(-1, *buffer.shape[1:]).to(buffer.dtype))


@dataclass
class TileCall:
    """Blocks of one kind and one (padded) size, computed by one call of the flash op."""

    kind: str  # "full", "causal" or "masked"
    queries: TileSide
    keys: TileSide
    lo: Tensor | None = None  # (n, M) or (1, M), first key of the block that each query sees; masked blocks only
    hi: Tensor | None = None  # one past the last such key
    keep_mask: bool = True  # whether the mask is kept after its first use
    masks: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """(n or 1, 1, M, L), 0 where visible, else -inf; None for full and causal blocks."""
        if self.lo is None or self.hi is None:
            return None
        made = self.masks.get(dtype)
        if made is None:
            key = torch.arange(self.keys.size)
            visible = (key >= self.lo[..., None]) & (key < self.hi[..., None])
            made = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -torch.inf)[:, None]
            if self.keep_mask:
                self.masks[dtype] = made
        return made


@dataclass(frozen=True)
class TilePlan:
    """The calls of one mask, round by round."""

    calls: tuple[tuple[TileCall, ...], ...]
    """calls[r] are the calls of round r; in a round, each query is written at most once."""
    num_pairs: int
    """(Query, key) pairs that the calls compute (half of them in causal ones), to compare with the spans' area."""


@dataclass(frozen=True, slots=True)
class _MaskBlock:
    round: int
    kind: str
    batch: int
    query: int
    num_queries: int
    key: int
    num_keys: int
    shape: tuple[int, int] | None
    """Kind of edge and keys that the first query sees, where they determine the mask; such blocks share one."""


def build_tile_plan(lo: Tensor, hi: Tensor, num_keys: int) -> TilePlan:
    """The plan of one mask. lo, hi: (B, T) int32 on the CPU, as in `Spans`."""
    blocks = _MaskSplitter(lo, hi).split() if lo.numel() else []

    buckets: dict[tuple, list[_MaskBlock]] = defaultdict(list)
    for block in blocks:
        buckets[block.round, block.kind, *_padded(block)].append(block)
    for bucket, members in list(buckets.items()):
        shapes = {block.shape for block in members}
        # where their masks are large in all, blocks with equal ones get separate calls, to share one mask
        if bucket[1] == "masked" and len(shapes) > 1 and len(members) * bucket[2] * bucket[3] >= SHARE_MASKS:
            del buckets[bucket]
            for block in members:
                buckets[*bucket, block.shape].append(block)

    rounds: list[list[TileCall]] = [[] for _ in range(1 + max((block.round for block in blocks), default=0))]
    mask_bytes = 0
    for (round_index, kind, queries, keys, *_), members in buckets.items():
        shape = members[0].shape if len({block.shape for block in members}) == 1 else None
        step = max(1, CALL_ROWS // (queries + keys))
        for first in range(0, len(members), step):
            call = _make_call(kind, queries, keys, members[first : first + step], lo, hi, num_keys, shape)
            if call.lo is not None:
                mask_bytes += 4 * call.lo.numel() * call.keys.size
                call.keep_mask = mask_bytes <= MASK_BYTES
            rounds[round_index].append(call)
    return TilePlan(
        calls=tuple(tuple(calls) for calls in rounds),
        num_pairs=sum(c.keys.num * c.queries.size * c.keys.size for calls in rounds for c in calls),
    )


class _MaskSplitter:
    """Cuts the queries of all sequences into blocks. Queries are numbered flat, b * T + i."""

    def __init__(self, lo: Tensor, hi: Tensor) -> None:
        batch, self.num_queries = lo.shape
        kind = torch.full((batch, self.num_queries), _CLOSED, dtype=torch.int8)
        rise_lo, rise_hi = lo.diff(dim=1), hi.diff(dim=1)
        edge = torch.full_like(rise_lo, _OTHER, dtype=torch.int8)
        edge[(rise_lo == 0) & (rise_hi == 0)] = _FLAT
        edge[(rise_lo == 0) & (rise_hi == 1)] = _STEP
        edge[(rise_lo == 1) & (rise_hi == 1)] = _SLIDE
        # no key is visible from both sides: as both ends are non-decreasing, nothing crosses from here on
        edge[lo[:, 1:] >= hi[:, :-1]] = _CLOSED
        kind[:, 1:] = edge
        kind = kind.flatten()

        self.lo, self.hi, self.kind = lo.flatten().tolist(), hi.flatten().tolist(), kind.tolist()
        self.segment_starts = [*(kind == _CLOSED).nonzero().flatten().tolist(), kind.numel()]
        # run_end[i]: first query after i whose edge is of another kind than i's
        opens = torch.cat([(kind[1:] != kind[:-1]).nonzero().flatten() + 1, torch.tensor([kind.numel()])])
        lengths = opens.diff(prepend=opens.new_zeros(1))
        self.run_end = opens.repeat_interleave(lengths).tolist()
        self.blocks: list[_MaskBlock] = []

    def split(self) -> list[_MaskBlock]:
        waiting = None
        for a, b in zip(self.segment_starts, self.segment_starts[1:], strict=False):
            if waiting is not None:
                # among chosen queries and keys there may be many unseen keys between two segments
                wide = b - waiting > MERGE_QUERIES or self.hi[b - 1] - self.lo[waiting] > 8 * MERGE_QUERIES
                if wide or a % self.num_queries == 0 or self.lo[a] == self.hi[a]:
                    self.add_segment(waiting, a)
                    waiting = None
            if self.lo[a] == self.hi[a]:
                continue
            if b - a <= MERGE_QUERIES:
                waiting = a if waiting is None else waiting
            elif b - a <= WHOLE_QUERIES and self.hi[b - 1] - self.lo[a] <= NEAR_KEYS:
                self.add_segment(a, b)
            else:
                self.split_segment(a, b)
        if waiting is not None:
            self.add_segment(waiting, self.segment_starts[-1])
        return self.blocks

    def all_edges(self, a: int, b: int, kind: int) -> bool:
        return b - a == 1 or (self.kind[a + 1] == kind and self.run_end[a + 1] >= b)

    def add(self, round_index: int, kind: str, a: int, b: int, c: int, d: int) -> None:
        batch, query = divmod(a, self.num_queries)
        shape = None
        if kind == "masked" and (c, d) == (self.lo[a], self.hi[b - 1]):
            for edge in (_STEP, _SLIDE):
                if self.all_edges(a, b, edge):
                    shape = (edge, self.hi[a] - c)
                    break
        self.blocks.append(_MaskBlock(round_index, kind, batch, query, b - a, c, d - c, shape))

    def add_segment(self, a: int, b: int) -> None:
        """Queries [a, b), few, as one block if their keys are few as well."""
        lo, hi = self.lo[a], self.hi[b - 1]
        if self.hi[a] - lo == 1 and self.all_edges(a, b, _STEP):
            self.add(0, "causal", a, b, lo, hi)
        else:
            self.tile(a, b)

    def split_segment(self, a: int, b: int) -> None:
        """Queries [a, b), many or with many keys.

        Long runs of one kind of edge over many keys, and runs that see the same keys, are a tile each; what lies
        between is cut by number.
        """
        start = at = a
        while at < b:
            end = min(self.run_end[at + 1], b) if at + 1 < b else b
            kind = self.kind[at + 1] if at + 1 < b else _OTHER
            far = end - at >= FAR_QUERIES and self.hi[end - 1] - self.lo[at] > NEAR_KEYS
            flat = kind == _FLAT and end - at >= TILE_QUERIES
            if flat or (far and kind in (_FLAT, _STEP)):
                self.split_by_count(start, at)
                self.tile(at, end)
                start = at = end
            elif end - at >= TILE_QUERIES and kind in (_STEP, _SLIDE):
                # its tiles have to begin where it begins, to share their masks
                self.split_by_count(start, at)
                self.split_by_count(at, end)
                start = at = end
            else:
                # the run's last query may open the next run as well
                at = end - 1 if at < end - 1 else at + 1
        self.split_by_count(start, b)

    def split_by_count(self, a: int, b: int) -> None:
        while a < b:
            end = min(a + TILE_QUERIES, b)
            if self.hi[end - 1] - self.lo[a] > NEAR_KEYS:
                end = min(a + FAR_QUERIES, b)
            self.tile(a, end)
            a = end

    def tile(self, a: int, b: int) -> None:
        """Queries [a, b) over their one range of keys: partial | full | partial, or less where that is faster."""
        lo_min, lo_max, hi_min, hi_max = self.lo[a], self.lo[b - 1], self.hi[a], self.hi[b - 1]
        near = hi_max - lo_min <= NEAR_KEYS
        if b - a >= FAR_QUERIES and not near and self.all_edges(a, b, _STEP):
            # causal queries after keys that all of them see
            if hi_min - lo_min > 1:
                self.add(0, "full", a, b, lo_min, hi_min - 1)
            self.add(min(1, hi_min - lo_min - 1), "causal", a, b, hi_min - 1, hi_max)
        elif self.all_edges(a, b, _FLAT) and not near:
            self.add(0, "full", a, b, lo_min, hi_min)
        elif hi_min - lo_max >= SPLIT_KEYS:
            self.add(0, "full", a, b, lo_max, hi_min)
            if lo_min < lo_max:
                self.add(1, "masked", a, b, lo_min, lo_max)
            if hi_min < hi_max:
                self.add(2, "masked", a, b, hi_min, hi_max)
        else:
            self.add(0, "masked", a, b, lo_min, hi_max)


def _padded(block: _MaskBlock) -> tuple[int, int]:
    """(M, L) of the call that a block joins. A full block has no mask that could hide padding."""
    if block.kind == "full":
        return block.num_queries, block.num_keys
    if block.kind == "causal":
        size = _round_up(block.num_queries)
        return size, size
    return _round_up(block.num_queries), _round_up(block.num_keys)


def _round_up(size: int) -> int:
    if size <= 16:
        return 1 << (size - 1).bit_length()
    unit = 16 if size <= 128 else 32 if size <= 256 else 64
    return size if size > 512 else -(-size // unit) * unit


def _make_call(
    kind: str, queries: int, keys: int, blocks: list[_MaskBlock], lo: Tensor, hi: Tensor, num_keys: int,
    shape: tuple[int, int] | None,
) -> TileCall:  # fmt: skip
    batch, num_queries = lo.shape
    num, first = len(blocks), blocks[0]
    if num == 1:
        queries, keys = first.num_queries, first.num_keys

    origin = torch.tensor([(p.batch, p.query, p.num_queries, p.key, p.num_keys) for p in blocks]).T[..., None]
    at, query, len_queries, key, len_keys = origin
    query_range, key_range = torch.arange(queries), torch.arange(keys)
    query_index = at * num_queries + torch.where(query_range < len_queries, query + query_range, query)
    used = (query_range < len_queries).expand(num, queries)
    call_lo = call_hi = None
    if kind == "masked":
        call_lo = torch.minimum((lo.flatten()[query_index] - key).clamp(min=0), len_keys)
        call_hi = torch.minimum((hi.flatten()[query_index] - key).clamp(min=0), len_keys)
        used = used & (call_lo < call_hi)
        call_lo, call_hi = call_lo.masked_fill(~used, 0), call_hi.masked_fill(~used, 0)

    same = all(
        (p.batch, p.query, p.num_queries, p.key, p.num_keys) == (first.batch + i, first.query, queries, first.key, keys)
        for i, p in enumerate(blocks)
    )
    if same and bool(used.all()):
        sequences = slice(first.batch, first.batch + num)
        window = sequences, slice(first.query, first.query + queries)
        query_side = TileSide(num, queries, num_queries, window)
        key_side = TileSide(num, keys, num_keys, (sequences, slice(first.key, first.key + keys)))
    else:
        key_used = key_range < len_keys
        key_index = at * num_keys + torch.where(key_used, key + key_range, key)
        target = query_index.masked_fill(~used, batch * num_queries).flatten()
        query_side = TileSide(num, queries, num_queries, None, query_index.flatten(), target)
        target = key_index.masked_fill(~key_used, batch * num_keys).flatten()
        key_side = TileSide(num, keys, num_keys, None, key_index.flatten(), target)
    if shape is not None:
        # one mask for all; what it gives to padding goes nowhere
        edge, visible = shape
        call_lo = (query_range if edge == _SLIDE else torch.zeros_like(query_range))[None]
        call_hi = (visible + query_range)[None]
    return TileCall(kind, query_side, key_side, call_lo, call_hi)
