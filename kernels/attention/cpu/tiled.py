"""Attention over spans on the CPU: PyTorch's flash op, called only on what the spans let through.

The flash op computes a rectangle of rows and keys and returns its log-sum-exp, so parts merge exactly; its backward,
given the *global* output and log-sum-exp, gives the exact share of each rectangle in the gradients. `cpu/tile_plan.py`
decides the rectangles; this file reads q, k and v for each call, runs it, and puts the results in their places. Work is
proportional to the planned area, memory to T and S.

Partial outputs, log-sum-exps and gradients are merged and added in fp32 (fp64 for fp64 inputs), in a fixed order, so
the same inputs give the same bits at a fixed number of threads.

Traps of the op that are handled here: a row masked everywhere gets log-sum-exp 0 instead of -inf (such rows are never
written); zero rows end the process with SIGFPE (no piece has zero rows); its causal mode aligns rows and keys at the
top left (causal pieces are squares); its bf16 backward costs about 0.1 ms per head and piece before any work, so
pieces of up to `UPCAST_KEYS` keys are computed in fp32 there; masks must be float.

Legend: B batch, T query rows, S keys, H query heads, K key heads, D head dim; n pieces, M rows and L keys in a call.
"""

import torch
from torch import Tensor

from brine.kernels.attention.cpu.tile_plan import TileCall, TilePlan, build_tile_plan
from brine.kernels.attention.merge import absorb_sink, merge_rows
from brine.kernels.attention.spans import cached_by_mask

UPCAST_KEYS = 1024
"""In the backward, half-precision pieces with at most this many keys are computed in fp32: faster, and closer."""

