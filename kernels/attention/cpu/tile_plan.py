"""How the CPU walks a mask: rows cut into tiles, tiles into pieces, like pieces batched into one call each.

A *piece* is a rectangle of consecutive rows and consecutive keys of one sequence, of one kind:

    full     every row sees every key: no mask
    causal   a square, row i sees keys up to i: the flash op's own causal mode, which skips the upper half
    masked   anything else: a small additive mask

Short closed stretches (a packed document) become one piece each, and pieces whose sizes round up to the same padded
size are gathered into one call, so a batch of a hundred short documents costs a handful of calls. Long stretches are
cut where the shape of the mask changes, so that most of their area lies in full and causal pieces; rows whose keys
lie in several pieces are merged by log-sum-exp, one *round* after the other.

A plan depends on `lo` and `hi` alone. It is made once per `Spans`, on the host, in about 5 microseconds a piece, and
used by every layer, forward and backward. The sizes below were chosen by measurement on 2 cores with AVX-512; see
README.md. Legend: B batch, T query rows, S keys; n pieces in a call, M rows and L keys of a piece.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

MERGE_ROWS = 32
"""Neighbouring closed stretches share a piece up to this many rows, or one-token documents would be a piece each."""
WHOLE_ROWS = 80
"""A closed stretch up to this long is one piece, whatever its mask."""
TILE_ROWS = 64
"""Rows of a tile over up to `NEAR_KEYS` keys."""
NEAR_KEYS = 1024
"""Up to this many keys, narrow tiles with a mask are faster than the op's causal mode, which skips keys by 512."""
FAR_ROWS = 256
"""Rows of a tile over more keys, and the length from which a run of rows with one shape of mask is a tile there."""
SPLIT_KEYS = 1024
"""A tile with at least this many keys that all of its rows see has them computed as a full piece."""
CALL_ROWS = 32768
"""Rows and keys gathered in one call, which bounds its temporary memory."""
SHARE_MASKS = 2**21
"""Elements of all masks of one size from which it pays to look for equal ones."""
MASK_BYTES = 128 * 2**20
"""Masks are kept up to this size in all; what is beyond is made again at each use."""

# what two neighbouring rows have in common: the kind of the edge between them
_FLAT, _STEP, _SLIDE, _OTHER, _CLOSED = range(5)


@dataclass
class TileCall:
    """Pieces of one kind and one (padded) size, computed by one call of the flash op."""

    kind: str
    """"full", "causal" or "masked"."""
    num: int
    """n."""
    rows: int
    """M."""
    keys: int
    """L."""
    window: tuple[int, int, int, int] | None
    """(first sequence, one past the last, first row, first key) where the n pieces are the same slice of consecutive
    sequences, so that nothing need be gathered; None otherwise."""
    row_from: Tensor | None = None
    """(n * M,) flat row b * T + i to read for each row of each piece; any row for padding."""
    row_to: Tensor | None = None
    """(n * M,) flat row to write, or B * T, a place that nobody reads, for padding and rows that see nothing here."""
    key_from: Tensor | None = None
    """(n * L,) flat key b * S + j to read."""
    key_to: Tensor | None = None
    """(n * L,) flat key to add gradients to, or B * S for padding."""
    lo: Tensor | None = None
    """(n, M) or (1, M), first key of the piece that each row sees; masked pieces only."""
    hi: Tensor | None = None
    """One past the last such key."""
    keep_mask: bool = True
    """Whether the mask is kept after its first use."""
    masks: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """(n, 1, M, L) or (1, 1, M, L), 0 where seen and -inf where not; None for full and causal pieces.

        This is the one place where the CPU backend applies a mask by value.
        """
        if self.kind != "masked":
            return None
        made = self.masks.get(dtype)
        if made is None:
            assert self.lo is not None and self.hi is not None
            key = torch.arange(self.keys)
            visible = (key >= self.lo[..., None]) & (key < self.hi[..., None])
            made = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -torch.inf)[:, None]
            if self.keep_mask:
                self.masks[dtype] = made
        return made


@dataclass(frozen=True)
class TilePlan:
    """The calls of one mask, round by round."""

    calls: tuple[tuple[TileCall, ...], ...]
    """calls[r] are the calls of round r; in a round, each row is written at most once."""
    num_pairs: int
    """Row-key pairs that the calls compute (half of them in causal ones), to compare with the spans' area."""


@dataclass(frozen=True, slots=True)
class _MaskBlock:
    round: int
    kind: str
    batch: int
    row: int
    num_queries: int
    key: int
    num_keys: int
    shape: tuple[int, int] | None
    """Kind of edge and keys that the first row sees, where they determine the mask; such pieces share one."""


