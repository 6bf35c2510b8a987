"""The backward of fp32 attention with wide heads on the CPU, in plain matrix products.

The flash backward takes delta_i = g_i . out_i from an out already rounded to fp32, and its weights p_ij from an lse
rounded too, so that the sum of ds_ij over the keys is not quite 0. From D = 96 on that shows in dq: in 14 of 48 random
cases its error was over the kernels' bound (twice the naive run's own, plus 4 eps of the largest true value), by up to
1.7 times. Here delta_i = sum_j p_ij dp_ij is summed over the keys from the same p and dp that ds is made of, and p_ij
is taken as its share of their sum with the sink's, which is 1 but for the rounding of lse and of scores. (Taken as it
is, 6 of 500 random cases of D = 128 and 256 were over the bound, by up to 4.3 times; which ones depends on the
processor.) For the share delta and the rows of q, g and dq are divided, not every weight. Two of the five products are
done twice, and the softmax in passes of its own: 2.1 to 2.3 times the flash backward (D = 128, rows of 4k to 16k and
documents of 512; LOG.md).

It needs all keys of a row, so it serves the backward of a whole mask; the share of some keys (the ring) stays with
`cpu.backward`, which is given out. Memory: `TILE_ELEMENTS` weights at a time.

Legend: B batch, T query rows, S keys, H query heads, K key heads, G = H / K, D head dim; n pieces, M rows, L keys.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from brine.kernels.attention.cpu import tiled as cpu
from brine.kernels.attention.cpu.tile_plan import TileCall, TilePlan

MIN_DIM = 96
"""The head dim from which the flash backward misses the bound in fp32."""
TILE_ELEMENTS = 2**22
"""Weights computed at once, 16 MB; more leave the cache, fewer make small products."""


def suits(q: Tensor) -> bool:
    """Whether the backward of q (B, T, H, D) is to be computed here."""
    return q.dtype == torch.float32 and q.shape[-1] >= MIN_DIM


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, plan: TilePlan, *, scale: float,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients where the plan holds all keys. grad_out, q: (B, T, H, D) fp32; k, v: (B, S, K, D); lse: (B, H, T).

    -> dq, dk, dv, new and contiguous.
    """
    batch, num_queries, heads, dim = q.shape
    num_keys, key_heads = k.shape[1:3]
    lse_rows = cpu.lse_of_rows(lse)
    delta, mass = torch.zeros_like(lse_rows), torch.zeros_like(lse_rows)
    dq = q.new_zeros(batch * num_queries + 1, heads, dim)
    dk = q.new_zeros(batch * num_keys + 1, key_heads, dim)
    dv = torch.zeros_like(dk)
    calls = [call for calls in plan.calls for call in calls]
    for call in calls:
        parts = _TileOperands(call, grad_out, q, k, v, scale)
        sums, masses = (delta.new_zeros(call.num, heads, call.rows) for _ in range(2))
        for rows, p, dp in parts.tiles(parts.rows_of(lse_rows, num_queries)):
            sums[:, :, rows], masses[:, :, rows] = (x.sum(-1).flatten(1, 2) for x in (p * dp, p))
        cpu.add_rows(delta, call, num_queries, sums.transpose(1, 2))
        cpu.add_rows(mass, call, num_queries, masses.transpose(1, 2))
    if sink is not None:
        mass += (sink.to(mass.dtype) - lse_rows).exp()
    # a row that sees nothing has no weights at all
    mass = mass.where(mass > 0.0, 1.0)
    delta /= mass
    for call in calls:
        parts = _TileOperands(call, grad_out, q, k, v, scale)
        call_delta, call_mass = (parts.rows_of(x, num_queries)[..., None] for x in (delta, mass))
        shares_q, shares_grad = parts.q / call_mass, parts.grad / call_mass
        grad_q = torch.empty_like(parts.q)
        grad_k, grad_v = torch.zeros_like(parts.k), torch.zeros_like(parts.v)
        for rows, p, dp in parts.tiles(parts.rows_of(lse_rows, num_queries)):
            ds = p * (dp - parts.grouped(call_delta[:, :, rows])) * scale
            visible = ds.shape[-1]
            grad_q[:, :, rows] = (ds.flatten(2, 3) @ parts.k[:, :, :visible]).view(*ds.shape[:-1], dim).flatten(1, 2)
            grad_k[:, :, :visible] += ds.flatten(2, 3).mT @ parts.grouped(shares_q[:, :, rows]).flatten(2, 3)
            grad_v[:, :, :visible] += p.flatten(2, 3).mT @ parts.grouped(shares_grad[:, :, rows]).flatten(2, 3)
        cpu.add_rows(dq, call, num_queries, (grad_q / call_mass).transpose(1, 2))
        cpu.add_keys(dk, call, num_keys, grad_k.transpose(1, 2))
        cpu.add_keys(dv, call, num_keys, grad_v.transpose(1, 2))
    return dq[:-1].view(q.shape), dk[:-1].view(k.shape), dv[:-1].view(v.shape)


class _TileOperands:
    """What one call reads, heads first, and its weights tile by tile."""

    def __init__(self, call: TileCall, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float):
        self.call, self.scale = call, scale
        self.q, self.grad = cpu.take_rows(q, call), cpu.take_rows(grad_out, call)
        self.k, self.v = cpu.take_keys(k, call), cpu.take_keys(v, call)
        self.key_heads = k.shape[2]

    def rows_of(self, x: Tensor, num_queries: int) -> Tensor:
        """(B * T + 1, H) -> (n, H, M)."""
        return cpu.read_rows(x, self.call, num_queries).transpose(1, 2)

    def grouped(self, x: Tensor) -> Tensor:
        """(n, H, ...) -> (n, K, G, ...)."""
        return x.unflatten(1, (self.key_heads, -1))

    def tiles(self, lse: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows, p, dp) of each tile of rows; p and dp are (n, K, G, rows, keys), keys up to the last that is seen."""
        call, mask = self.call, self.call.mask(torch.float32)
        step = max(1, TILE_ELEMENTS // (call.num * lse.shape[1] * call.keys))
        for first in range(0, call.rows, step):
            rows = slice(first, min(first + step, call.rows))
            visible = rows.stop if call.kind == "causal" else call.keys
            score = self._product(self.q[:, :, rows], self.k[:, :, :visible]) * self.scale
            if call.kind == "causal":
                later = torch.ones(score.shape[-2:], dtype=torch.bool).triu(first + 1)
                score.masked_fill_(later, -torch.inf)
            if mask is not None:
                score += mask[:, :, None, rows]
            p = score.sub_(self.grouped(lse[:, :, rows])[..., None]).exp_()
            yield rows, p, self._product(self.grad[:, :, rows], self.v[:, :, :visible])

    def _product(self, rows: Tensor, keys: Tensor) -> Tensor:
        """(n, H, m, D), (n, K, L, D) -> (n, K, G, m, L)."""
        grouped = self.grouped(rows)
        return (grouped.flatten(2, 3) @ keys.mT).unflatten(2, grouped.shape[2:4])
