"""What the kernel tests share: packings, an independent truth, and the rule that errors are held to."""

import random

import torch
from torch import Tensor

from brine.kernels.attention import Spans, attention, merge_partials
from brine.kernels.attention.op import sink_gradient
from brine.kernels.attention.spans import AttentionRequest


def random_packing(seed: int, batch: int, num_keys: int, sizes=(1, 1, 3, 20, 60, 130)) -> tuple[Tensor, Tensor]:
    """(document, block), each (batch, num_keys) int32: documents of the given sizes, some of them padding, with media
    blocks of 4 to 100 tokens at random places, some of them touching."""
    draw = random.Random(seed)
    document, block = torch.zeros(2, batch, num_keys, dtype=torch.int32)
    for b in range(batch):
        start, name = 0, 1
        while start < num_keys:
            end = start + draw.choice(sizes)
            document[b, start:end] = -1 if draw.random() < 0.15 else name
            at = start
            while at < min(end, num_keys):
                at += draw.choice([0, 1, 5, 40])
                size = draw.choice([1, 4, 16, 30, 100])
                name += 1
                block[b, at : min(at + size, end)] = name
                at += size
            start, name = end, name + 1
    return document, block


def blocks_at(num_keys: int, edges: list[tuple[int, int]]) -> Tensor:
    """(1, num_keys) int32 block ids with one block per (start, end)."""
    block = torch.zeros(1, num_keys, dtype=torch.int32)
    for name, (start, end) in enumerate(edges, 1):
        block[0, start:end] = name
    return block


def inputs(spans: Spans, heads: int = 2, key_heads: int = 2, dim: int = 16, dtype=torch.float64) -> list[Tensor]:
    """[q, k, v] with gradients on, and the gradient of out, from the current seed, on the spans' device."""
    batch, rows, keys = spans.batch_size, spans.num_queries, spans.num_keys
    q = torch.randn(batch, rows, heads, dim, dtype=torch.float64)
    k, v = torch.randn(2, batch, keys, key_heads, dim, dtype=torch.float64)
    grad = torch.randn(batch, rows, heads, dim, dtype=torch.float64)
    return [x.to(spans.lo.device, dtype).requires_grad_(i < 3) for i, x in enumerate((q, k, v, grad))]


def naive(q: Tensor, k: Tensor, v: Tensor, spans: Spans, sink: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention as one would write it down, in the inputs' own precision, key heads repeated. -> (out, lse)"""
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    scores = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1)) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~spans.dense()[:, None], -torch.inf)
    if sink is not None:
        scores = torch.cat([scores, sink[None, :, None, None].expand(*scores.shape[:-1], 1)], -1)
    lse = scores.logsumexp(-1)
    chance = torch.where(lse[..., None] == -torch.inf, 0.0, scores).softmax(-1)
    chance = torch.where(lse[..., None] == -torch.inf, 0.0, chance)
    return (chance[..., : k.shape[1]] @ v.transpose(1, 2)).transpose(1, 2), lse.detach()


def results(function, tensors: list[Tensor | None], *args) -> dict[str, Tensor]:
    """Run `function(q, k, v, *args) -> (out, lse)` and its gradients. tensors: q, k, v, [sink,] grad_out, which is None
    for the forward alone."""
    *leaves, grad = tensors
    out, lse = function(*leaves[:3], *args, *leaves[3:])
    grads = () if grad is None else torch.autograd.grad(out, leaves, grad)
    return {"out": out.detach(), "lse": lse, **dict(zip(("dq", "dk", "dv", "dsink"), grads, strict=False))}


def run_backend(backend: str):
    """attention(..., backend) in the form that `results` takes."""

    def call(q, k, v, spans, sink=None):
        return attention(q, k, v, spans, sink=sink, backend=backend, return_lse=True)

    return call


class _Through(torch.autograd.Function):
    """A backend's module by itself, with the gradients that the op has."""

    @staticmethod
    def forward(ctx, module, q, k, v, spans, sink):
        # the module's backward is called without the sink, which counts by lse alone
        ctx.module, ctx.request = module, AttentionRequest(spans.mask, q.shape[-1] ** -0.5)
        out, lse = module.forward(q, k, v, ctx.request._replace(sink=sink))
        ctx.save_for_backward(q, k, v, sink, out, lse)
        return out, lse

    @staticmethod
    def backward(ctx, grad_out, _):
        q, k, v, sink, out, lse = ctx.saved_tensors
        grads = ctx.module.backward(grad_out, q, k, v, out, lse, ctx.request)
        d_sink = None if sink is None else sink_gradient(grad_out, out, lse, sink)
        return None, *grads, None, d_sink