def build_tile_plan(lo: Tensor, hi: Tensor, num_keys: int) -> TilePlan:
    """The plan of one mask. lo, hi: (B, T) int32 on the CPU, as in `Spans`."""
    _batch, _num_rows = lo.shape
    blocks = _MaskSplitter(lo, hi).split() if lo.numel() else []

    buckets: dict[tuple, list[_MaskBlock]] = {}
    for block in blocks:
        buckets.setdefault((block.round, block.kind, *_padded(block)), []).append(block)
    for bucket, members in list(buckets.items()):
        shapes = {block.shape for block in members}
        # where their masks are large in all, pieces with equal ones get calls of their own, to share one mask
        if bucket[1] == "masked" and len(shapes) > 1 and len(members) * bucket[2] * bucket[3] >= SHARE_MASKS:
            del buckets[bucket]
            for block in members:
                buckets.setdefault((*bucket, block.shape), []).append(block)

    rounds: list[list[TileCall]] = [[] for _ in range(1 + max((p.round for p in blocks), default=0))]
    mask_bytes = 0
    for (round_index, kind, rows, keys, *_), members in buckets.items():
        shape = members[0].shape if len({block.shape for block in members}) == 1 else None
        step = max(1, CALL_ROWS // (rows + keys))
        for first in range(0, len(members), step):
            call = _make_call(kind, rows, keys, members[first : first + step], lo, hi, num_keys, shape)
            if kind == "masked":
                mask_bytes += 4 * call.lo.numel() * call.keys
                call.keep_mask = mask_bytes <= MASK_BYTES
            rounds[round_index].append(call)
    return TilePlan(
        calls=tuple(tuple(calls) for calls in rounds),
        num_pairs=sum(c.num * c.rows * c.keys for calls in rounds for c in calls),
    )


class _MaskSplitter:
    """Cuts the rows of all sequences into pieces. Rows are numbered flat, b * T + i."""

    def __init__(self, lo: Tensor, hi: Tensor) -> None:
        batch, self.num_queries = lo.shape
        kind = torch.full((batch, self.num_queries), _CLOSED, dtype=torch.int8)
        rise_lo, rise_hi = lo.diff(dim=1), hi.diff(dim=1)
        edge = torch.full_like(rise_lo, _OTHER, dtype=torch.int8)
        edge[(rise_lo == 0) & (rise_hi == 0)] = _FLAT
        edge[(rise_lo == 0) & (rise_hi == 1)] = _STEP
        edge[(rise_lo == 1) & (rise_hi == 1)] = _SLIDE
        # no key is seen from both sides: as both ends never decrease, nothing crosses from here on
        edge[lo[:, 1:] >= hi[:, :-1]] = _CLOSED
        kind[:, 1:] = edge
        kind = kind.flatten()

        self.lo, self.hi, self.kind = lo.flatten().tolist(), hi.flatten().tolist(), kind.tolist()
        self.segment_starts = [*(kind == _CLOSED).nonzero().flatten().tolist(), kind.numel()]
        # run_end[r]: first row after r whose edge is of another kind than r's
        opens = torch.cat([(kind[1:] != kind[:-1]).nonzero().flatten() + 1, torch.tensor([kind.numel()])])
        lengths = opens.diff(prepend=opens.new_zeros(1))
        self.run_end = opens.repeat_interleave(lengths).tolist()
        self.blocks: list[_MaskBlock] = []

    def split(self) -> list[_MaskBlock]:
        waiting = None
        for a, b in zip(self.segment_starts, self.segment_starts[1:], strict=False):
            if waiting is not None:
                # among chosen rows and keys there may be many unseen keys between two stretches
                wide = b - waiting > MERGE_ROWS or self.hi[b - 1] - self.lo[waiting] > 8 * MERGE_ROWS
                if wide or a % self.num_queries == 0 or self.lo[a] == self.hi[a]:
                    self.add_segment(waiting, a)
                    waiting = None
            if self.lo[a] == self.hi[a]:
                continue
            if b - a <= MERGE_ROWS:
                waiting = a if waiting is None else waiting
            elif b - a <= WHOLE_ROWS and self.hi[b - 1] - self.lo[a] <= NEAR_KEYS:
                self.add_segment(a, b)
            else:
                self.split_segment(a, b)
        if waiting is not None:
            self.add_segment(waiting, self.segment_starts[-1])
        return self.blocks

    def all_edges(self, a: int, b: int, kind: int) -> bool:
        """Whether the edges inside rows [a, b) are all of one kind."""
        return b - a == 1 or (self.kind[a + 1] == kind and self.run_end[a + 1] >= b)

    def add(self, round_index: int, kind: str, a: int, b: int, c: int, d: int) -> None:
        """Rows [a, b) over keys [c, d) as a piece of round `round_index`."""
        batch, row = divmod(a, self.num_queries)
        shape = None
        if kind == "masked" and (c, d) == (self.lo[a], self.hi[b - 1]):
            for edge in (_STEP, _SLIDE):
                if self.all_edges(a, b, edge):
                    shape = (edge, self.hi[a] - c)
                    break
        self.blocks.append(_MaskBlock(round_index, kind, batch, row, b - a, c, d - c, shape))

    def add_segment(self, a: int, b: int) -> None:
        """Rows [a, b), few, as one piece if their keys are few as well."""
        lo, hi = self.lo[a], self.hi[b - 1]
        if self.hi[a] - lo == 1 and self.all_edges(a, b, _STEP):
            self.add(0, "causal", a, b, lo, hi)
        else:
            self.tile(a, b)

    def split_segment(self, a: int, b: int) -> None:
        """Rows [a, b), many or with many keys: long runs of one kind of edge over many keys, and rows that all see the
        same, are tiles of their own; what lies between is cut by number."""
        start = row = a
        while row < b:
            end = min(self.run_end[row + 1], b) if row + 1 < b else b
            kind = self.kind[row + 1] if row + 1 < b else _OTHER
            far = end - row >= FAR_ROWS and self.hi[end - 1] - self.lo[row] > NEAR_KEYS
            flat = kind == _FLAT and end - row >= TILE_ROWS
            if flat or (far and kind in (_FLAT, _STEP)):
                self.split_by_count(start, row)
                self.tile(row, end)
                start = row = end
            elif end - row >= TILE_ROWS and kind in (_STEP, _SLIDE):
                # its tiles have to begin where it begins, to share their masks
                self.split_by_count(start, row)
                self.split_by_count(row, end)
                start = row = end
            else:
                # the run's last row may open the next run as well
                row = end - 1 if row < end - 1 else row + 1
        self.split_by_count(start, b)

    def split_by_count(self, a: int, b: int) -> None:
        while a < b:
            end = min(a + TILE_ROWS, b)
            if self.hi[end - 1] - self.lo[a] > NEAR_KEYS:
                end = min(a + FAR_ROWS, b)
            self.tile(a, end)
            a = end

    def tile(self, a: int, b: int) -> None:
        """Rows [a, b) over their one range of keys: partial | full | partial, or less where that is faster."""
        lo_min, lo_max, hi_min, hi_max = self.lo[a], self.lo[b - 1], self.hi[a], self.hi[b - 1]
        near = hi_max - lo_min <= NEAR_KEYS
        if b - a >= FAR_ROWS and not near and self.all_edges(a, b, _STEP):
            # causal rows after keys that all of them see
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
    """(M, L) of the call that a piece joins. A full piece has no mask that could hide padding."""
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
    kind: str,
    rows: int,
    keys: int,
    blocks: list[_MaskBlock],
    lo: Tensor,
    hi: Tensor,
    num_keys: int,
    shape: tuple[int, int] | None,
) -> TileCall:
    batch, num_queries = lo.shape
    num, first = len(blocks), blocks[0]
    if num == 1:
        rows, keys = first.num_queries, first.num_keys
    call = TileCall(kind, num, rows, keys, window=None)

    origin = torch.tensor([(p.batch, p.row, p.num_queries, p.key, p.num_keys) for p in blocks]).T[..., None]
    at, row, len_rows, key, len_keys = origin
    row_range, key_range = torch.arange(rows), torch.arange(keys)
    row_index = at * num_queries + torch.where(row_range < len_rows, row + row_range, row)
    used = (row_range < len_rows).expand(num, rows)
    if kind == "masked":
        call.lo = torch.minimum((lo.flatten()[row_index] - key).clamp(min=0), len_keys)
        call.hi = torch.minimum((hi.flatten()[row_index] - key).clamp(min=0), len_keys)
        used = used & (call.lo < call.hi)
        call.lo, call.hi = call.lo.masked_fill(~used, 0), call.hi.masked_fill(~used, 0)

    same = all(
        (p.batch, p.row, p.num_queries, p.key, p.num_keys) == (first.batch + i, first.row, rows, first.key, keys)
        for i, p in enumerate(blocks)
    )
    if same and bool(used.all()):
        call.window = (first.batch, first.batch + num, first.row, first.key)
    else:
        key_used = key_range < len_keys
        key_index = at * num_keys + torch.where(key_used, key + key_range, key)
        call.row_from, call.key_from = row_index.flatten(), key_index.flatten()
        call.row_to = row_index.masked_fill(~used, batch * num_queries).flatten()
        call.key_to = key_index.masked_fill(~key_used, batch * num_keys).flatten()
    if shape is not None:
        # one mask for all; what it gives to padding goes nowhere
        edge, visible = shape
        call.lo = (row_range if edge == _SLIDE else torch.zeros_like(row_range))[None]
        call.hi = (visible + row_range)[None]
    return call
