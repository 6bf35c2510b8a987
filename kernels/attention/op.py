"""The custom op `brine::span_attention`: what the compiler and autograd see of attention over spans.

lo and hi are tensors, so that other documents compile nothing anew; `serial` names the Spans that they came from, so
that what the host derives from them is made once and not once per layer. `backend` is resolved when the op runs. The
op returns (out, lse), so that selective checkpointing can keep both and skip the recompute:

    policy: save `torch.ops.brine.span_attention.default`

lse has no gradient: the API detaches it, and the formula here ignores what reaches it.
"""

import torch
from torch import Tensor

from brine.kernels.attention.select_backend import backend_for
from brine.kernels.attention.spans import AttentionRequest, Mask


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lo: Tensor,
    hi: Tensor,
    serial: Tensor,
    sink: Tensor | None,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """q (B, T, H, D); k, v (B, S, K, D); lo, hi (B, T) int32; serial () int64; sink (H,) or None.

    -> out (B, T, H, D), lse (B, H, T), both contiguous.
    """
    request = AttentionRequest(Mask(lo, hi, int(serial)), scale, sink)
    out, lse = backend_for(q, k, request, backend).forward(q, k, v, request)
    return out.contiguous(), lse.contiguous()


def empty_results(q: Tensor) -> tuple[Tensor, Tensor]:
    """Uninitialised out and lse of an op over q, for the compiler."""
    batch, queries, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((batch, heads, queries), dtype=torch.promote_types(torch.float32, q.dtype))


span_attention = torch.library.custom_op("brine::span_attention", run, mutates_args=())
"""`run` as an op."""


@span_attention.register_fake
def _(q, k, v, lo, hi, serial, sink, scale, backend):
    return empty_results(q)


@torch.library.custom_op("brine::span_attention_backward", mutates_args=())
def span_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lo: Tensor,
    hi: Tensor,
    serial: Tensor,
    sink: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> dq, dk, dv, given out and lse over all keys (and the sink)."""
    request = AttentionRequest(Mask(lo, hi, int(serial)), scale, sink)
    dq, dk, dv = backend_for(q, k, request, backend).backward(grad_out, q, k, v, out, lse, request)
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


@span_attention_backward.register_fake
def _(grad_out, q, k, v, lo, hi, serial, sink, out, lse, scale, backend):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def sink_gradient(grad_out: Tensor, out: Tensor, lse: Tensor, sink: Tensor) -> Tensor:
    """(H,): the sink has probability exp(sink - lse) and value 0, so its logit's gradient is -p * (grad_out . out)."""
    wide = lse.dtype
    inner = (grad_out.to(wide) * out.to(wide)).sum(-1)
    probability = (sink.to(wide)[:, None] - lse).exp().transpose(1, 2)
    return -(probability * inner).sum((0, 1)).to(sink.dtype)


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, lo, hi, serial, sink, scale, backend = inputs
    out, lse = output
    ctx.save_for_backward(q, k, v, lo, hi, serial, sink, out, lse)
    ctx.scale, ctx.backend = scale, backend


def _backward(ctx, grad_out, _grad_lse):
    q, k, v, lo, hi, serial, sink, out, lse = ctx.saved_tensors
    dq, dk, dv = span_attention_backward(grad_out, q, k, v, lo, hi, serial, sink, out, lse, ctx.scale, ctx.backend)
    d_sink = None if sink is None else sink_gradient(grad_out, out, lse, sink)
    return dq, dk, dv, None, None, None, d_sink, None, None


span_attention.register_autograd(_backward, setup_context=_setup_context)
