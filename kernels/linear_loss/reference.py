"""The specification of the fused head and loss: dense, plain PyTorch, differentiable by autograd.

It holds (N, V) logits, for the student and for the teacher, in fp32 (fp64 for fp64 inputs): for small sizes and for
testing the fused versions. Terms and symbols are in README.md.

Legend: N tokens, n of them with a target, E and Et widths of student and teacher, V vocabulary, k soft labels per
token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from brine.kernels.linear_loss.autograd_function import LossRequest, target_positions
from brine.kernels.linear_loss.soft_labels import rounding


def unsupported_reason(request: LossRequest) -> str | None:
    return None


def reference_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    token_weight: Tensor | None = None,
    z_loss: float = 0.0,
    teacher_hidden: Tensor | None = None,
    teacher_weight: Tensor | None = None,
    soft_ids: Tensor | None = None,
    soft_probabilities: Tensor | None = None,
    soft_tail: str = "bucket",
    distill_weight: float = 0.0,
    temperature: float = 1.0,
    targets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Arguments as in `linear_cross_entropy`. -> loss (), token_loss (N,) detached."""
    dtype = torch.promote_types(torch.float32, hidden.dtype)
    # a token without target takes no part, even if its values are not finite
    at = target_positions(labels) if targets is None else targets
    logits = hidden[at].to(dtype) @ weight.to(dtype).T
    hard = F.cross_entropy(logits, labels[at], reduction="none")
    total = (1.0 - distill_weight) * hard
    if distill_weight and soft_ids is not None and soft_probabilities is not None:
        soft = _sparse(logits / temperature, soft_ids[at], soft_probabilities[at].detach(), soft_tail)
        total = total + distill_weight * temperature**2 * soft
    elif distill_weight and teacher_hidden is not None and teacher_weight is not None:
        teacher = (teacher_hidden[at].to(dtype) @ teacher_weight.to(dtype).T).detach()
        soft = F.cross_entropy(logits / temperature, torch.softmax(teacher / temperature, -1), reduction="none")
        total = total + distill_weight * temperature**2 * soft
    if z_loss:
        total = total + z_loss * torch.logsumexp(logits, -1) ** 2
    if token_weight is not None:
        total = total * token_weight[at].to(dtype)
    token_loss = torch.zeros(labels.shape, dtype=dtype, device=hidden.device)
    token_loss[at] = hard.detach()
    return total.sum(), token_loss


def _sparse(logits: Tensor, ids: Tensor, probabilities: Tensor, tail: str) -> Tensor:
    """Cross-entropy (n,) of `logits` (n, V), already softened, with sparse soft labels (n, k)."""
    slack = rounding(probabilities)
    index, probabilities = ids.clamp(min=0), probabilities.to(logits.dtype)
    teacher = torch.zeros_like(logits).scatter_add(1, index, probabilities)
    mass = probabilities.sum(-1)
    if tail == "renormalise":
        teacher, mass = teacher / mass[:, None], torch.ones_like(mass)
    log_q = logits.log_softmax(-1)
    soft = -(teacher * log_q).sum(-1)
    rest = 1.0 - mass
    has_tail = rest > slack
    # log of the student's probability of all ids that are not listed; summed over them, not 1 - the others
    listed = torch.zeros_like(logits).scatter_add(1, index, (ids >= 0).to(logits.dtype)) > 0
    log_rest = log_q[has_tail].masked_fill(listed[has_tail], -torch.inf).logsumexp(-1)
    return soft.index_put((has_tail.nonzero().flatten(),), -rest[has_tail] * log_rest, accumulate=True)
