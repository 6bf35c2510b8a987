"""The custom op `brine::span_attention`: what the compiler and autograd see of attention over spans.

It takes lo and hi as tensors, so a compiled function honours whatever mask it is called with and is not compiled
again when documents change; it returns (out, lse), so selective checkpointing can keep both and skip the recompute:

    policy: save `torch.ops.brine.span_attention.default`

`backend` names the code that runs it, forward and backward; every backend goes through here, the reference too, and
"auto" chooses when the op runs (`select_backend.py`), so that nothing is decided while a compiler traces. `serial`
names the Spans that lo and hi came from, so that what the host derives from them is made once and not once per layer.
lse has no gradient: the API detaches it, and the formula here ignores what reaches it.
"""

import torch
from torch import Tensor

from brine.kernels.attention.select_backend import backend_for


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
    number = int(serial)
    module = backend_for(q, k, number, sink=sink, backend=backend)
    out, lse = module.forward(q, k, v, lo, hi, number, scale=scale, sink=sink)
    return out.contiguous(), lse.contiguous()


span_attention = torch.library.custom_op("brine::span_attention", run, mutates_args=())
"""`run` as an op: with a fake kernel and a gradient, one node to the compiler."""


@span_attention.register_fake
def _(q, k, v, lo, hi, serial, sink, scale, backend):
    batch, rows, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((batch, heads, rows), dtype=torch.promote_types(torch.float32, q.dtype))


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
    number = int(serial)
    module = backend_for(q, k, number, sink=sink, backend=backend)
    grads = module.backward(grad_out, q, k, v, lo, hi, number, out, lse, scale=scale, whole=True, sink=sink)
    return tuple(grad.contiguous() for grad in grads)


@span_attention_backward.register_fake
def _(grad_out, q, k, v, lo, hi, serial, sink, out, lse, scale, backend):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def sink_gradient(grad_out: Tensor, out: Tensor, lse: Tensor, sink: Tensor) -> Tensor:
    """(H,): the sink has probability exp(sink - lse) and value 0, so its logit's gradient is -p * (grad_out . out)."""
    wide = lse.dtype
    inner = (grad_out.to(wide) * out.to(wide)).sum(-1)
    chance = (sink.to(wide)[:, None] - lse).exp().transpose(1, 2)
    return -(chance * inner).sum((0, 1)).to(sink.dtype)


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
