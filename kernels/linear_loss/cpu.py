"""The fused head and loss, chunked over tokens: memory for `chunk_tokens` rows of logits, whatever N is.

The loss is a sum over tokens, so its gradient with respect to each chunk's logits is known as soon as they are, up to
the one scalar that arrives in the backward. The forward therefore computes the gradients right away, three matmuls in
all where recomputing would take four, and keeps d_hidden (N, E) and d_weight (V, E) instead of the inputs. Without
gradients asked for it is one matmul.

Tokens without target are left out before anything is computed. Matmuls run in hidden's dtype (under autocast, in
autocast's); logits, softmax and losses, and the sum of d_weight over chunks, are fp32 (fp64 for fp64 inputs).

Legend: N tokens, n of them with a target, C in a chunk, E and Et widths of student and teacher, V vocabulary.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_LOGITS = 2**21
"""Logits in a chunk by default: 8 MB in fp32, near enough to the caches."""
CHUNK_TOKENS = 256
"""Least tokens in a chunk by default: each chunk reads and writes all of d_weight, which must not outweigh its work."""


def default_chunk(vocabulary: int) -> int:
    """Tokens in a chunk: about `CHUNK_LOGITS` logits, but no fewer than `CHUNK_TOKENS` tokens."""
    return max(CHUNK_TOKENS, CHUNK_LOGITS // max(1, vocabulary))


class LinearCrossEntropy(torch.autograd.Function):
    """(loss (), token_loss (N,)); differentiable once, with respect to hidden and weight."""

    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        token_weight: Tensor | None,
        teacher_hidden: Tensor | None,
        teacher_weight: Tensor | None,
        z_loss: float,
        distill_weight: float,
        temperature: float,
        chunk_tokens: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(torch.float32, dtype)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        # where every token has a target, chunks are slices and need no copies
        rows = (labels >= 0).nonzero().flatten()
        whole = rows.numel() == labels.numel()
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        token_loss = torch.zeros(labels.shape, dtype=wide, device=hidden.device)
        d_hidden = torch.zeros_like(hidden) if wants_hidden else None
        d_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if wants_weight else None
        weight_low = weight.to(dtype)
        teacher_low = teacher_weight.to(dtype) if distill_weight else None

        for first in range(0, rows.numel(), chunk_tokens):
            at = slice(first, first + chunk_tokens) if whole else rows[first : first + chunk_tokens]
            hidden_CE = hidden[at].to(dtype)
            label = labels[at][:, None]
            logits = (hidden_CE @ weight_low.T).to(wide)
            lse = logits.logsumexp(-1, keepdim=True)
            hard = lse - logits.gather(1, label)
            total = (1.0 - distill_weight) * hard + z_loss * lse**2
            chance = (logits - lse).exp_() if wants_hidden or wants_weight else None

            if distill_weight:
                teacher = (teacher_hidden[at].to(dtype) @ teacher_low.T).to(wide)
                teacher = torch.softmax(teacher.div_(temperature), -1)
                if temperature == 1.0:
                    soft_lse, soft_chance = lse, chance
                else:
                    logits.div_(temperature)
                    soft_lse = logits.logsumexp(-1, keepdim=True)
                    soft_chance = None if chance is None else (logits - soft_lse).exp_()
                # cross-entropy of the teacher, whose probabilities sum to 1
                soft = soft_lse - (teacher * logits).sum(-1, keepdim=True)
                total = total + distill_weight * temperature**2 * soft
            scale = 1.0 if token_weight is None else token_weight[at].to(wide)[:, None]
            loss += (scale * total).sum()
            token_loss[at] = hard.flatten()
            if chance is None:
                continue

            # d total / d logits, row by row: (1 - d)(p - onehot) + 2 z lse p + d T (p_T - teacher_T)
            if distill_weight:
                d_soft = (teacher.neg_().add_(soft_chance)).mul_(distill_weight * temperature)
            d_logits = chance.mul_((1.0 - distill_weight) + 2.0 * z_loss * lse)
            d_logits.scatter_add_(1, label, d_logits.new_full((), distill_weight - 1.0).expand_as(label))
            if distill_weight:
                d_logits.add_(d_soft)
            if token_weight is not None:
                d_logits.mul_(scale)
            d_logits = d_logits.to(dtype)
            if wants_hidden:
                d_hidden[at] = (d_logits @ weight_low).to(hidden.dtype)
            if wants_weight:
                if dtype == wide:
                    d_weight.addmm_(d_logits.T, hidden_CE)
                else:
                    d_weight += d_logits.T @ hidden_CE
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(token_loss)
        return loss, token_loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor, _grad_token_loss: Tensor | None):
        d_hidden, d_weight = ctx.saved_tensors
        if d_hidden is not None:
            d_hidden = d_hidden * grad_loss.to(d_hidden.dtype)
        if d_weight is not None:
            d_weight = (d_weight * grad_loss).to(ctx.weight_dtype)
        return d_hidden, d_weight, *([None] * 9)
