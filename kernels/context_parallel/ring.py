"""One rank's part of attention over a sequence that is sharded over ranks, forward and backward.

In step s = 1 .. W - 1 a rank sends rank r + s the keys and values that it needs, and receives from rank r - s; chunks
that no query sees do not travel. While the next step's chunks travel, attention over those that have come is computed
and merged by log-sum-exp. The backward fetches keys and values again and sends gradients of chunks back in fp32, where
they are added in the order of the steps: results are bit-identical at any timing.

Legend: B batch, T queries and keys of this rank, H query heads, K KV heads, D head dim, W ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from brine.kernels.attention.merge import merge_partials
from brine.kernels.attention.spans import Mask, Spans, cached_by_mask, host_of
from brine.kernels.context_parallel import partial
from brine.kernels.context_parallel.layout import ContextLayout


class Transport(Protocol):
    """Moves tensors between ranks."""

    def start(self, payload: Tensor | None, to: int, into: Tensor | None, source: int) -> Callable[[], Tensor | None]:
        """Begin to send `payload` and to receive `into` (None: nothing); call the result to wait and get what came.

        Every rank starts the same exchanges in the same order.
        """


class GroupTransport:
    """Over a process group, by non-blocking sends and receives.

    A rank with nothing to exchange skips the call, which torch allows but for a group's first collective, so all ranks
    must have met in one before (`World.meet`).
    """

    def __init__(self, group: dist.ProcessGroup):
        self.group = group

    def start(self, payload: Tensor | None, to: int, into: Tensor | None, source: int) -> Callable[[], Tensor | None]:
        """See `Transport`."""
        operations = []
        if payload is not None:
            operations.append(dist.P2POp(dist.isend, payload, group=self.group, group_peer=to))
        if into is not None:
            operations.append(dist.P2POp(dist.irecv, into, group=self.group, group_peer=source))
        works = dist.batch_isend_irecv(operations) if operations else []

        def wait() -> Tensor | None:
            for work in works:
                work.wait()
            # the payload must live until it has left
            del operations[:]
            return into

        return wait


@dataclass(frozen=True)
class RingStep:
    """What one rank exchanges with two others."""

    to: int  # rank that gets keys from here, and gives their gradients
    source: int  # rank that keys come from
    sent: list[slice]  # tokens of this rank that go to `to`
    received: int  # tokens that come
    queries: slice  # queries of this rank from the first to the last that see something of what comes
    spans: Spans  # of these queries over the tokens that come


@dataclass(frozen=True)
class RingPlan:
    """Everything about one mask that its layers share: made once, on the host."""

    local_spans: Spans  # of this rank's queries over its keys
    steps: list[RingStep]  # W - 1 of them
    scale: float
    backend: str
    transport: Transport

    @classmethod
    def of(
        cls, mask: Mask, layout: ContextLayout, needed_chunks: Tensor, *, scale: float, backend: str,
        transport: Transport,
    ) -> RingPlan:  # fmt: skip
        """The ring of a mask, by the fields of its ShardedSpans. What depends on the mask alone is kept with it."""
        local_spans, steps = cached_by_mask(mask.serial, "ring", lambda: _steps(mask, layout, needed_chunks))
        return cls(local_spans, steps, scale, backend, transport)


def _steps(mask: Mask, layout: ContextLayout, needed_chunks: Tensor) -> tuple[Spans, list[RingStep]]:
    # on the host, where a batch's masks were made: each question would need a device sync
    spans = Spans(*host_of(mask), layout.num_tokens, valid=True)
    rank, world, device = layout.rank, layout.world_size, mask.lo.device
    needed = needed_chunks.tolist()
    every = range(spans.num_queries)
    chunk_slices, start = {}, 0
    for chunk in layout.chunks():
        chunk_slices[chunk] = slice(start, start + layout.size(chunk))
        start += layout.size(chunk)
    steps = []
    for shift in range(1, world):
        to, source = (rank + shift) % world, (rank - shift) % world
        sent = [chunk_slices[chunk] for chunk in layout.chunks() if needed[to][chunk]]
        coming = [chunk for chunk in layout.chunks(source) if needed[rank][chunk]]
        index = layout.index_of(coming)
        over = spans.restrict(every, index)
        seeing = (over.hi > over.lo).any(0).nonzero().flatten()
        queries = slice(int(seeing[0]), int(seeing[-1]) + 1) if len(seeing) else slice(0, 0)
        lo, hi = over.lo[:, queries].contiguous(), over.hi[:, queries].contiguous()
        part = Spans(lo, hi, len(index), valid=True).to(device, non_blocking=True)
        steps.append(RingStep(to, source, sent, len(index), queries, part))
    return spans.restrict(every, layout.index()).to(device, non_blocking=True), steps


def forward(q: Tensor, k: Tensor, v: Tensor, ring: RingPlan) -> tuple[Tensor, Tensor]:
    """q (B, T, H, D); k, v (B, T, K, D) of this rank -> out (B, T, H, D), lse (B, H, T) over all keys; fp32 or fp64."""
    fetch = _fetching(k, v, ring)
    coming = fetch(0)
    out, lse = partial.forward(q, k, v, ring.local_spans, ring.scale, ring.backend)
    for number, step in enumerate(ring.steps):
        received_kv = coming()
        coming = fetch(number + 1)
        at = step.queries
        if at.start < at.stop:
            part = partial.forward(q[:, at].contiguous(), *received_kv, step.spans, ring.scale, ring.backend)
            out[:, at], lse[:, :, at] = merge_partials(out[:, at], lse[:, :, at], *part)
    return out, lse


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, ring: RingPlan
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of this rank's q, k and v; out and lse are over all keys, sink included."""
    fetch = _fetching(k, v, ring)
    coming = fetch(0)
    dq, dk, dv = partial.backward(grad_out, q, k, v, out, lse, ring.local_spans, ring.scale, ring.backend)
    returning: list[tuple[RingStep, Callable[[], Tensor | None]]] = []
    for number, step in enumerate(ring.steps):
        received_k, received_v = coming()
        coming = fetch(number + 1)
        back = dk.new_zeros(2, k.shape[0], step.received, *k.shape[2:]) if step.received else None
        at = step.queries
        if at.start < at.stop:
            assert back is not None
            grad_part, q_part, out_part = (x[:, at].contiguous() for x in (grad_out, q, out))
            given = (grad_part, q_part, received_k, received_v, out_part, lse[:, :, at].contiguous())
            dq_part, back[0], back[1] = partial.backward(*given, step.spans, ring.scale, ring.backend)
            dq[:, at] += dq_part
        # gradients go the other way round, one step behind the computation
        size = sum(part.stop - part.start for part in step.sent)
        into = dk.new_empty(2, k.shape[0], size, *k.shape[2:]) if size else None
        returning.append((step, ring.transport.start(back, step.source, into, step.to)))
        if len(returning) > 1:
            _add((dk, dv), *returning.pop(0))
    for step, wait in returning:
        _add((dk, dv), step, wait)
    return dq, dk, dv


