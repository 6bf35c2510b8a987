"""Attention over spans on the CPU: PyTorch's flash op, called only on what the spans let through.

The op computes a rectangle of queries and keys and returns its log-sum-exp, so parts merge exactly; its backward, given
the *global* output and log-sum-exp, gives each rectangle's exact share of the gradients. `tile_plan.py` chooses the
rectangles. Memory is proportional to T and S. Parts are added in fp32 (fp64 for fp64 inputs), in a fixed order, so that
results are bit-identical at a fixed number of threads.

Traps of the op: an empty query gets lse 0 instead of -inf (such queries are never written); zero queries end the
process with SIGFPE; causal squares align at the top left; its bf16 backward costs 0.1 ms per head and block before any
work (blocks of up to `UPCAST_KEYS` keys are computed in fp32); masks must be float.

Legend: B batch, T queries, S keys, H query heads, K KV heads, D head dim; n blocks, M queries and L keys in a call.
"""

import torch
from torch import Tensor

from brine.kernels.attention.cpu.tile_plan import TileCall, TilePlan, TileSide, build_tile_plan
from brine.kernels.attention.merge import absorb_sink, merge_by_query
from brine.kernels.attention.spans import AttentionRequest, Mask, cached_by_mask

UPCAST_KEYS = 1024
"""In the backward, half-precision blocks with at most this many keys are computed in fp32: faster, and closer."""

CONTIGUOUS_KEYS, CONTIGUOUS_QUERIES = 1024, 64
"""From so many keys and queries on, a call reads contiguous copies of each head: 5 % faster than side by side."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def tile_plan_of(mask: Mask, num_keys: int) -> TilePlan:
    """The plan of a mask, made if it is not known."""
    return cached_by_mask(mask.serial, "cpu_plan", lambda: build_tile_plan(mask.lo, mask.hi, num_keys))


def forward(q: Tensor, k: Tensor, v: Tensor, plan: TilePlan, request: AttentionRequest) -> tuple[Tensor, Tensor]:
    """As `reference.forward`, by a plan of the mask. Both results are new and contiguous."""
    batch, num_queries, heads, dim = q.shape
    sums, result, sink = torch.promote_types(torch.float32, q.dtype), request.result_dtype(q), request.sink
    only = _only_call(plan, q, k)
    if only is not None and sink is None:
        out, lse = _attend(q, k, v, only, request.scale)
        return out.contiguous().to(result), lse.transpose(1, 2).contiguous()
    merging = len(plan.calls) > 1 or sink is not None
    # one entry more than there are queries, which is never read
    out = q.new_zeros(batch * num_queries + 1, heads, dim, dtype=sums if merging else result)
    lse = q.new_full((batch * num_queries + 1, heads), -torch.inf, dtype=sums)
    for turn, calls in enumerate(plan.calls):
        for call in calls:
            o_call, l_call = _attend(q, k, v, call, request.scale)
            at = call.queries
            if at.window is not None:
                out_at, lse_at = at.view(out), at.view(lse)
                if turn:
                    o_call, l_call = merge_by_query(out_at, lse_at, o_call, l_call)
                out_at.copy_(o_call)
                lse_at.copy_(l_call)
                continue
            assert at.target is not None
            o_call, l_call = o_call.reshape(-1, heads, dim), l_call.reshape(-1, heads)
            if turn:
                o_call, l_call = merge_by_query(out[at.target], lse[at.target], o_call, l_call)
                out.index_copy_(0, at.target, o_call)
            else:
                # out is still 0 there, and adding is twice as fast as copying
                out.index_add_(0, at.target, o_call.to(out.dtype))
            lse.index_copy_(0, at.target, l_call.to(sums))
    out, lse = out[:-1], lse[:-1]
    if sink is not None:
        out, lse = absorb_sink(out, lse, sink)
    out = out.view(batch, num_queries, heads, dim).to(result)
    return out, lse.view(batch, num_queries, heads).transpose(1, 2).contiguous()


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, plan: TilePlan,
    request: AttentionRequest,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `reference.backward`, by a plan of these keys; delta is taken from out. Gradients are new and contiguous."""
    num_queries, num_keys = q.shape[1], k.shape[1]
    sums, result, scale = torch.promote_types(torch.float32, q.dtype), request.result_dtype(q), request.scale
    grad_out, out = grad_out.contiguous(), out.contiguous()
    only = _only_call(plan, q, k)
    if only is not None and only.keys.size > UPCAST_KEYS:
        grads = _attend_backward(grad_out, q, k, v, out, lse.transpose(1, 2), only, scale)
        dq, dk, dv = (grad.contiguous().to(result) for grad in grads)
        return dq, dk, dv
    dq = q.new_zeros(len(q) * num_queries + 1, *q.shape[2:], dtype=sums)
    dk = q.new_zeros(len(k) * num_keys + 1, *k.shape[2:], dtype=sums)
    dv = torch.zeros_like(dk)
    lse_flat = flat_lse(lse)
    for call in (call for calls in plan.calls for call in calls):
        lse_call = call.queries.read(lse_flat)
        dq_call, dk_call, dv_call = _attend_backward(grad_out, q, k, v, out, lse_call, call, scale)
        call.queries.add(dq, dq_call)
        call.keys.add(dk, dk_call)
        call.keys.add(dv, dv_call)
    return dq[:-1].view(q.shape).to(result), dk[:-1].view(k.shape).to(result), dv[:-1].view(v.shape).to(result)