def run_module(module):
    """A module with `forward` and `backward`, in the form that `results` takes."""

    def call(q, k, v, spans, sink=None):
        out, lse = _Through.apply(module, q, k, v, spans, sink)
        return out, lse.detach()

    return call


def check_against_truth(spans: Spans, tensors: list[Tensor], backend="cpu") -> None:
    """out, lse and gradients within twice the naive run's own error in that precision plus 4 eps of the largest true
    value, each tensor by itself.

    A gradient that is 0 throughout, such as dq of one-token documents, has no scale of its own: there the largest of
    all gradients is taken.
    backend: a name, or a backend's module, which is then called without the op.
    Errors are taken against the naive run in fp64 of the same, already rounded, inputs. An fp64 run has no better
    truth than that, so its error may be 1e-12 of the largest value, a few thousand eps.
    """
    dtype = tensors[0].dtype
    exact = [None if x is None else x.detach().double().requires_grad_(x.requires_grad) for x in tensors]
    truth = results(naive, exact, spans)
    own = results(naive, tensors, spans)
    got = results(run_backend(backend) if isinstance(backend, str) else run_module(backend), tensors, spans)
    assert got["out"].dtype == dtype
    assert got["lse"].dtype == torch.promote_types(dtype, torch.float32)
    top = max(
        (truth[name].abs().max() for name in truth.keys() & {"dq", "dk", "dv"} if truth[name].numel()), default=0.0
    )
    for name, true in truth.items():
        empty = true == -torch.inf
        assert torch.equal(got[name] == -torch.inf, empty), f"{name}: empty rows"
        if true.numel() == 0:
            continue
        true = true.masked_fill(empty, 0.0)
        error, naive_error = ((x[name].double().masked_fill(empty, 0.0) - true).abs().max() for x in (got, own))
        largest = true.abs().max()
        if name in ("dq", "dk", "dv") and largest == 0:
            largest = top
        bound = 2 * naive_error + 4 * torch.finfo(dtype).eps * largest
        if dtype == torch.float64:
            bound = 1e-12 * largest.clamp(min=1.0)
        assert error <= bound, f"{name}: error {error:.3g} is over {bound:.3g}"


def check_parts(module, spans: Spans, tensors: list[Tensor], cut: int, eps: float | None = None) -> None:
    """A ring's use of a backend: keys in two parts, merged, and each part's gradients given out and lse over both.

    Results are wide: rounded to the inputs' dtype nowhere, so as exact as an fp32 run on the same inputs, or to `eps`.
    """
    q, k, v, grad = (x.detach() for x in tensors)
    scale, parts = q.shape[-1] ** -0.5, []
    for keys in (range(cut), range(cut, spans.num_keys)):
        part = spans.restrict(range(spans.num_queries), keys)
        parts.append((slice(keys.start, keys.stop), AttentionRequest(part.mask, scale, partial=True)))
    outs = [module.forward(q, k[:, at], v[:, at], request) for at, request in parts]
    sums = torch.promote_types(torch.float32, q.dtype)
    assert all(x.dtype == sums for part in outs for x in part)
    out, lse = merge_partials(*outs[0], *outs[1])
    got = {"out": out, "lse": lse, "dq": 0, "dk": [], "dv": []}
    for at, request in parts:
        dq, dk, dv = module.backward(grad, q, k[:, at], v[:, at], out, lse, request)
        assert dq.dtype == dk.dtype == dv.dtype == sums
        got["dq"] = got["dq"] + dq
        got["dk"].append(dk)
        got["dv"].append(dv)
    got["dk"], got["dv"] = torch.cat(got["dk"], 1), torch.cat(got["dv"], 1)
    truth = results(naive, [x.double().requires_grad_(i < 3) for i, x in enumerate((q, k, v, grad))], spans)
    for name, true in truth.items():
        true = true.masked_fill(true == -torch.inf, 0.0)
        error = (got[name].double().masked_fill(got[name] == -torch.inf, 0.0) - true).abs().max()
        eps = eps or (1e-12 if q.dtype == torch.float64 else 16 * torch.finfo(torch.float32).eps)
        assert error <= eps * true.abs().max().clamp(min=1.0), f"{name}: {error:.3g}"
