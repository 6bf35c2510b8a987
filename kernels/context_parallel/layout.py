"""Which rank holds which tokens, and the spans of one rank's queries.

S tokens are cut into N chunks of `chunk` tokens (the last may be shorter), and `chunk_ranks[c]` is the rank that holds
chunk c. A rank's chunks stay in ascending order, so its queries' span ends are non-decreasing and any held keys are
again one interval. Spans stay *global*: from the spans of all queries every rank knows which key chunks each rank
needs.

Legend: B batch, S tokens of the whole, T tokens of this rank, N chunks, W ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from brine.kernels.attention.spans import Spans


@dataclass(frozen=True, eq=False)
class ContextLayout:
    """How S tokens lie on W ranks, from the view of one. Raises ValueError for fields that do not fit together."""

    chunk_ranks: Tensor  # (N,) int64 on the CPU, rank that holds each chunk
    chunk: int  # tokens of a chunk
    num_tokens: int  # S
    rank: int
    world_size: int  # W
    group: str = ""  # name of the process group, as torch.distributed knows it; empty where ranks are simulated

    def __post_init__(self) -> None:
        if self.chunk < 1 or self.num_tokens < 1:
            raise ValueError(f"chunk {self.chunk} and num_tokens {self.num_tokens} must be at least 1")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} must lie in 0..{self.world_size - 1}")
        expected = (-(-self.num_tokens // self.chunk),)
        ranks = self.chunk_ranks
        if ranks.shape != expected or ranks.dtype != torch.int64 or ranks.device.type != "cpu":
            raise ValueError(
                f"chunk_ranks must be {expected} int64 on the CPU for {self.num_tokens} tokens in chunks of "
                f"{self.chunk}; got {tuple(ranks.shape)} of {ranks.dtype} on {ranks.device}"
            )
        if int(ranks.min()) < 0 or int(ranks.max()) >= self.world_size:
            raise ValueError(f"chunk_ranks must lie in 0..{self.world_size - 1}")

    def of(self, rank: int) -> ContextLayout:
        """The same from the view of another rank."""
        return ContextLayout(self.chunk_ranks, self.chunk, self.num_tokens, rank, self.world_size, self.group)

    def chunks(self, rank: int | None = None) -> list[int]:
        """A rank's chunks, ascending; this one's by default."""
        return (self.chunk_ranks == (self.rank if rank is None else rank)).nonzero().flatten().tolist()

    def size(self, chunk: int) -> int:
        """Tokens of a chunk."""
        return min(self.chunk, self.num_tokens - chunk * self.chunk)

    def index_of(self, chunks: list[int]) -> Tensor:
        """(n,) int64 positions in the whole of the tokens of some chunks."""
        parts = [torch.arange(c * self.chunk, c * self.chunk + self.size(c)) for c in chunks]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)

    def index(self, rank: int | None = None) -> Tensor:
        """(T,) int64 positions in the whole of a rank's tokens; this one's by default."""
        return self.index_of(self.chunks(rank))

    def shard(self, x: Tensor, dim: int = 1) -> Tensor:
        """This rank's tokens of a whole tensor, which has S of them along `dim`."""
        if x.shape[dim] != self.num_tokens:
            raise ValueError(f"dim {dim} of {tuple(x.shape)} must be the {self.num_tokens} tokens of the whole")
        return x.index_select(dim, self.index().to(x.device))


def visible_chunks(spans: Spans, chunk: int) -> tuple[Tensor, Tensor]:
    """(first, stop) of the key chunks that some query of each chunk sees, over the batch: (N,) int64 each.

    Exact for packed sequences, whose neighbours overlap or touch; for other spans a bound. stop <= first for none.
    """
    starts = torch.arange(0, spans.num_queries, chunk)
    ends = (starts + chunk).clamp(max=spans.num_queries) - 1
    lo, hi = (end.long() for end in spans.host())
    first = lo[:, starts].amin(0) // chunk
    stop = -(-hi[:, ends].amax(0) // chunk)
    return first, torch.where(hi[:, ends].amax(0) > lo[:, starts].amin(0), stop, first)


def needed_chunks_of(spans: Spans, layout: ContextLayout) -> Tensor:
    """(W, N) bool, key chunks that each rank's queries see."""
    first, stop = visible_chunks(spans, layout.chunk)
    edges = torch.zeros(layout.world_size, len(layout.chunk_ranks) + 1, dtype=torch.int64)
    one = torch.ones(len(first), dtype=torch.int64)
    edges.index_put_((layout.chunk_ranks, first), one, accumulate=True)
    edges.index_put_((layout.chunk_ranks, stop), -one, accumulate=True)
    return edges.cumsum(1)[:, :-1] > 0


@dataclass(frozen=True, eq=False)
class ShardedSpans(Spans):
    """The spans of one rank's queries over all S keys, with the layout of both.

    lo, hi: (B, T) of this rank's queries, with global ends. `attention` takes q, k and v of this rank's tokens with it
    and returns out of this rank's queries; every rank of the group must make the same calls.
    """

    sharded: ClassVar[bool] = True
    layout: ContextLayout = field(kw_only=True)
    needed_chunks: Tensor = field(kw_only=True)  # (W, N) bool on the CPU, key chunks that each rank's queries see

    @classmethod
    def shard(cls, spans: Spans, layout: ContextLayout) -> ShardedSpans:
        """A rank's part of whole spans, which have a query for each key. Raises ValueError for others."""
        if spans.num_queries != layout.num_tokens or spans.num_keys != layout.num_tokens:
            raise ValueError(
                f"spans of {spans.num_queries} queries over {spans.num_keys} keys do not fit the layout's "
                f"{layout.num_tokens} tokens"
            )
        lo, hi = layout.shard(spans.lo), layout.shard(spans.hi)
        return cls(lo, hi, spans.num_keys, layout=layout, needed_chunks=needed_chunks_of(spans, layout), valid=True)
