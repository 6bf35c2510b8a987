"""The chunked backend in plain PyTorch, on any device: losses of a chunk, logits -> gradient.

Everything happens in place, in few passes, and on a CPU in blocks of tokens that stay in the cache (smaller blocks cost
more barriers, which are expensive under load). Each softmax is exponentiated once, then multiplied by one number a
token that holds the normalisation and all weights. Ids of sparse soft labels are set to -inf first and added in the
log domain (README.md).

Legend: C tokens in a chunk, R in a block, V vocabulary, k soft labels per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from brine.kernels.linear_loss.autograd_function import LossRequest, LossTerms
from brine.kernels.linear_loss.soft_labels import SoftLabels, split_listed

BLOCK_LOGITS = 2**22  # logits in a block of tokens on a CPU: 16 MB in fp32


def unsupported_reason(request: LossRequest) -> str | None:
    return None


def chunk_loss(
    logits: Tensor, label: Tensor, *, terms: LossTerms, teacher: Tensor | None, soft: SoftLabels | None,
    scale: Tensor | None, grad: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A `ChunkLossFn`."""
    tokens, vocab_size = logits.shape
    wide = torch.promote_types(torch.float32, logits.dtype)
    total, hard = torch.empty(2, tokens, dtype=wide, device=logits.device)
    size = max(1, BLOCK_LOGITS // vocab_size) if logits.device.type == "cpu" else tokens
    buffer = None if logits.dtype == wide else logits.new_empty((min(size, tokens), vocab_size), dtype=wide)
    for first in range(0, tokens, size):
        at = slice(first, first + size)
        x = logits[at]
        if buffer is not None:
            x = buffer[: len(x)].copy_(x)
        teacher_block = None if teacher is None else teacher[at].to(wide)
        soft_block = None if soft is None else soft.select(at)
        total[at], hard[at] = _block(
            x, label[at], terms, teacher_block, soft_block, 1.0 if scale is None else scale[at], grad
        )
        if grad and buffer is not None:
            logits[at] = x
    return total, hard


def _block(
    x: Tensor, label: Tensor, terms: LossTerms, teacher: Tensor | None, soft: SoftLabels | None,
    scale: Tensor | float, grad: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x (R, V) logits, overwritten. -> total (R,), hard (R,)."""
    distill_weight, temperature = terms.distill_weight, terms.temperature
    at_label = x.gather(1, label)
    if soft is not None:
        is_listed, index, listed = split_listed(x, soft.ids)
    # of what is summed; a listed logit may lie far above it, and all log-sum-exps are relative to the highest
    x_peak = peak = x.amax(-1, keepdim=True)
    if soft is not None:
        peak = torch.maximum(peak, listed.amax(-1, keepdim=True))
        # every id is listed: nothing is left
        x_peak = x_peak.where(x_peak > -torch.inf, peak)
        listed = listed - peak
    x.sub_(x_peak)
    gap = x_peak - peak
    at_label = at_label - peak

    one_softmax = not distill_weight or temperature == 1.0
    y = x if one_softmax else x / temperature
    if teacher is not None:
        teacher = torch.softmax(teacher.div_(temperature), -1, out=teacher)
        expected = (teacher * y).sum(-1, keepdim=True)
    y_sum = y.exp_().sum(-1, keepdim=True)
    x_sum = y_sum if one_softmax else x.exp_().sum(-1, keepdim=True)
    lse, y_lse = x_sum.log(), y_sum.log()
    if soft is not None:
        y_listed, y_gap = (listed, gap) if one_softmax else (listed / temperature, gap / temperature)
        y_rest = y_lse + y_gap
        y_lse = torch.cat((y_rest, y_listed), 1).logsumexp(-1, keepdim=True)
        lse = y_lse if one_softmax else torch.cat((lse + gap, listed), 1).logsumexp(-1, keepdim=True)

    hard = lse - at_label
    full_lse = peak + lse
    total = (1.0 - distill_weight) * hard + terms.z_loss * full_lse**2
    if teacher is not None:
        total = total + distill_weight * temperature**2 * (y_lse - expected)
    elif soft is not None:
        kept = (soft.probabilities * (y_lse - y_listed)).masked_fill_(~is_listed, 0.0).sum(-1, keepdim=True)
        rest = (soft.tail * (y_lse - y_rest)).where(soft.tail > 0.0, 0.0)
        total = total + distill_weight * temperature**2 * (kept + rest)
    total = (scale * total).flatten()
    if not grad:
        return total, hard.flatten()

    # what each softmax is multiplied by: 1 - d + 2 z lse at temperature 1, d T times the mass of the labels at T
    of_x = scale * (1.0 - distill_weight + 2.0 * terms.z_loss * full_lse)
    unit = scale * (distill_weight * temperature)
    if soft is None:
        of_y = unit
        x_norm, y_norm = 1.0 / x_sum, 1.0 / y_sum
    else:
        of_y = unit * (soft.probabilities.sum(-1, keepdim=True) + soft.tail)
        x_norm, y_norm = (gap - lse).exp(), (y_gap - y_lse).exp()
    # the sum over the rest is at least 1, its peak's, or 0
    bucket = 0.0 if soft is None else unit * soft.tail / y_sum.clamp(min=1.0)
    if one_softmax:
        x.mul_((of_x + of_y) * x_norm - bucket if distill_weight else of_x * x_norm)
    else:
        x.mul_(of_x * x_norm).add_(y.mul_(of_y * y_norm - bucket))
    if teacher is not None:
        x.sub_(teacher.mul_(unit))
    if soft is not None:
        # 0 there so far
        at_listed = of_x * (listed - lse).exp() + of_y * (y_listed - y_lse).exp() - unit * soft.probabilities
        x.scatter_add_(1, index, at_listed)
    x.scatter_add_(1, label, (scale * x.new_full((), distill_weight - 1.0)).expand_as(label))
    return total, hard.flatten()
