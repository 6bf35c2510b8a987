"""The facade of the fused head and loss: checks what it is given and calls the chunked version."""

import torch
from torch import Tensor

from kernels.linear_loss.cpu import LinearCrossEntropy, default_chunk

IGNORED = -100
"""The label of a token without target."""


def linear_cross_entropy(
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
    chunk_tokens: int | None = None,
    return_token_loss: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Summed loss of a linear head, without (N, V) logits:

        sum_i w_i [ (1 - d) CE_i + d T^2 CE(teacher_T,i || student_T,i) + z lse_i^2 ]

    with w token_weight, d distill_weight, T temperature (both logits are divided by it), z z_loss.

    hidden: (N, E); weight: (V, E); labels: (N,) int64 in [0, V), or -100 for a token without target, which takes no
    part; token_weight: (N,), 1 by default; teacher_hidden: (N, Et) and teacher_weight: (V, Et), without gradient,
    needed where distill_weight > 0. Matmuls run in hidden's dtype, under autocast in autocast's. chunk_tokens: tokens
    whose logits are held at a time; by default about 2 million logits, but no fewer than 256 tokens.
    -> loss () float32 (float64 for float64 hidden), differentiable once with respect to hidden and weight; with
    return_token_loss also token_loss (N,): the plain cross-entropy CE_i of each token, unweighted, 0 where there is no
    target, without gradient.
    Raises ValueError for shapes, dtypes, labels or numbers that do not fit.
    """
    _check(hidden, weight, labels, token_weight)
    if distill_weight:
        _check_teacher(hidden, weight, teacher_hidden, teacher_weight)
    if not 0.0 <= distill_weight <= 1.0:
        raise ValueError(f"distill_weight must lie in [0, 1]; got {distill_weight}")
    if temperature <= 0.0:
        raise ValueError(f"temperature must be above 0; got {temperature}")
    if chunk_tokens is None:
        chunk_tokens = default_chunk(weight.shape[0])
    elif chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, or None for the default; got {chunk_tokens}")
    device, dtype = hidden.device.type, hidden.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    if distill_weight:
        teacher_hidden, teacher_weight = teacher_hidden.detach(), teacher_weight.detach()
    # inside, the dtypes are explicit
    with torch.autocast(device, enabled=False):
        loss, token_loss = LinearCrossEntropy.apply(
            hidden,
            weight,
            labels,
            None if token_weight is None else token_weight.detach(),
            teacher_hidden,
            teacher_weight,
            float(z_loss),
            float(distill_weight),
            float(temperature),
            chunk_tokens,
            dtype,
        )
    return (loss, token_loss) if return_token_loss else loss


def _check(hidden: Tensor, weight: Tensor, labels: Tensor, token_weight: Tensor | None) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden must be (N, E) and weight (V, E); got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    num = hidden.shape[0]
    if labels.shape != (num,) or labels.dtype != torch.int64:
        raise ValueError(f"labels must be (N,) = ({num},) int64; got {tuple(labels.shape)} of {labels.dtype}")
    if token_weight is not None and token_weight.shape != (num,):
        raise ValueError(f"token_weight must be (N,) = ({num},); got {tuple(token_weight.shape)}")
    wrong = ((labels < 0) & (labels != IGNORED)) | (labels >= weight.shape[0])
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        raise ValueError(
            f"labels must lie in [0, {weight.shape[0]}) or be {IGNORED} for no target; labels[{i}] is {int(labels[i])}"
        )


def _check_teacher(
    hidden: Tensor, weight: Tensor, teacher_hidden: Tensor | None, teacher_weight: Tensor | None
) -> None:
    if teacher_hidden is None or teacher_weight is None:
        raise ValueError("distill_weight > 0 needs both teacher_hidden (N, Et) and teacher_weight (V, Et)")
    fits = (
        teacher_hidden.dim() == teacher_weight.dim() == 2
        and teacher_hidden.shape[1] == teacher_weight.shape[1]
        and teacher_hidden.shape[0] == hidden.shape[0]
        and teacher_weight.shape[0] == weight.shape[0]
    )
    if not fits:
        raise ValueError(
            f"teacher_hidden must be (N, Et) with N = {hidden.shape[0]} and teacher_weight (V, Et) with "
            f"V = {weight.shape[0]}; got {tuple(teacher_hidden.shape)} and {tuple(teacher_weight.shape)}"
        )
