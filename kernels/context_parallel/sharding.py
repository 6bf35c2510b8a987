"""Load-balanced assignment of chunks to ranks: equal tokens, even cost, few bytes.

    assign_chunks(masks, world_size=8, chunk=512, linear=12_000) -> ChunkAssignment

A rank's cost is its tokens times what the linear layers take, plus the area of its queries' spans, by the number of
layers of each kind. Keys and values of a chunk travel once to every rank that needs them and does not hold it. From
contiguous ranges, which send least and are least even, chunks are swapped between the busiest rank and others, each
time the swap that evens out most for what it adds to be sent; then swaps that save bytes follow (README.md). Not
optimal, and not aware of which links are fast.

Legend: N chunks, W ranks, M masks (layer types).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from brine.kernels.attention.spans import Spans
from brine.kernels.context_parallel.layout import visible_chunks

TOLERANCE = 1.05  # cost of the busiest rank over the mean that is aimed at
SWAP_PARTNERS = (8, 16)  # number of least busy ranks that the busiest one may swap with, one try each
PASSES = 4  # times that each rank may look for swaps that save bytes


@dataclass(frozen=True)
class ChunkAssignment:
    """An assignment, with its cost."""

    chunk_ranks: Tensor  # (N,) int64 on the CPU
    imbalance: float  # cost of the busiest rank over the mean
    chunks_sent: list[int]  # for each mask, key chunks that travel in one forward pass of such a layer, over all ranks


def costs(masks: Sequence[tuple[Spans, float]], *, chunk: int, linear: float) -> np.ndarray:
    """(N,) cost of each chunk's queries, in (query, key) pairs.

    masks: (spans of the whole, layers of that kind). linear: FLOPs of the rest of a layer per token, over those of a
    pair.
    """
    num_layers = sum(layers for _, layers in masks)
    total = np.zeros(0)
    for spans, layers in masks:
        visible = (spans.hi - spans.lo).sum(0, dtype=torch.int64).cpu().numpy()
        per_chunk = np.add.reduceat(visible, np.arange(0, len(visible), chunk)).astype(np.float64)
        total = per_chunk * layers + (total if len(total) else 0.0)
    size = np.full(len(total), chunk)
    size[-1] = masks[0][0].num_queries - chunk * (len(total) - 1)
    # whole numbers add up to the same in any order: every rank, on any processor, finds the same assignment
    return np.round(total + linear * num_layers * size * masks[0][0].batch_size)


def contiguous(num_chunks: int, world_size: int) -> np.ndarray:
    """(N,) ranks of a cut into W ranges; where N is not a multiple of W the first ranks hold one chunk more."""
    return np.sort(np.arange(num_chunks) % world_size)


def zigzag(num_chunks: int, world_size: int) -> np.ndarray:
    """(N,) ranks 0, 1, .., W - 1, W - 1, .., 1, 0, 0, 1, ..: even for one causal document."""
    turn, rank = np.divmod(np.arange(num_chunks), world_size)
    return np.where(turn % 2 == 0, rank, world_size - 1 - rank)


def assign_chunks(
    masks: Sequence[tuple[Spans, float]],
    *,
    world_size: int,
    chunk: int,
    linear: float,
    tolerance: float = TOLERANCE,
    max_swaps: int = 4000,
) -> ChunkAssignment:
    """Chunks to ranks. masks as in `costs`; all spans are of the same tokens, a query for each key."""
    num_chunks = -(-masks[0][0].num_queries // chunk)
    found, fine = [], costs(masks, chunk=chunk, linear=linear)
    fine_ends = _ends(masks, chunk)
    for factor in _factors(num_chunks, world_size):
        cost, ends = costs(masks, chunk=chunk * factor, linear=linear), _ends(masks, chunk * factor)
        for partners in sorted({min(each, world_size) for each in SWAP_PARTNERS}):
            table = _AssignmentState(cost, ends, world_size)
            table.balance_load(tolerance, max_swaps, partners)
            table.reduce_traffic(tolerance)
            chunk_ranks = torch.from_numpy(np.repeat(table.chunk_ranks, factor)[:num_chunks])
            found.append(_measure(chunk_ranks, fine, fine_ends, world_size))

    def rank(assignment: ChunkAssignment) -> tuple[float, float]:
        sent = sum(layers * chunks for (_, layers), chunks in zip(masks, assignment.chunks_sent, strict=True))
        return max(tolerance, assignment.imbalance), sent

    # of those that are even enough the one that sends least, and if none is the most even
    return min(found, key=rank)


def _factors(num_chunks: int, world_size: int) -> list[int]:
    """How many neighbouring chunks are assigned as one: so many that a rank gets 8 to 64, where that divides."""
    factors = [1]
    while num_chunks % (2 * factors[-1] * world_size) == 0 and num_chunks // (2 * factors[-1] * world_size) >= 8:
        factors.append(2 * factors[-1])
    few = [factor for factor in factors if num_chunks // (factor * world_size) <= 64]
    return few or factors[-1:]


def measure(
    chunk_ranks: Tensor, masks: Sequence[tuple[Spans, float]], *, world_size: int, chunk: int, linear: float
) -> ChunkAssignment:
    """Imbalance and travelling chunks of any assignment."""
    return _measure(chunk_ranks, costs(masks, chunk=chunk, linear=linear), _ends(masks, chunk), world_size)


def _measure(chunk_ranks: Tensor, cost: np.ndarray, ends: list, world_size: int) -> ChunkAssignment:
    table, every = _AssignmentState(cost, ends, world_size, chunk_ranks.numpy()), np.arange(len(cost))
    sent = [int((cover > 0).sum() - (cover[table.chunk_ranks, every] > 0).sum()) for cover in table.cover]
    return ChunkAssignment(chunk_ranks, float(table.load.max() / table.mean), sent)


def _ends(masks: Sequence[tuple[Spans, float]], chunk: int) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """For each mask the key chunks that chunks reach, (first, stop), and its number of layers."""
    ends = ((*visible_chunks(spans, chunk), layers) for spans, layers in masks)
    return [(first.numpy(), stop.numpy(), layers) for first, stop, layers in ends]


class _AssignmentState:
    """Ranks of chunks, loads of ranks, and how many of a rank's chunks need each key chunk."""

    def __init__(self, cost: np.ndarray, masks: list, world_size: int, chunk_ranks: np.ndarray | None = None):
        self.cost, self.masks, self.world_size = cost, masks, world_size
        self.chunk_ranks = (contiguous(len(cost), world_size) if chunk_ranks is None else chunk_ranks).astype(np.int64)
        self.load = np.bincount(self.chunk_ranks, cost, minlength=world_size)
        self.mean = self.load.mean()
        edges = [np.zeros((world_size, len(cost) + 1), np.int32) for _ in masks]
        for edge, (first, stop, _) in zip(edges, masks, strict=True):
            np.add.at(edge, (self.chunk_ranks, first), 1)
            np.add.at(edge, (self.chunk_ranks, stop), -1)
        self.cover = [np.cumsum(edge, axis=1)[:, :-1] for edge in edges]

    def balance_load(self, tolerance: float, max_swaps: int, partners: int) -> None:
        """Swap with `partners` least busy ranks until the busiest is within tolerance of the mean or cannot improve."""
        for _ in range(max_swaps):
            busy = int(self.load.argmax())
            if self.load[busy] <= tolerance * self.mean:
                return
            idle = np.argsort(self.load, kind="stable")[:partners]
            ours, theirs = np.flatnonzero(self.chunk_ranks == busy), np.flatnonzero(np.isin(self.chunk_ranks, idle))
            mine, other, added = self._swaps(busy, ours, theirs)
            # below the mean there is nothing to be gained
            gain = self.load[busy] - np.maximum(np.maximum(mine, other), self.mean)
            if gain.max(initial=0.0) <= 1e-9 * self.mean:
                return
            score = np.maximum(gain, 0.0) / (np.maximum(added, 0.0) + 1.0)
            self._swap(*_at(int(score.argmax()), ours, theirs))

    def reduce_traffic(self, tolerance: float) -> None:
        """Swaps that make less travel and leave cost within tolerance, or no worse than it is; rank by rank."""
        limit = max(tolerance * self.mean, self.load.max())
        for _ in range(PASSES):
            before = self.chunk_ranks.copy()
            for rank in range(self.world_size):
                ours = np.flatnonzero(self.chunk_ranks == rank)
                # what a rank needs and does not hold is what it could gain by
                theirs = np.flatnonzero((sum(cover[rank] > 0 for cover in self.cover) > 0) & (self.chunk_ranks != rank))
                theirs = theirs[:: max(1, len(theirs) // 64)]
                mine, other, added = self._swaps(rank, ours, theirs)
                added = np.where((mine > limit) | (other > limit), np.inf, added)
                if added.min(initial=0.0) < -1e-9:
                    self._swap(*_at(int(added.argmin()), ours, theirs))
            if (before == self.chunk_ranks).all():
                return

    def _swaps(self, rank: int, ours: np.ndarray, theirs: np.ndarray):
        """Swaps of a rank's chunks (a) for others' (b), (a, b) each: loads of both afterwards, what is sent more."""
        other = self.chunk_ranks[theirs]
        moved = self.cost[ours][:, None] - self.cost[theirs][None]
        added = np.zeros_like(moved)
        for cover, (first, stop, layers) in zip(self.cover, self.masks, strict=True):
            added += layers * (
                self._change(cover[rank][None], first, stop, ours, theirs)
                + self._change(cover[other], first, stop, theirs, ours).T
            )
        return self.load[rank] - moved, self.load[other][None] + moved, added

    def _change(self, cover: np.ndarray, first, stop, out: np.ndarray, into: np.ndarray) -> np.ndarray:
        """(out, into): key chunks a rank needs more when it swaps.

        cover: (1 or out, N) of the rank that gives each chunk.
        """
        index = np.arange(cover.shape[1])
        inside = (index >= first[out][:, None]) & (index < stop[out][:, None])
        without = cover - inside
        lost = ((cover > 0) & (without <= 0)).sum(1)
        free = np.zeros((len(out), cover.shape[1] + 1), np.int32)
        np.cumsum(without <= 0, axis=1, out=free[:, 1:])
        return free[:, stop[into]] - free[:, first[into]] - lost[:, None]

    def _swap(self, one: int, two: int) -> None:
        a, b = self.chunk_ranks[one], self.chunk_ranks[two]
        for cover, (first, stop, _) in zip(self.cover, self.masks, strict=True):
            for chunk, giver, taker in ((one, a, b), (two, b, a)):
                cover[giver, first[chunk] : stop[chunk]] -= 1
                cover[taker, first[chunk] : stop[chunk]] += 1
        self.load[a] += self.cost[two] - self.cost[one]
        self.load[b] += self.cost[one] - self.cost[two]
        self.chunk_ranks[one], self.chunk_ranks[two] = b, a


def _at(index: int, ours: np.ndarray, theirs: np.ndarray) -> tuple[int, int]:
    """The two chunks of an element, by its flat index, of an (a, b) array."""
    return int(ours[index // len(theirs)]), int(theirs[index % len(theirs)])
