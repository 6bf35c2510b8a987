"""The API of the fused head and loss: checks its arguments and picks a backend; a named backend is never replaced.

Backends: "reference" (dense), "chunked" (plain PyTorch on any device), "triton" (chunked too, one kernel between the
matmuls), "liger" (the package's fused loss, for what it can express), and "auto", which takes the first that passes its
self-check (`select_backend.py`) and logs the choice once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from brine.kernels.linear_loss.autograd_function import LinearCrossEntropy, LossRequest, LossTerms, default_chunk
from brine.kernels.linear_loss.liger import liger_linear_cross_entropy
from brine.kernels.linear_loss.reference import reference_linear_cross_entropy
from brine.kernels.linear_loss.select_backend import BACKENDS, backend_for, chunk_loss_of
from brine.kernels.linear_loss.soft_labels import prepare_soft_labels, raise_where

IGNORED = -100  # the label of a token without target


def linear_cross_entropy(
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
    chunk_tokens: int | None = None,
    targets: Tensor | None = None,
    validate: bool = True,
    backend: str = "auto",
    return_token_loss: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Summed loss of a linear head, without (N, V) logits:

        sum_i w_i [ (1 - d) CE_i + d T^2 CE(teacher_T,i || student_T,i) + z lse_i^2 ]

    with w token_weight, d distill_weight, T temperature (the student's logits are divided by it), z z_loss.

    hidden: (N, E); weight: (V, E); labels: (N,) int64 in [0, V), or -100 for a token without target, which takes no
    part; token_weight: (N,), 1 by default. Where distill_weight > 0, soft labels in one of two forms, both without
    gradient (where it is 0 they are not looked at):
      dense: teacher_hidden (N, Et) and teacher_weight (V, Et); the teacher's logits are divided by T too;
      sparse: soft_ids (N, k) int64, -1 in unused entries, and soft_probabilities (N, k), of a teacher softened by T
        already. Repeated ids add up. For labels that sum to 1 - r, soft_tail="bucket" makes the ids that are not
        listed one event of probability r; "renormalise" divides by 1 - r, which is biased.
    Matmuls run in hidden's dtype, under autocast in autocast's. chunk_tokens: tokens whose logits are held at a time;
    by default about 2 million logits, but no fewer than 512 tokens (1024 in 16 bits, 4096 on CUDA).
    targets: (n,) int64 on labels' device, the tokens that have a target, ascending, so that no device sync is needed to
    count them. validate: whether to look at the values of labels and soft labels; on a GPU that is an assertion there,
    without a device sync.
    -> loss () float32 (float64 for float64 hidden), differentiable once with respect to hidden and weight; with
    return_token_loss also token_loss (N,): the plain cross-entropy CE_i of each token, unweighted, 0 where there is no
    target, without gradient.
    Raises ValueError for shapes, dtypes, devices, labels or numbers that do not fit, an unknown backend, and one that
    cannot do what is asked.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    _check(hidden, weight, labels, token_weight, targets, validate)
    if not 0.0 <= distill_weight <= 1.0:
        raise ValueError(f"distill_weight must lie in [0, 1]; got {distill_weight}")
    if temperature <= 0.0:
        raise ValueError(f"temperature must be above 0; got {temperature}")
    device, dtype = hidden.device.type, hidden.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    if chunk_tokens is None:
        chunk_tokens = default_chunk(weight.shape[0], device, dtype)
    elif chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, or None for the default; got {chunk_tokens}")

    kind, teacher, soft = "z" if z_loss else "plain", None, None
    if distill_weight:
        kind = _kind_of_soft_labels(teacher_hidden, teacher_weight, soft_ids, soft_probabilities)
    request = LossRequest(hidden.device, dtype, kind, token_weight is not None, return_token_loss)
    chosen = _choose(backend, request)

    if kind == "sparse":
        assert soft_ids is not None and soft_probabilities is not None
        _check_device(hidden, soft_ids=soft_ids, soft_probabilities=soft_probabilities)
        wide, vocab_size = torch.promote_types(torch.float32, dtype), weight.shape[0]
        soft = prepare_soft_labels(
            soft_ids, soft_probabilities, labels, vocab_size=vocab_size, tail=soft_tail, dtype=wide, validate=validate
        )
    elif kind == "dense":
        assert teacher_hidden is not None and teacher_weight is not None
        _check_teacher(hidden, weight, teacher_hidden, teacher_weight)
        teacher = (teacher_hidden.detach(), teacher_weight.detach())
    token_weight = None if token_weight is None else token_weight.detach()
    hard: dict[str, Any] = {"token_weight": token_weight, "z_loss": z_loss, "targets": targets}
    # inside, the dtypes are explicit
    with torch.autocast(device, enabled=False):
        if chosen == "reference":
            loss, token_loss = reference_linear_cross_entropy(
                hidden, weight, labels, **hard, teacher_hidden=teacher_hidden, teacher_weight=teacher_weight,
                soft_ids=soft_ids, soft_probabilities=soft_probabilities, soft_tail=soft_tail,
                distill_weight=distill_weight, temperature=temperature,
            )  # fmt: skip
        elif chosen == "liger":
            loss, token_loss = liger_linear_cross_entropy(
                hidden, weight, labels, **hard, token_loss=return_token_loss, dtype=dtype
            )
        else:
            terms = LossTerms(float(z_loss), float(distill_weight), float(temperature))
            walk = (terms, chunk_loss_of(chosen), chunk_tokens, dtype, targets)
            loss, token_loss = LinearCrossEntropy.apply(hidden, weight, labels, token_weight, teacher, soft, *walk)
    return (loss, token_loss) if return_token_loss else loss


def _choose(backend: str, request: LossRequest) -> str:
    """The backend's name. Compiled code breaks here: the choice depends on the GPU at hand, not on a trace."""
    choose = _choose_uncompiled if torch.compiler.is_compiling() else backend_for
    return choose(request, backend, linear_cross_entropy)


