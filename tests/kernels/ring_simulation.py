"""All ranks of a ring in one process, each in a thread, to compare the ring with one device.

The code of the ranks is that of `ring.py`; the transport alone differs: queues between threads, which copy what is
sent, as a network would, and count its bytes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from brine.kernels.attention.spans import Spans
from brine.kernels.context_parallel import ring
from brine.kernels.context_parallel.layout import ContextLayout, ShardedSpans

TIMEOUT_S = 60.0


class SimulatedNetwork:
    """Queues between W ranks, and the bytes that each rank sent."""

    def __init__(self, world_size: int):
        ranks = range(world_size)
        self.queues: dict[tuple[int, int], queue.Queue] = {(a, b): queue.Queue() for a in ranks for b in ranks}
        self.sent = [0] * world_size

    def at(self, rank: int) -> ThreadTransport:
        """The transport of one rank."""
        return ThreadTransport(self, rank)


class ThreadTransport:
    """One rank's end of a `SimulatedNetwork`."""

    def __init__(self, network: SimulatedNetwork, rank: int):
        self.network, self.rank = network, rank

    def start(self, payload: Tensor | None, to: int, into: Tensor | None, source: int) -> Callable[[], Tensor | None]:
        """See `ring.Transport`."""
        if payload is not None:
            self.network.sent[self.rank] += payload.numel() * payload.element_size()
            self.network.queues[self.rank, to].put(payload.clone())

        def wait() -> Tensor | None:
            if into is None:
                return None
            found = self.network.queues[source, self.rank].get(timeout=TIMEOUT_S)
            assert found.shape == into.shape and found.dtype == into.dtype, "ranks disagree on what they exchange"
            return into.copy_(found)

        return wait


@dataclass(frozen=True)
class SimulatedResult:
    """What all ranks gave together, in the order of the whole."""

    out: Tensor
    lse: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor
    sent_forward: list[int]
    """Bytes that each rank sent in the forward."""
    sent_backward: list[int]


def simulate(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, spans: Spans, layout: ContextLayout, *, scale: float,
    backend: str = "cpu",
) -> SimulatedResult:  # fmt: skip
    """q, grad_out (B, S, H, D); k, v (B, S, K, D) of the whole, without gradients. layout: of any rank."""
    world = layout.world_size
    networks, errors = (SimulatedNetwork(world), SimulatedNetwork(world)), []
    results: dict[int, tuple[Tensor, ...]] = {}

    def work(rank: int) -> None:
        try:
            mine = layout.of(rank)
            local = ShardedSpans.shard(spans, mine)
            forth, back = (
                ring.RingPlan.of(
                    local.mask, mine, local.needed_chunks, scale=scale, backend=backend, transport=network.at(rank)
                )
                for network in networks
            )
            q_rank, k_rank, v_rank = (mine.shard(x) for x in (q, k, v))
            out, lse = ring.forward(q_rank, k_rank, v_rank, forth)
            grads = ring.backward(mine.shard(grad_out), q_rank, k_rank, v_rank, out.to(q.dtype), lse, back)
            results[rank] = (out, lse, *grads)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    order = torch.argsort(torch.cat([layout.index(rank) for rank in range(world)])).to(q.device)

    def whole(number: int, dim: int) -> Tensor:
        return torch.cat([results[rank][number] for rank in range(world)], dim).index_select(dim, order)

    out, lse, dq, dk, dv = (whole(number, 2 if number == 1 else 1) for number in range(5))
    return SimulatedResult(out, lse, dq, dk, dv, networks[0].sent, networks[1].sent)
