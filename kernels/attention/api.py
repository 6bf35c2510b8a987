"""The API of attention over spans: checks its arguments and calls the op, or the ring over ranks.

    out = attention(q, k, v, Spans.packed(document, block=block, window=1024))

Backends: "cpu" (tiled), "triton" and "gluon" (NVIDIA GPUs), "flash" (the flash-attn packages or torch's varlen
kernel), "flex" (FlexAttention), "reference" (dense), and "auto", which takes the first that passes its self-check
(`select_backend.py`), logs the choice once, and refuses rather than take T x S memory. A name with a dot is a module
of another package, with the same functions.
"""

import math

import torch
from torch import Tensor

from brine.kernels.attention.op import run, span_attention
from brine.kernels.attention.select_backend import BACKENDS
from brine.kernels.attention.spans import Spans

MASKS = {"attn_mask", "mask", "attention_mask", "block_mask", "key_padding_mask", "is_causal", "causal"}
"""Names under which other attentions take a mask."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: Spans | None = None,
    *,
    scale: float | None = None,
    sink: Tensor | None = None,
    backend: str = "auto",
    return_lse: bool = False,
    **masks: object,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale q k^T) v, each query over its visible keys.

    q: (B, T, H, D); k, v: (B, S, K, D), where K divides H; all of one floating dtype (under autocast they are cast).
    scale: 1 / sqrt(D) by default. sink: (H,) learned logit per head that takes part in the softmax with value 0.
    -> out (B, T, H, D) in the inputs' dtype; with return_lse also lse (B, H, T) float32 (float64 for float64 inputs),
    natural log, sink included, without gradient. An empty query gets out 0, lse -inf (the sink's logit with a sink) and
    gradients 0.
    Raises TypeError for what is not a tensor and for a mask instead of spans, under whatever name another
    attention takes it, and ValueError for shapes, dtypes or devices that do not fit, an unknown backend, one that
    cannot do what is asked, and "auto" where only a backend with T x S memory would serve.
    """
    if unknown := masks.keys() - MASKS:
        raise TypeError(f"attention() got an unexpected keyword argument {min(unknown)!r}")
    if masks or not isinstance(spans, Spans):
        name, given = next(iter(masks.items()), ("", spans))
        raise TypeError(_missing_spans_message(given, q, k, name=name))
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a float tensor of 4 dims (B, tokens, heads, D); got a {type(x).__name__}")
    device = q.device.type
    if torch.is_autocast_enabled(device) and q.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    _check(q, k, v, spans, sink)
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else float(scale)

    if backend not in BACKENDS and "." not in backend:
        raise ValueError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    call = _call_ring if spans.sharded else _call_op
    out, lse = call(q, k, v, spans, sink, scale, backend)
    return (out, lse.detach()) if return_lse else out


def _missing_spans_message(given: object, q: object, k: object, *, name: str) -> str:
    """For a mask, or nothing, instead of spans; name: of the keyword that holds it."""
    what = {Tensor: "a mask", type(None): "None"}.get(type(given), f"a {type(given).__name__}")
    shape = getattr(given, "shape", None)
    if shape is not None:
        what = f"a mask of shape {tuple(shape)} and {getattr(given, 'dtype', None)}"
    what = f"{name}={given}" if name and shape is None else f"{name}, {what}" if name else what
    batch, queries = q.shape[:2] if isinstance(q, Tensor) and q.dim() == 4 else ("B", "T")
    tokens = k.shape[1] if isinstance(k, Tensor) and k.dim() == 4 else queries
    # a cache's keys come before those of the queries
    last = "" if queries == tokens else f", num_queries={queries}"
    return (
        f"attention takes Spans as its fourth argument, not {what}: the keys that a query sees are one interval, and "
        "no mask of T x S is ever stored. from brine.kernels.attention import Spans; causal: "
        f"Spans.packed(torch.zeros({batch}, {tokens}, dtype=torch.int32, device=q.device){last}); packed documents: "
        "Spans.packed(document), with the number of its document for each token and -1 for padding; queries after a "
        "cache: num_queries=...; media blocks that see themselves both ways: block=...; a sliding window: window=...; "
        "other intervals: Spans(lo, hi, num_keys)"
    )


def _call_ring(
    q: Tensor, k: Tensor, v: Tensor, spans: Spans, sink: Tensor | None, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    # importing them registers the ring's op, which one rank does not need
    from brine.kernels.context_parallel.layout import ShardedSpans
    from brine.kernels.context_parallel.op import ring_attention

    assert isinstance(spans, ShardedSpans)
    layout = spans.layout
    mask = (spans.lo, spans.hi, spans.serial, layout.chunk_ranks, spans.needed_chunks)
    return ring_attention(q, k, v, *mask, sink, spans.num_keys, layout.chunk, layout.group, scale, backend)


def _call_op(
    q: Tensor, k: Tensor, v: Tensor, spans: Spans, sink: Tensor | None, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    """The custom op where gradient, compiler or meta tensors need it; its first call imports the compiler (seconds)."""
    tensors = (q, k, v) if sink is None else (q, k, v, sink)
    needs_op = (
        torch.compiler.is_compiling()
        or (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
        or q.is_meta
        or type(q) not in (Tensor, torch.nn.Parameter)
    )
    function = span_attention if needs_op else run
    return function(q, k, v, spans.lo, spans.hi, spans.serial, sink, scale, backend)


def _check(q: Tensor, k: Tensor, v: Tensor, spans: Spans, sink: Tensor | None) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4 or not x.is_floating_point():
            raise ValueError(
                f"{name} must be a float tensor of 4 dims (B, tokens, heads, D); got {tuple(x.shape)} of {x.dtype}"
            )
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"{name} is {x.dtype} on {x.device}, but q is {q.dtype} on {q.device}; make them equal")
    batch, queries, heads, dim = q.shape
    if k.shape != v.shape:
        raise ValueError(f"k and v must have one shape; got {tuple(k.shape)} and {tuple(v.shape)}")
    if k.shape[0] != batch or k.shape[3] != dim:
        raise ValueError(f"q is {tuple(q.shape)} and k {tuple(k.shape)}: batch and head dim must be equal")
    if k.shape[2] == 0 or heads % k.shape[2]:
        raise ValueError(f"the {heads} query heads must be a multiple of the {k.shape[2]} KV heads")
    # sharded spans are over the keys of all ranks, of which k holds as many as there are queries
    num_keys = spans.num_keys if spans.sharded else k.shape[1]
    if spans.lo.shape != (batch, queries) or spans.num_keys != num_keys or (spans.sharded and queries != k.shape[1]):
        raise ValueError(
            f"spans are for {tuple(spans.lo.shape)} queries over {spans.num_keys} keys, "
            f"but q has {(batch, queries)} queries and k {k.shape[1]} keys"
        )
    if spans.lo.device != q.device:
        raise ValueError(f"spans are on {spans.lo.device}, but q is on {q.device}; use spans.to(q.device)")
    if sink is not None and sink.shape != (heads,):
        raise ValueError(f"sink must be (H,) = ({heads},); got {tuple(sink.shape)}")
