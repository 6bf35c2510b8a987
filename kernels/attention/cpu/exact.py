"""The backward of fp32 attention with wide heads on the CPU, in plain matmuls.

The flash backward takes delta from an out, and its weights from an lse, that were rounded to fp32: from D = 96 on its
dq misses the kernels' error bound in some cases (LOG.md). Here delta_i = sum_j p_ij dp_ij is summed over the keys from
the same p and dp that ds is made of, and p_ij is taken as its share of their sum with the sink's; for the share delta,
q, g and dq are divided, not every weight. It takes 2.1 to 2.3 times the flash backward's time and `TILE_ELEMENTS`
weights of memory, and needs all keys of a query: a ring's partial gradients stay with `tiled.py`.

Legend: B batch, T queries, S keys, H query heads, K KV heads, G = H / K, D head dim; n blocks, M queries, L keys.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from brine.kernels.attention.cpu import tiled as cpu
from brine.kernels.attention.cpu.tile_plan import TileCall, TilePlan
from brine.kernels.attention.spans import AttentionRequest

MIN_DIM = 96  # the head dim from which the flash backward misses the bound in fp32
TILE_ELEMENTS = 2**22  # weights computed at once, 16 MB; more leave the cache, fewer make small matmuls


def suits(q: Tensor) -> bool:
    """Whether the backward of q (B, T, H, D) is to be computed here."""
    return q.dtype == torch.float32 and q.shape[-1] >= MIN_DIM


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, plan: TilePlan, request: AttentionRequest
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.backward`, by a plan of all keys; all tensors fp32. Gradients are new and contiguous."""
    scale, lse_flat = request.scale, cpu.flat_lse(lse)
    delta, mass = torch.zeros_like(lse_flat), torch.zeros_like(lse_flat)
    dq = q.new_zeros(len(q) * q.shape[1] + 1, *q.shape[2:])
    dk = q.new_zeros(len(k) * k.shape[1] + 1, *k.shape[2:])
    dv = torch.zeros_like(dk)
    calls = [call for calls in plan.calls for call in calls]
    for call in calls:
        parts = _TileOperands(call, grad_out, q, k, v, scale)
        sums, masses = (delta.new_zeros(call.queries.num, q.shape[2], call.queries.size) for _ in range(2))
        for at, p, dp in parts.tiles(parts.read(lse_flat)):
            sums[:, :, at], masses[:, :, at] = (x.sum(-1).flatten(1, 2) for x in (p * dp, p))
        call.queries.add(delta, sums.transpose(1, 2))
        call.queries.add(mass, masses.transpose(1, 2))
    if request.sink is not None:
        mass += (request.sink.to(mass.dtype) - lse_flat).exp()
    # an empty query has no weights at all
    mass = mass.where(mass > 0.0, 1.0)
    delta /= mass
    for call in calls:
        parts = _TileOperands(call, grad_out, q, k, v, scale)
        call_delta, call_mass = (parts.read(x)[..., None] for x in (delta, mass))
        shares_q, shares_grad = parts.q / call_mass, parts.grad / call_mass
        grad_q = torch.empty_like(parts.q)
        grad_k, grad_v = torch.zeros_like(parts.k), torch.zeros_like(parts.v)
        for at, p, dp in parts.tiles(parts.read(lse_flat)):
            ds = p * (dp - parts.grouped(call_delta[:, :, at])) * scale
            visible = ds.shape[-1]
            product = ds.flatten(2, 3) @ parts.k[:, :, :visible]
            grad_q[:, :, at] = product.view(*ds.shape[:-1], q.shape[3]).flatten(1, 2)
            grad_k[:, :, :visible] += ds.flatten(2, 3).mT @ parts.grouped(shares_q[:, :, at]).flatten(2, 3)
            grad_v[:, :, :visible] += p.flatten(2, 3).mT @ parts.grouped(shares_grad[:, :, at]).flatten(2, 3)
        call.queries.add(dq, (grad_q / call_mass).transpose(1, 2))
        call.keys.add(dk, grad_k.transpose(1, 2))
        call.keys.add(dv, grad_v.transpose(1, 2))
    return dq[:-1].view(q.shape), dk[:-1].view(k.shape), dv[:-1].view(v.shape)


class _TileOperands:
    """What one call reads, heads first, and its weights tile by tile."""

    def __init__(self, call: TileCall, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float):
        self.call, self.scale, self.key_heads = call, scale, k.shape[2]
        self.q, self.grad = (cpu.take(x, call, call.queries) for x in (q, grad_out))
        self.k, self.v = (cpu.take(x, call, call.keys) for x in (k, v))

    def read(self, x: Tensor) -> Tensor:
        """(B * T + 1, H) -> (n, H, M)."""
        return self.call.queries.read(x).transpose(1, 2)

    def grouped(self, x: Tensor) -> Tensor:
        """(n, H, ...) -> (n, K, G, ...)."""
        return x.unflatten(1, (self.key_heads, -1))

    def tiles(self, lse: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(queries, p, dp) tile by tile; p and dp are (n, K, G, queries, keys), keys up to the last visible one."""
        call, mask = self.call, self.call.mask(torch.float32)
        step = max(1, TILE_ELEMENTS // (call.queries.num * lse.shape[1] * call.keys.size))
        for first in range(0, call.queries.size, step):
            at = slice(first, min(first + step, call.queries.size))
            visible = at.stop if call.kind == "causal" else call.keys.size
            score = self._product(self.q[:, :, at], self.k[:, :, :visible]) * self.scale
            if call.kind == "causal":
                later = torch.ones(score.shape[-2:], dtype=torch.bool).triu(first + 1)
                score.masked_fill_(later, -torch.inf)
            if mask is not None:
                score += mask[:, :, None, at]
            p = score.sub_(self.grouped(lse[:, :, at])[..., None]).exp_()
            yield at, p, self._product(self.grad[:, :, at], self.v[:, :, :visible])

    def _product(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(n, H, m, D), (n, K, L, D) -> (n, K, G, m, L)."""
        grouped = self.grouped(queries)
        return (grouped.flatten(2, 3) @ keys.mT).unflatten(2, grouped.shape[2:4])
