"""The custom op `brine::ring_attention`: what the compiler and autograd see of attention over sharded spans.

Like `brine::span_attention` it takes the mask as tensors, so that other documents or another assignment of chunks
compile nothing anew, and the process group by its name. It returns (out, lse), for checkpointing policies to keep:

    policy: save `torch.ops.brine.ring_attention.default`
"""

import torch
from torch import Tensor
from torch.distributed import distributed_c10d

from brine.kernels.attention.merge import finish
from brine.kernels.attention.op import empty_results, sink_gradient
from brine.kernels.attention.spans import AttentionRequest, Mask
from brine.kernels.context_parallel import ring
from brine.kernels.context_parallel.layout import ContextLayout


def _ring(
    lo, hi, serial, chunk_ranks, needed_chunks, num_keys: int, chunk: int, group: str, scale: float, backend: str
) -> ring.RingPlan:
    # only newer versions of torch have the type of a group's name
    process_group = distributed_c10d._resolve_process_group(group)  # type: ignore[arg-type]
    layout = ContextLayout(chunk_ranks, chunk, num_keys, process_group.rank(), process_group.size(), group)
    transport = ring.GroupTransport(process_group)
    mask = Mask(lo, hi, int(serial))
    return ring.RingPlan.of(mask, layout, needed_chunks, scale=scale, backend=backend, transport=transport)


@torch.library.custom_op("brine::ring_attention", mutates_args=())
def ring_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lo: Tensor,
    hi: Tensor,
    serial: Tensor,
    chunk_ranks: Tensor,
    needed_chunks: Tensor,
    sink: Tensor | None,
    num_keys: int,
    chunk: int,
    group: str,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """q (B, T, H, D); k, v (B, T, K, D) of this rank; lo, hi (B, T) global -> out (B, T, H, D), lse (B, H, T)."""
    state = _ring(lo, hi, serial, chunk_ranks, needed_chunks, num_keys, chunk, group, scale, backend)
    out, lse = ring.forward(q, k, v, state)
    return finish(out, lse, AttentionRequest(Mask(lo, hi, int(serial)), scale, sink), q.dtype)


@ring_attention.register_fake
def _(q, k, v, lo, hi, serial, chunk_ranks, needed_chunks, sink, num_keys, chunk, group, scale, backend):
    return empty_results(q)


@torch.library.custom_op("brine::ring_attention_backward", mutates_args=())
def ring_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lo: Tensor,
    hi: Tensor,
    serial: Tensor,
    chunk_ranks: Tensor,
    needed_chunks: Tensor,
    out: Tensor,
    lse: Tensor,
    num_keys: int,
    chunk: int,
    group: str,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> dq, dk, dv of this rank's tokens, given out and lse over all keys (and the sink)."""
    state = _ring(lo, hi, serial, chunk_ranks, needed_chunks, num_keys, chunk, group, scale, backend)
    dq, dk, dv = ring.backward(grad_out.contiguous(), q, k, v, out, lse, state)
    return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)


@ring_attention_backward.register_fake
def _(grad_out, q, k, v, lo, hi, serial, chunk_ranks, needed_chunks, out, lse, num_keys, chunk, group, scale, backend):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, num_keys, chunk, group, scale, backend = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.rest = (num_keys, chunk, group, scale, backend)


def _backward(ctx, grad_out, _grad_lse):
    q, k, v, lo, hi, serial, chunk_ranks, needed_chunks, sink, out, lse = ctx.saved_tensors
    dq, dk, dv = ring_attention_backward(
        grad_out, q, k, v, lo, hi, serial, chunk_ranks, needed_chunks, out, lse, *ctx.rest
    )
    d_sink = None if sink is None else sink_gradient(grad_out, out, lse, sink)
    return dq, dk, dv, *[None] * 5, d_sink, *[None] * 5


ring_attention.register_autograd(_backward, setup_context=_setup_context)