def _attend(q: Tensor, k: Tensor, v: Tensor, call: TileCall, scale: float) -> tuple[Tensor, Tensor]:
    """-> out (n, M, H, D) in q's dtype, lse (n, M, H) of one call."""
    parts, mask = (take(q, call, call.queries), take(k, call, call.keys), take(v, call, call.keys)), _mask_of(call, q)
    out, lse = _flash(*parts, 0.0, call.kind == "causal", attn_mask=mask, scale=scale)
    return out.transpose(1, 2), lse.transpose(1, 2)


def _attend_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse_call: Tensor, call: TileCall, scale: float
) -> tuple[Tensor, ...]:
    """lse_call: (n, M, H); the others are whole. -> dq (n, M, H, D), dk and dv (n, L, K, D) of one call."""
    grad_call, q_call, out_call = (take(x, call, call.queries) for x in (grad_out, q, out))
    parts = [grad_call, q_call, take(k, call, call.keys), take(v, call, call.keys), out_call]
    if q.element_size() < 4 and call.keys.size <= UPCAST_KEYS:
        parts = [part.float() for part in parts]
    mask, causal = _mask_of(call, q), call.kind == "causal"
    grads = _flash_backward(*parts, lse_call.transpose(1, 2), 0.0, causal, attn_mask=mask, scale=scale)
    return tuple(grad.transpose(1, 2) for grad in grads)


def flat_lse(lse: Tensor) -> Tensor:
    """(B, H, T) -> (B * T + 1, H); +inf for empty queries and for the last entry: exp(score - inf) = 0."""
    batch, heads, num_queries = lse.shape
    flat = lse.new_full((batch * num_queries + 1, heads), torch.inf)
    flat[:-1].view(batch, num_queries, heads).copy_(lse.transpose(1, 2))
    return flat.masked_fill_(flat == -torch.inf, torch.inf)


def _mask_of(call: TileCall, q: Tensor) -> Tensor | None:
    """The op takes masks of its inputs' dtype or fp32; fp32 for all but fp64 keeps one copy of each mask."""
    return call.mask(torch.float64 if q.dtype == torch.float64 else torch.float32)


def take(x: Tensor, call: TileCall, side: TileSide) -> Tensor:
    """(B, N, heads, D) -> what a call reads, (n, heads, M or L, D)."""
    part = side.take(x).transpose(1, 2)
    # heads side by side spread a tile over few sets of the cache; few queries read their keys only once
    copies = call.keys.size >= CONTIGUOUS_KEYS and call.queries.size >= CONTIGUOUS_QUERIES
    return part.contiguous() if copies else part


def _only_call(plan: TilePlan, q: Tensor, k: Tensor) -> TileCall | None:
    """The plan's call where it is one for all queries and keys without a mask, so that nothing need be scattered."""
    if len(plan.calls) != 1 or len(plan.calls[0]) != 1:
        return None
    call = plan.calls[0][0]
    whole = call.queries.num == len(q) and (call.queries.size, call.keys.size) == (q.shape[1], k.shape[1])
    return call if whole and call.queries.window is not None and call.kind != "masked" else None
