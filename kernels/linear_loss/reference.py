"""The specification of the fused head and loss: dense, plain PyTorch, differentiable by autograd.

It holds (N, V) logits, for the student and for the teacher, in fp32 (fp64 for fp64 inputs); use it for small sizes
and to hold the fused version to account. Terms and symbols are in README.md.

Legend: N tokens, E and Et widths of student and teacher, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def reference_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    token_weight: Tensor | None = None,
    z_loss: float = 0.0,
    teacher_hidden: Tensor | None = None,
    teacher_weight: Tensor | None = None,
    distill_weight: float = 0.0,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Arguments as in `kernels.linear_cross_entropy`. -> loss (), token_loss (N,) detached."""
    dtype = torch.promote_types(torch.float32, hidden.dtype)
    target = labels >= 0
    logits = hidden.to(dtype) @ weight.to(dtype).T
    hard = F.cross_entropy(logits, labels.where(target, 0), reduction="none")
    total = (1.0 - distill_weight) * hard
    if distill_weight:
        teacher = (teacher_hidden.to(dtype) @ teacher_weight.to(dtype).T).detach()
        soft = F.cross_entropy(logits / temperature, torch.softmax(teacher / temperature, -1), reduction="none")
        total = total + distill_weight * temperature**2 * soft
    if z_loss:
        total = total + z_loss * torch.logsumexp(logits, -1) ** 2
    if token_weight is not None:
        total = total * token_weight.to(dtype)
    # where, not times 0: a token without target takes no part even if its values are not finite
    return torch.where(target, total, 0.0).sum(), torch.where(target, hard, 0.0).detach()
