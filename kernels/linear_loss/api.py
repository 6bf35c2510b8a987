"""The API of the fused head and loss: checks what it is given, picks a backend, never falls back silently.

Backends: "reference" (dense, any device, small sizes), "chunked" (plain PyTorch on any device; the one of a CPU),
"triton" (chunked too, one kernel between the matmuls), "liger" (the package's fused loss, for what it can express),
"auto" (what has proved itself for the call, see `select_backend.py`; says once what and why, at level INFO of the
logger `brine.kernels.linear_loss`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from brine.kernels.linear_loss.autograd_function import LinearCrossEntropy, LossRequest, LossTerms, default_chunk
from brine.kernels.linear_loss.liger import liger_linear_cross_entropy
from brine.kernels.linear_loss.reference import reference_linear_cross_entropy
from brine.kernels.linear_loss.select_backend import BACKENDS, backend_for, chunk_loss_of
from brine.kernels.linear_loss.soft_labels import prepare_soft_labels, raise_where

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
      sparse: soft_ids (N, k) int64, -1 in unused places, and soft_probabilities (N, k), of a teacher softened by T
        already. Repeated ids add up. A row that sums to 1 - r, r > 0, is one of truncated labels: soft_tail="bucket"
        makes the words that it does not list one event of probability r; "renormalise" divides by 1 - r, which is
        biased. Labels from `brine.kernels.linear_loss.sampling` sum to 1 and are unbiased.
    Matmuls run in hidden's dtype, under autocast in autocast's. chunk_tokens: tokens whose logits are held at a time;
    by default about 2 million logits, but no fewer than 512 tokens (1024 in 16 bits, 2048 on CUDA). backend: see the
    file's head.
    targets: (n,) int64 on labels' device, the tokens that have a target, ascending, where the caller knows them: others
    are then left out without looking, and a device need not be waited for to count them. validate: whether to look at
    the values of labels and soft labels; a card is not waited for, but ends the process by an assertion of its own.
    With targets, and on devices other than CUDA with validate=False, "chunked" and "triton" wait for no device.
    -> loss () float32 (float64 for float64 hidden), differentiable once with respect to hidden and weight; with
    return_token_loss also token_loss (N,): the plain cross-entropy CE_i of each token, unweighted, 0 where there is no
    target, without gradient.
    Raises ValueError for shapes, dtypes, devices, labels or numbers that do not fit, for an unknown backend, and for a
    backend that cannot do what is asked.
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

    kind = "z" if z_loss else "plain"
    if distill_weight:
        sparse = _is_sparse(teacher_hidden, teacher_weight, soft_ids, soft_probabilities)
        kind = "sparse" if sparse else "dense"
    chosen = _choose(backend, hidden.device, dtype, kind, token_weight is not None, return_token_loss)

    teacher, soft = None, None
    if kind == "sparse":
        _check_device(hidden, soft_ids=soft_ids, soft_probabilities=soft_probabilities)
        options = {"vocab_size": weight.shape[0], "tail": soft_tail, "dtype": torch.promote_types(torch.float32, dtype)}
        soft = prepare_soft_labels(soft_ids, soft_probabilities, labels, validate=validate, **options)
    elif kind == "dense":
        _check_teacher(hidden, weight, teacher_hidden, teacher_weight)
        teacher = (teacher_hidden.detach(), teacher_weight.detach())
    token_weight = None if token_weight is None else token_weight.detach()
    # inside, the dtypes are explicit
    with torch.autocast(device, enabled=False):
        if chosen == "reference":
            loss, token_loss = reference_linear_cross_entropy(
                hidden,
                weight,
                labels,
                token_weight=token_weight,
                z_loss=z_loss,
                teacher_hidden=None if teacher is None else teacher[0],
                teacher_weight=None if teacher is None else teacher[1],
                soft_ids=None if soft is None else soft_ids,
                soft_probabilities=None if soft is None else soft_probabilities.detach(),
                soft_tail=soft_tail,
                distill_weight=distill_weight,
                temperature=temperature,
                targets=targets,
            )
        elif chosen == "liger":
            loss, token_loss = liger_linear_cross_entropy(
                hidden,
                weight,
                labels,
                token_weight=token_weight,
                z_loss=z_loss,
                targets=targets,
                token_loss=return_token_loss,
                dtype=dtype,
            )
        else:
            terms = LossTerms(float(z_loss), float(distill_weight), float(temperature))
            loss, token_loss = LinearCrossEntropy.apply(
                hidden,
                weight,
                labels,
                token_weight,
                teacher,
                soft,
                terms,
                chunk_loss_of(chosen),
                chunk_tokens,
                dtype,
                targets,
            )
    return (loss, token_loss) if return_token_loss else loss


def _choose(backend: str, *request) -> str:
    """The backend's name. Compiled code breaks here: what it is depends on the card at hand, not on a trace."""
    return (
        _choose_uncompiled(backend, *request)
        if torch.compiler.is_compiling()
        else backend_for(LossRequest(*request), backend, linear_cross_entropy)
    )


# apart from `_choose`, since the decorator imports the compiler (seconds) at its first call
@torch._disable_dynamo
def _choose_uncompiled(backend: str, *request) -> str:
    return backend_for(LossRequest(*request), backend, linear_cross_entropy)


def _check(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    token_weight: Tensor | None,
    targets: Tensor | None,
    validate: bool,
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
            f"targets must be (n,) int64 places among the {num} tokens; got {tuple(targets.shape)} of {targets.dtype}"
        )
    if validate:
        wrong = ((labels < 0) & (labels != IGNORED)) | (labels >= weight.shape[0])
        raise_where(wrong, f"must lie in [0, {weight.shape[0]}) or be {IGNORED} for no target", labels=labels)


def _check_device(hidden: Tensor, **others: Tensor | None) -> None:
    for name, x in others.items():
        if x is not None and x.device != hidden.device:
            raise ValueError(f"all tensors must be on one device; hidden is on {hidden.device}, {name} on {x.device}")


def _is_sparse(
    teacher_hidden: Tensor | None,
    teacher_weight: Tensor | None,
    soft_ids: Tensor | None,
    soft_probabilities: Tensor | None,
) -> bool:
    """Whether the soft labels are sparse; exactly one form must have been given, and whole."""
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
    return all(sparse)


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
