"""The self-check of an attention backend on a card: small problems, forward and gradients, against the reference.

For each kind of mask a short and a long problem, since kernels choose their tiles by how much a row sees: packed
documents of odd lengths, padding among them, windows, media blocks over tile edges, restricted keys with rows that see
nothing, and a few rows against a long cache; in the caller's dtype, head dim and number of query heads to a key head.

The truth is the reference in fp64 on the same inputs. Each token's and head's vector of out must be within a few
roundings of it, relative to its own length, so that one key too many among a thousand shows; those of dq, dk and dv, in
which much cancels, relative to their own length plus that of a mean vector. `ROUNDINGS` has the numbers: more than
twice what plain runs in that precision need.

Legend: B batch, T query rows, S keys, H query heads, K key heads, D head dim.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from brine.kernels.attention import reference
from brine.kernels.attention.spans import Spans

SHORT, LONG = 301, 1157
"""Tokens of a problem; a causal row of the long one sees 579 keys in the mean."""
ROUNDINGS = {torch.float32: (64.0, 512.0), torch.bfloat16: (5.0, 16.0), torch.float16: (8.0, 16.0)}
"""Allowed error of out, and of gradients, in units of the dtype's rounding (half its eps)."""
LSE_ERROR = 2e-2
"""Allowed error of a log-sum-exp, whose scores are sums of rounded inputs' products."""
MANY_KEYS, FEW_ROWS = 2500, 3


def check(
    module: ModuleType,
    *,
    device: torch.device,
    dtype: torch.dtype,
    kind: str,
    dim: int,
    group: int,
    sink: bool,
    wide: bool,
) -> str | None:
    """What is wrong with a backend for masks of one kind, None where nothing is. Waits for the device."""
    draw = torch.Generator().manual_seed(0)
    key_heads = 2 if group <= 4 else 1
    for name, spans in problems(kind).items():
        spans = spans.to(device)
        shapes = [
            (key_heads * group, spans.num_queries),
            *[(key_heads, spans.num_keys)] * 2,
            (key_heads * group, spans.num_queries),
        ]
        q, k, v, grad = (
            torch.randn(spans.batch_size, tokens, heads, dim, generator=draw).to(device, dtype)
            for heads, tokens in shapes
        )
        logit = torch.linspace(-1.0, 2.0, q.shape[2]).to(device, dtype) if sink else None
        wrong = _compare(module, q, k, v, grad, spans, logit, wide)
        if wrong is not None:
            return f"{wrong} ({name})"
    return None


def problems(kind: str) -> dict[str, Spans]:
    """Masks of one kind by name, on the host."""
    few = torch.full((2, FEW_ROWS), MANY_KEYS, dtype=torch.int32)
    few[1] -= 700
    if kind == "moving":
        options = {"kind": "moving", "valid": True}
        return {
            "few rows that see many keys": Spans(few - 1700, few, MANY_KEYS, **options),
            "few rows that see few keys": Spans(few - 171, few, MANY_KEYS, **options),
        }
    if kind == "any":
        packed = Spans.packed(_documents(SHORT))
        return {
            "restricted keys, rows that see nothing": packed.restrict(range(SHORT), range(60, 200)),
            "the last rows of a long document": Spans.packed(
                torch.zeros(1, LONG, dtype=torch.int32), num_queries=SHORT
            ),
            "few rows, many keys": Spans(few - 1700, few, MANY_KEYS),
        }
    whole = torch.zeros(1, LONG, dtype=torch.int32)
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
    """(2, num) ids: lengths from 1 on, padding at the end of one row."""
    lengths = torch.tensor([1, 130, 7, 64, 65, num])
    row = torch.arange(len(lengths), dtype=torch.int32).repeat_interleave(lengths)[:num]
    document = torch.stack((row, row.flip(0)))
    document[0, -23:] = -1
    return document


def _blocks(num: int) -> Tensor:
    """(2, num) ids: blocks that begin, end and lie across the edges of tiles of 64, two of them touching."""
    block = torch.zeros(2, num, dtype=torch.int32)
    for name, (first, stop) in enumerate(((60, 70), (128, 192), (192, 250), (num - 40, num - 30)), 1):
        block[:, first:stop] = name
    return block


def _compare(
    module: ModuleType, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, spans: Spans, sink: Tensor | None, wide: bool
) -> str | None:
    ends, scale = (spans.lo, spans.hi, int(spans.serial)), q.shape[3] ** -0.5
    options = {"wide": True} if wide else {}
    out, lse = module.forward(q, k, v, *ends, scale=scale, sink=sink, **options)
    grads = module.backward(grad, q, k, v, *ends, out, lse, scale=scale, whole=not wide, sink=sink, **options)
    exact = [x.double() for x in (q, k, v)]
    softmax = {"scale": scale, "sink": None if sink is None else sink.double()}
    true_out, true_lse = reference.forward(*exact, *ends, **softmax)
    true = reference.backward(grad.double(), *exact, *ends, true_out, true_lse, whole=True, **softmax)

    empty = true_lse == -torch.inf
    if not torch.equal(lse == -torch.inf, empty):
        return "log-sum-exps of rows that see nothing are not -inf, or others are"
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
