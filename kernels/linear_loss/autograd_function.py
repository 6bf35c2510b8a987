"""The walk over chunks of tokens that the fused backends share: memory for `chunk_tokens` tokens' logits, for any N.

The loss is a sum over tokens, so the gradient of a chunk's logits is known as soon as they are, up to the one scalar
that arrives in the backward. The forward computes d_hidden (N, E) and d_weight (V, E) right away, with three matmuls
where recomputing would take four; what happens between them is the backend's `ChunkLossFn`. Tokens without target are
excluded first. Matmuls run in hidden's dtype (under autocast in autocast's), the rest in fp32 (fp64 for fp64 inputs).

Legend: N tokens, n of them with a target, C in a chunk, E and Et widths of student and teacher, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from brine.kernels.linear_loss.soft_labels import SoftLabels

CHUNK_LOGITS = 2**21  # logits in a chunk by default: 8 MB in fp32, near enough to the caches
CHUNK_TOKENS = {"cpu": 512, "cuda": 4096}
"""Minimum tokens in a chunk by default: each chunk reads and writes all of d_weight, 8 V E bytes, which must not
outweigh its 6 C V E operations. On a CPU twice as many for 16-bit matmuls."""
SLICE = 8192  # words whose part of d_weight is made at a time where it must be widened before it is added

ChunkLossFn = Callable[..., tuple[Tensor, Tensor]]
"""`step(logits, label, terms=, teacher=, soft=, scale=, grad=)`: a backend's work between the matmuls.

logits (C, V), overwritten, with grad by their gradient; label (C, 1) int64; teacher (C, V) logits, overwritten, or
None; soft: SoftLabels of C tokens, or None; scale (C, 1) token weights, or None.
-> total (C,), the weighted loss of each token with all its terms, and hard (C,), its plain cross-entropy.
"""


@dataclass(frozen=True)
class LossTerms:
    """The numbers of the loss; see README.md."""

    z_loss: float
    distill_weight: float
    temperature: float


KINDS = ("plain", "z", "dense", "sparse")
"""Terms of a loss: the labels alone, with z-loss, or with a teacher's soft labels in one of two forms."""


@dataclass(frozen=True)
class LossRequest:
    """What a call asks of a backend."""

    device: torch.device
    dtype: torch.dtype  # of the matmuls
    kind: str  # of KINDS
    weighted: bool = False  # do tokens have weights?
    token_loss: bool = False  # is the plain loss of each token wanted?