def _fetching(k: Tensor, v: Tensor, ring: RingPlan) -> Callable[[int], Callable[[], tuple[Tensor, Tensor]]]:
    """fetch(number) starts that step's exchange of keys and values; what it returns waits for them."""

    def fetch(number: int) -> Callable[[], tuple[Tensor, Tensor]]:
        if number >= len(ring.steps):
            return lambda: (k[:, :0], v[:, :0])
        step = ring.steps[number]
        payload = torch.stack([torch.cat([x[:, part] for part in step.sent], 1) for x in (k, v)]) if step.sent else None
        into = k.new_empty(2, k.shape[0], step.received, *k.shape[2:]) if step.received else None
        wait = ring.transport.start(payload, step.to, into, step.source)

        def received_kv() -> tuple[Tensor, Tensor]:
            found = wait()
            return (k[:, :0], v[:, :0]) if found is None else (found[0], found[1])

        return received_kv

    return fetch


def _add(grads: tuple[Tensor, Tensor], step: RingStep, wait: Callable[[], Tensor | None]) -> None:
    found, start = wait(), 0
    for part in step.sent:
        assert found is not None
        stop = start + part.stop - part.start
        for grad, part_grad in zip(grads, found, strict=True):
            grad[:, part] += part_grad[:, start:stop]
        start = stop
