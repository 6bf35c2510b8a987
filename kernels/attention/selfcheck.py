"""The self-check of an attention backend on a GPU: small problems, out and gradients, against the reference in fp64.

For each mask type a short and a long problem, since kernels choose tiles by how much a query sees, in the caller's
dtype, head dim and number of query heads per KV head. Each vector of out must be within a few roundings of the
reference relative to its length, so that one key too many among a thousand shows; those of dq, dk and dv relative to
their length plus that of a mean vector. Plain attention, its scores and weights rounded to that precision, stays
within `ROUNDINGS`; in bf16 its out comes close.

Legend: B batch, T queries, S keys, H query heads, K KV heads, D head dim.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from brine.kernels.attention import reference
from brine.kernels.attention.spans import AttentionRequest, Spans

SHORT, LONG = 301, 1157  # tokens of a problem; a causal query of the long one sees 579 keys in the mean
ROUNDINGS = {torch.float32: (64.0, 512.0), torch.bfloat16: (5.0, 16.0), torch.float16: (8.0, 16.0)}
"""Allowed error of out, and of gradients, in units of the dtype's rounding (half its eps)."""
LSE_ERROR = 2e-2  # allowed error of a log-sum-exp, whose scores are sums of rounded inputs' products
MANY_KEYS, FEW_QUERIES = 2500, 3


def check(
    module: ModuleType, *, device: torch.device, dtype: torch.dtype, kind: str, dim: int, group: int, sink: bool,
    partial: bool,
) -> str | None:  # fmt: skip
    """What is wrong with a backend for masks of one kind, None where nothing is. Waits for the device."""
    draw = torch.Generator().manual_seed(0)
    key_heads = 2 if group <= 4 else 1
    for name, spans in problems(kind).items():
        spans = spans.to(device)
        queries, keys = (key_heads * group, spans.num_queries), (key_heads, spans.num_keys)
        q, k, v, grad = (
            torch.randn(spans.batch_size, tokens, heads, dim, generator=draw).to(device, dtype)
            for heads, tokens in (queries, keys, keys, queries)
        )
        logit = torch.linspace(-1.0, 2.0, q.shape[2]).to(device, dtype) if sink else None
        request = AttentionRequest(spans.mask, dim**-0.5, logit, partial)
        wrong = _compare(module, q, k, v, grad, request)
        if wrong is not None:
            return f"{wrong} ({name})"
    return None


def problems(kind: str) -> dict[str, Spans]:
    """Masks of one kind by name, on the host."""
    few = torch.full((2, FEW_QUERIES), MANY_KEYS, dtype=torch.int32)
    few[1] -= 700
    if kind == "moving":
        return {
            f"few queries, {word} visible keys": Spans(few - visible, few, MANY_KEYS, kind="moving", valid=True)
            for word, visible in (("many", 1700), ("few", 171))
        }
    whole = torch.zeros(1, LONG, dtype=torch.int32)
    if kind == "any":
        packed = Spans.packed(_documents(SHORT))
        return {
            "restricted keys, empty queries": packed.restrict(range(SHORT), range(60, 200)),
            "the last queries of a long document": Spans.packed(whole, num_queries=SHORT),
            "few queries, many keys": Spans(few - 1700, few, MANY_KEYS),
        }
    if kind == "causal":
        return {"packed documents": Spans.packed(_documents(SHORT)), "one long document": Spans.packed(whole)}
    if kind == "window":
        return {
            "packed documents, a short window": Spans.packed(_documents(SHORT), window=37),
            "a wide window": Spans.packed(whole, window=801),
        }
    return {
        "media blocks in packed documents": Spans.packed(_documents(SHORT), block=_blocks(SHORT)),
        "media blocks past a window": Spans.packed(_documents(SHORT), block=_blocks(SHORT), window=24),
        "media blocks in a long document": Spans.packed(whole, block=_blocks(LONG)[:1]),
    }


def _documents(num: int) -> Tensor:
    """(2, num) ids: lengths from 1 on, padding at the end of one sequence."""
    lengths = torch.tensor([1, 130, 7, 64, 65, num])
    ids = torch.arange(len(lengths), dtype=torch.int32).repeat_interleave(lengths)[:num]
    document = torch.stack((ids, ids.flip(0)))
    document[0, -23:] = -1
    return document


def _blocks(num: int) -> Tensor:
    """(2, num) ids: blocks that begin, end and lie across the edges of tiles of 64, two of them touching."""
    block = torch.zeros(2, num, dtype=torch.int32)
    for name, (first, stop) in enumerate(((60, 70), (128, 192), (192, 250), (num - 40, num - 30)), 1):
        block[:, first:stop] = name
    return block


def _compare(
    module: ModuleType, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, request: AttentionRequest
) -> str | None:
    out, lse = module.forward(q, k, v, request)
    grads = module.backward(grad, q, k, v, out, lse, request)
    exact = request._replace(sink=None if request.sink is None else request.sink.double(), partial=False)
    q_true, k_true, v_true = q.double(), k.double(), v.double()
    true_out, true_lse = reference.forward(q_true, k_true, v_true, exact)
    true = reference.backward(grad.double(), q_true, k_true, v_true, true_out, true_lse, exact)

    empty = true_lse == -torch.inf
    if not torch.equal(lse == -torch.inf, empty):
        return "log-sum-exps of empty queries are not -inf, or others are"
    off = (lse.double() - true_lse).masked_fill(empty, 0.0).abs().max().item()
    if not off <= LSE_ERROR:
        return f"log-sum-exps are off by {off:.2g}"
    unit = torch.finfo(q.dtype).eps / 2
    for name, x, y in zip(("out", "dq", "dk", "dv"), (out, *grads), (true_out, *true), strict=True):
        error, size = (x.double() - y).norm(dim=-1), y.norm(dim=-1)
        limit = ROUNDINGS[q.dtype][name != "out"]
        slack = size.square().mean().sqrt() * (1e-3 if name == "out" else 1.0)
        worst = (error / (size + slack)).max().item() / unit
        # written so that NaN fails
        if not worst <= limit:
            return f"{name} is off by {worst:.3g} roundings of {q.dtype}, where {limit:g} are allowed"
    return None