CONTIGUOUS_KEYS, CONTIGUOUS_ROWS = 1024, 64
"""From so many keys and rows on, a call reads copies with each head on its own: 5 % faster than side by side."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def tile_plan_of(serial: int, lo: Tensor, hi: Tensor, num_keys: int) -> TilePlan:
    """The plan of the Spans with this serial, made from lo and hi if it is not known."""
    return cached_by_mask(serial, "cpu_plan", lambda: build_tile_plan(lo, hi, num_keys))


def forward(
    q: Tensor, k: Tensor, v: Tensor, plan: TilePlan, *, scale: float, sink: Tensor | None, wide: bool = False
) -> tuple[Tensor, Tensor]:
    """q: (B, T, H, D); k, v: (B, S, K, D); sink: (H,) or None.

    -> out (B, T, H, D) in q's dtype, or with `wide` in lse's; lse (B, H, T) float32 (float64 for float64 inputs). Both
    are new and contiguous.
    """
    batch, num_queries, heads, dim = q.shape
    sums = torch.promote_types(torch.float32, q.dtype)
    result = sums if wide else q.dtype
    call = _only_call(plan, q, k)
    if call is not None and sink is None:
        out, lse = _attend(q, k, v, call, scale)
        return out.contiguous().to(result), lse.transpose(1, 2).contiguous()
    merging = len(plan.calls) > 1 or sink is not None
    # one row more than there are, for what nobody reads
    out = q.new_zeros(batch * num_queries + 1, heads, dim, dtype=sums if merging else result)
    lse = q.new_full((batch * num_queries + 1, heads), -torch.inf, dtype=sums)
    for turn, calls in enumerate(plan.calls):
        for call in calls:
            o_call, l_call = _attend(q, k, v, call, scale)
            if call.window is not None:
                out_at, lse_at = _row_window(out, call, num_queries), _row_window(lse, call, num_queries)
                if turn:
                    o_call, l_call = merge_rows(out_at, lse_at, o_call, l_call)
                out_at.copy_(o_call)
                lse_at.copy_(l_call)
                continue
            o_call, l_call = o_call.reshape(-1, heads, dim), l_call.reshape(-1, heads)
            if turn:
                o_call, l_call = merge_rows(out[call.row_to], lse[call.row_to], o_call, l_call)
                out.index_copy_(0, call.row_to, o_call)
            else:
                # the rows are still 0, and adding is twice as fast as copying
                out.index_add_(0, call.row_to, o_call.to(out.dtype))
            lse.index_copy_(0, call.row_to, l_call.to(sums))
    out, lse = out[:-1], lse[:-1]
    if sink is not None:
        out, lse = absorb_sink(out, lse, sink)
    out = out.view(batch, num_queries, heads, dim).to(result)
    return out, lse.view(batch, num_queries, heads).transpose(1, 2).contiguous()


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    plan: TilePlan,
    *,
    scale: float,
    wide: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients from the keys of this plan, given out and lse over *all* keys, sink included.

    Shapes as in `forward`, grad_out like out. -> dq, dk, dv in q's dtype, or with `wide` in lse's, new and contiguous.
    For the parts of a row that was split over several sets of keys, call once per set with the merged out and lse, and
    add.
    """
    batch, num_queries, heads, dim = q.shape
    num_keys, key_heads = k.shape[1:3]
    sums = torch.promote_types(torch.float32, q.dtype)
    result = sums if wide else q.dtype
    grad_out, out = grad_out.contiguous(), out.contiguous()
    call = _only_call(plan, q, k)
    if call is not None and call.keys > UPCAST_KEYS:
        grads = _attend_backward(grad_out, q, k, v, out, lse.transpose(1, 2), call, scale)
        return tuple(grad.contiguous().to(result) for grad in grads)
    dq = q.new_zeros(batch * num_queries + 1, heads, dim, dtype=sums)
    dk = q.new_zeros(batch * num_keys + 1, key_heads, dim, dtype=sums)
    dv = torch.zeros_like(dk)
    lse_rows = lse_of_rows(lse)
    for call in (call for calls in plan.calls for call in calls):
        lse_call = read_rows(lse_rows, call, num_queries)
        dq_call, dk_call, dv_call = _attend_backward(grad_out, q, k, v, out, lse_call, call, scale)
        add_rows(dq, call, num_queries, dq_call)
        add_keys(dk, call, num_keys, dk_call)
        add_keys(dv, call, num_keys, dv_call)
    return (
        dq[:-1].view(q.shape).to(result),
        dk[:-1].view(k.shape).to(result),
        dv[:-1].view(v.shape).to(result),
    )


def _attend(q: Tensor, k: Tensor, v: Tensor, call: TileCall, scale: float) -> tuple[Tensor, Tensor]:
    """-> out (n, M, H, D) in q's dtype, lse (n, M, H) of one call."""
    parts, mask = (take_rows(q, call), take_keys(k, call), take_keys(v, call)), call.mask(_mask_dtype(q))
    out, lse = _flash(*parts, 0.0, call.kind == "causal", attn_mask=mask, scale=scale)
    return out.transpose(1, 2), lse.transpose(1, 2)


def _attend_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse_call: Tensor, call: TileCall, scale: float
) -> tuple[Tensor, ...]:
    """lse_call: (n, M, H); the others are whole. -> dq (n, M, H, D), dk and dv (n, L, K, D) of one call."""
    grad_call, q_call, out_call = (take_rows(x, call) for x in (grad_out, q, out))
    parts = [grad_call, q_call, take_keys(k, call), take_keys(v, call), out_call]
    if q.element_size() < 4 and call.keys <= UPCAST_KEYS:
        parts = [part.float() for part in parts]
    mask, causal = call.mask(_mask_dtype(q)), call.kind == "causal"
    grads = _flash_backward(*parts, lse_call.transpose(1, 2), 0.0, causal, attn_mask=mask, scale=scale)
    return tuple(grad.transpose(1, 2) for grad in grads)