def default_chunk(vocab_size: int, device: str, dtype: torch.dtype) -> int:
    """Tokens in a chunk: about `CHUNK_LOGITS` logits, but no fewer than `CHUNK_TOKENS` of the device type."""
    least = CHUNK_TOKENS.get(device, CHUNK_TOKENS["cpu"])
    if device != "cuda" and dtype.itemsize == 2:
        least *= 2
    return max(least, CHUNK_LOGITS // max(1, vocab_size))


def target_positions(labels: Tensor) -> Tensor:
    """(n,) int64, the tokens that have a target; needs a device sync."""
    return (labels >= 0).nonzero().flatten()


class LinearCrossEntropy(torch.autograd.Function):
    """(loss (), token_loss (N,)); differentiable once, with respect to hidden and weight."""

    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Tensor, labels: Tensor, token_weight: Tensor | None,
        teacher: tuple[Tensor, Tensor] | None, soft: SoftLabels | None, terms: LossTerms, step: ChunkLossFn,
        chunk_tokens: int, dtype: torch.dtype, targets: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        wide = torch.promote_types(torch.float32, dtype)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        # where every token has a target, chunks are slices and need no copies
        positions = target_positions(labels) if targets is None else targets
        whole = positions.numel() == labels.numel()
        total = torch.zeros(labels.shape, dtype=wide, device=hidden.device)
        token_loss = torch.zeros_like(total)
        d_hidden = torch.zeros_like(hidden) if wants_hidden else None
        d_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if wants_weight else None
        weight_low = weight.to(dtype)
        teacher_low = weight_low if teacher is None else teacher[1].to(dtype)
        # one buffer for all chunks: fresh pages cost more than the softmax
        buffer = hidden.new_empty((min(chunk_tokens, positions.numel()), weight.shape[0]), dtype=dtype)
        teacher_buffer = buffer if teacher is None else torch.empty_like(buffer)

        for first in range(0, positions.numel(), chunk_tokens):
            at = slice(first, first + chunk_tokens) if whole else positions[first : first + chunk_tokens]
            hidden_CE = hidden[at].to(dtype)
            logits = torch.mm(hidden_CE, weight_low.T, out=buffer[: len(hidden_CE)])
            teacher_logits = None
            if teacher is not None:
                teacher_logits = torch.mm(teacher[0][at].to(dtype), teacher_low.T, out=teacher_buffer[: len(hidden_CE)])
            total[at], token_loss[at] = step(
                logits,
                labels[at][:, None],
                terms=terms,
                teacher=teacher_logits,
                soft=None if soft is None else soft.select(at),
                scale=None if token_weight is None else token_weight[at].to(wide)[:, None],
                grad=wants_hidden or wants_weight,
            )
            if d_hidden is not None:
                d_hidden[at] = (logits @ weight_low).to(hidden.dtype)
            if d_weight is not None:
                _add_outer(d_weight, logits, hidden_CE)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(token_loss)
        return total.sum(), token_loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor, _grad_token_loss: Tensor | None):
        d_hidden, d_weight = ctx.saved_tensors
        if d_hidden is not None:
            d_hidden = d_hidden * grad_loss.to(d_hidden.dtype)
        if d_weight is not None:
            d_weight = _scaled(d_weight, grad_loss, ctx.weight_dtype)
        return d_hidden, d_weight, *([None] * 9)


def _add_outer(d_weight: Tensor, d_logits: Tensor, hidden: Tensor) -> None:
    """d_weight (V, E) += d_logits (C, V)^T hidden (C, E), added in d_weight's dtype."""
    if d_weight.dtype == d_logits.dtype:
        d_weight.addmm_(d_logits.T, hidden)
    elif d_weight.device.type == "cuda":
        if not torch.compiler.is_compiling() and _adds_wide(d_weight.device, d_weight.dtype, d_logits.dtype):
            torch.addmm(d_weight, d_logits.T, hidden, out_dtype=d_weight.dtype, out=d_weight)
        else:
            d_weight += torch.mm(d_logits.T, hidden, out_dtype=d_weight.dtype)
    else:
        low, high = d_logits.new_empty((SLICE, hidden.shape[1])), d_weight.new_empty((SLICE, hidden.shape[1]))
        for first in range(0, len(d_weight), SLICE):
            into = d_weight[first : first + SLICE]
            part = torch.mm(d_logits[:, first : first + SLICE].T, hidden, out=low[: len(into)])
            # widened by hand: add_ would do it in fresh memory, and a system call for that costs more than the sum
            into.add_(high[: len(into)].copy_(part))


@functools.cache
def _adds_wide(device: torch.device, wide: torch.dtype, dtype: torch.dtype) -> bool:
    """Whether this GPU's `dtype` matmul adds to `wide` in place (8 V E bytes per chunk instead of 16), by trial."""
    try:
        total = torch.full((32, 16), 0.5, dtype=wide, device=device)
        ones = torch.ones(16, 16, dtype=dtype, device=device)
        torch.addmm(total, ones.repeat(2, 1), ones, out_dtype=wide, out=total)
        return bool((total == 16.5).all())
    except (RuntimeError, TypeError):
        return False


def _scaled(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """(x * scale) in `dtype`, without a second copy in x's dtype."""
    if x.dtype == dtype:
        return x * scale
    out = torch.empty_like(x, dtype=dtype)
    for into, part in zip(out.split(SLICE), x.split(SLICE), strict=True):
        into.copy_(part * scale)
    return out