# separate from `_choose`, since the decorator imports the compiler (seconds) at its first call
@torch._disable_dynamo
def _choose_uncompiled(request: LossRequest, backend: str, function: Callable) -> str:
    return backend_for(request, backend, function)


def _check(
    hidden: Tensor, weight: Tensor, labels: Tensor, token_weight: Tensor | None, targets: Tensor | None, validate: bool
) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden must be (N, E) and weight (V, E); got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    _check_device(hidden, weight=weight, labels=labels, token_weight=token_weight, targets=targets)
    num = hidden.shape[0]
    if labels.shape != (num,) or labels.dtype != torch.int64:
        raise ValueError(f"labels must be (N,) = ({num},) int64; got {tuple(labels.shape)} of {labels.dtype}")
    if token_weight is not None and token_weight.shape != (num,):
        raise ValueError(f"token_weight must be (N,) = ({num},); got {tuple(token_weight.shape)}")
    if targets is not None and (targets.dim() != 1 or targets.dtype != torch.int64 or targets.numel() > num):
        raise ValueError(
            f"targets must be (n,) int64 positions among the {num} tokens; got {tuple(targets.shape)} of "
            f"{targets.dtype}"
        )
    if validate:
        wrong = ((labels < 0) & (labels != IGNORED)) | (labels >= weight.shape[0])
        raise_where(wrong, f"must lie in [0, {weight.shape[0]}) or be {IGNORED} for no target", labels=labels)


def _check_device(hidden: Tensor, **others: Tensor | None) -> None:
    for name, x in others.items():
        if x is not None and x.device != hidden.device:
            raise ValueError(f"all tensors must be on one device; hidden is on {hidden.device}, {name} on {x.device}")


def _kind_of_soft_labels(
    teacher_hidden: Tensor | None, teacher_weight: Tensor | None, soft_ids: Tensor | None,
    soft_probabilities: Tensor | None,
) -> str:  # fmt: skip
    """ "sparse" or "dense"; exactly one form must have been given, and whole."""
    dense = [x is not None for x in (teacher_hidden, teacher_weight)]
    sparse = [x is not None for x in (soft_ids, soft_probabilities)]
    if any(dense) and any(sparse):
        raise ValueError(
            "give dense soft labels (teacher_hidden, teacher_weight) or sparse ones (soft_ids, ...), not both"
        )
    if not (all(dense) or all(sparse)):
        raise ValueError(
            "distill_weight > 0 needs both teacher_hidden (N, Et) and teacher_weight (V, Et), or both soft_ids (N, k) "
            "and soft_probabilities (N, k)"
        )
    return "sparse" if all(sparse) else "dense"


def _check_teacher(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor) -> None:
    _check_device(hidden, teacher_hidden=teacher_hidden, teacher_weight=teacher_weight)
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
