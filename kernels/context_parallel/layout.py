"""Which rank holds which tokens, and the spans of one rank's rows.

    S tokens are cut into N chunks of `chunk` tokens (the last may be shorter); owner[c] is the rank that holds chunk c

A rank's chunks stay in ascending order, so its rows' spans never decrease and any held range of keys is again one
interval (`Spans.onto`). Spans stay *global*: row r of a rank sees keys [lo[r], hi[r]) of all S, wherever they lie. From
the spans of all rows every rank knows which key chunks each rank needs, so nothing has to be asked for.

Legend: B batch, S tokens of the whole, T tokens of this rank, N chunks, W ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from brine.kernels.attention.spans import Spans


@dataclass(frozen=True, eq=False)
class ContextLayout:
    """How S tokens lie on W ranks, as seen from one of them. Raises ValueError where that cannot be."""

    chunk_ranks: Tensor
    """(N,) int64 on the CPU, rank that holds each chunk."""
    chunk: int
    """Tokens of a chunk."""
    num_tokens: int
    """S."""
    rank: int
    world_size: int
    """W."""
    group: str = ""
    """Name of the process group, as torch.distributed knows it; empty where ranks are simulated."""

    def __post_init__(self) -> None:
        if self.chunk < 1 or self.num_tokens < 1:
            raise ValueError(f"chunk {self.chunk} and num_tokens {self.num_tokens} must be at least 1")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} does not lie in a world of {self.world_size}")
        expected = (-(-self.num_tokens // self.chunk),)
        if (
            self.chunk_ranks.shape != expected
            or self.chunk_ranks.dtype != torch.int64
            or self.chunk_ranks.device.type != "cpu"
        ):
            raise ValueError(
                f"owner must be {expected} int64 on the CPU for {self.num_tokens} tokens in chunks of {self.chunk}; "
                f"got {tuple(self.chunk_ranks.shape)} of {self.chunk_ranks.dtype} on {self.chunk_ranks.device}"
            )
        if int(self.chunk_ranks.min()) < 0 or int(self.chunk_ranks.max()) >= self.world_size:
            raise ValueError(f"owner names ranks outside 0..{self.world_size - 1}")

    def of(self, rank: int) -> ContextLayout:
        """The same, seen from another rank."""
        return ContextLayout(self.chunk_ranks, self.chunk, self.num_tokens, rank, self.world_size, self.group)

    def chunks(self, rank: int | None = None) -> list[int]:
        """A rank's chunks, ascending; this one's by default."""
        return (self.chunk_ranks == (self.rank if rank is None else rank)).nonzero().flatten().tolist()

    def size(self, chunk: int) -> int:
        """Tokens of a chunk."""
        return min(self.chunk, self.num_tokens - chunk * self.chunk)

    def index_of(self, chunks: list[int]) -> Tensor:
        """(n,) int64 places in the whole of the tokens of some chunks."""
        pieces = [torch.arange(c * self.chunk, c * self.chunk + self.size(c)) for c in chunks]
        return torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.int64)

    def index(self, rank: int | None = None) -> Tensor:
        """(T,) int64 places in the whole of a rank's tokens; this one's by default."""
        return self.index_of(self.chunks(rank))

    def shard(self, x: Tensor, dim: int = 1) -> Tensor:
        """This rank's tokens of a whole tensor, which has S of them along `dim`."""
        if x.shape[dim] != self.num_tokens:
            raise ValueError(f"dim {dim} of {tuple(x.shape)} must be the {self.num_tokens} tokens of the whole")
        return x.index_select(dim, self.index().to(x.device))


def visible_chunks(spans: Spans, chunk: int) -> tuple[Tensor, Tensor]:
    """(first, stop) of the key chunks that some row of each chunk sees, in any sequence of the batch: (N,) int64 each.

    Rows of packed sequences see themselves, and neighbours overlap or touch, so what is between is seen as well; for
    other spans it is a bound. stop <= first where nothing is seen.
    """
    starts = torch.arange(0, spans.num_queries, chunk)
    ends = (starts + chunk).clamp(max=spans.num_queries) - 1
    lo, hi = (end.long() for end in spans.host())
    first = lo[:, starts].amin(0) // chunk
    stop = -(-hi[:, ends].amax(0) // chunk)
    return first, torch.where(hi[:, ends].amax(0) > lo[:, starts].amin(0), stop, first)


def needed_chunks_of(spans: Spans, layout: ContextLayout) -> Tensor:
    """(W, N) bool, key chunks that each rank's rows see."""
    first, stop = visible_chunks(spans, layout.chunk)
    edges = torch.zeros(layout.world_size, len(layout.chunk_ranks) + 1, dtype=torch.int64)
    one = torch.ones(len(first), dtype=torch.int64)
    edges.index_put_((layout.chunk_ranks, first), one, accumulate=True)
    edges.index_put_((layout.chunk_ranks, stop), -one, accumulate=True)
    return edges.cumsum(1)[:, :-1] > 0


@dataclass(frozen=True, eq=False)
class ShardedSpans(Spans):
    """The spans of one rank's rows over all S keys, with the layout of both.

    lo, hi: (B, T) of this rank's rows, with global ends. `attention` takes q, k and v of this rank's tokens with it,
    and gives out of this rank's rows; every rank of the group must make the same calls.
    """

    layout: ContextLayout = field(kw_only=True)
    needed_chunks: Tensor = field(kw_only=True)
    """(W, N) bool on the CPU, key chunks that each rank's rows see."""

    @classmethod
    def shard(cls, spans: Spans, layout: ContextLayout) -> ShardedSpans:
        """A rank's part of whole spans, which have a row for each key. Raises ValueError for others."""
        if spans.num_queries != layout.num_tokens or spans.num_keys != layout.num_tokens:
            raise ValueError(
                f"spans of {spans.num_queries} rows over {spans.num_keys} keys do not belong to the layout's "
                f"{layout.num_tokens} tokens"
            )
        lo, hi = layout.shard(spans.lo), layout.shard(spans.hi)
        return cls(lo, hi, spans.num_keys, layout=layout, needed_chunks=needed_chunks_of(spans, layout), valid=True)