def lse_of_rows(lse: Tensor) -> Tensor:
    """(B, H, T) -> (B * T + 1, H); +inf for rows that see nothing and for padding, the row more.

    exp(score - inf) = 0, so these take no part in a gradient.
    """
    batch, heads, num_queries = lse.shape
    rows = lse.new_full((batch * num_queries + 1, heads), torch.inf)
    rows[:-1].view(batch, num_queries, heads).copy_(lse.transpose(1, 2))
    return rows.masked_fill_(rows == -torch.inf, torch.inf)


def read_rows(x: Tensor, call: TileCall, num_queries: int) -> Tensor:
    """(B * T + 1, ...) buffer -> the call's rows, (n, M, ...)."""
    if call.window is not None:
        return _row_window(x, call, num_queries)
    return x.index_select(0, call.row_to).view(call.num, call.rows, *x.shape[1:])


def add_rows(x: Tensor, call: TileCall, num_queries: int, part: Tensor) -> None:
    """Add (n, M, ...) to the call's rows of a (B * T + 1, ...) buffer."""
    if call.window is not None:
        _row_window(x, call, num_queries).add_(part)
    else:
        x.index_add_(0, call.row_to, part.reshape(-1, *x.shape[1:]).to(x.dtype))


def add_keys(x: Tensor, call: TileCall, num_keys: int, part: Tensor) -> None:
    """Add (n, L, ...) to the call's keys of a (B * S + 1, ...) buffer."""
    if call.window is not None:
        _key_window(x, call, num_keys).add_(part)
    else:
        x.index_add_(0, call.key_to, part.reshape(-1, *x.shape[1:]).to(x.dtype))


def _mask_dtype(x: Tensor) -> torch.dtype:
    """The op takes masks of its inputs' dtype or fp32; fp32 for all but fp64 keeps one copy of each mask."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def take_rows(x: Tensor, call: TileCall) -> Tensor:
    """(B, T, H, D) -> the call's rows, (n, H, M, D)."""
    return _take(x, call, call.row_from, call.rows, 2)


def take_keys(x: Tensor, call: TileCall) -> Tensor:
    """(B, S, K, D) -> the call's keys, (n, K, L, D)."""
    return _take(x, call, call.key_from, call.keys, 3)


def _take(x: Tensor, call: TileCall, index: Tensor | None, size: int, place: int) -> Tensor:
    if call.window is not None:
        first = call.window[place]
        part = x[call.window[0] : call.window[1], first : first + size]
    else:
        part = x.reshape(-1, *x.shape[2:]).index_select(0, index).view(call.num, size, *x.shape[2:])
    part = part.transpose(1, 2)
    # heads side by side spread a tile over few sets of the cache; few rows read their keys only once
    return part.contiguous() if call.keys >= CONTIGUOUS_KEYS and call.rows >= CONTIGUOUS_ROWS else part


def _only_call(plan: TilePlan, q: Tensor, k: Tensor) -> TileCall | None:
    """The plan's call where it is one for all rows and keys without a mask, such as a causal row: its results need not
    be put in their places."""
    if len(plan.calls) != 1 or len(plan.calls[0]) != 1:
        return None
    call = plan.calls[0][0]
    whole = call.window == (0, len(q), 0, 0) and (call.rows, call.keys) == (q.shape[1], k.shape[1])
    return call if whole and call.kind != "masked" else None


def _row_window(x: Tensor, call: TileCall, num_queries: int) -> Tensor:
    """The part of a (B * T + 1, ...) buffer that a call without gathering reads and writes, (n, M, ...)."""
    return _window(x, call, num_queries, call.window[2], call.rows)


def _key_window(x: Tensor, call: TileCall, num_keys: int) -> Tensor:
    return _window(x, call, num_keys, call.window[3], call.keys)


def _window(x: Tensor, call: TileCall, size: int, first: int, length: int) -> Tensor:
    whole = x[:-1].view(-1, size, *x.shape[1:])
    return whole[call.window[0] : call.window[1], first : first + length]
