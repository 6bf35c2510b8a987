"""The facade of the fused head and loss: checks what it is given, picks a backend, never falls back silently.

Backends: "reference" (dense, any device, small sizes), "cpu" (chunked, plain PyTorch; at home there, but any device
will do), "triton" (chunked, one kernel between the matmuls), "auto" (logs its choice and the reason once, at level INFO
of the logger `kernels.linear_loss`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.announce import announce
from kernels.linear_loss import cpu
from kernels.linear_loss.reference import reference_linear_cross_entropy
from kernels.linear_loss.soft_labels import prepare
from kernels.linear_loss.walk import LinearCrossEntropy, Step, Terms, default_chunk

BACKENDS = ("auto", "reference", "cpu", "triton")
IGNORED = -100
"""The label of a token without target."""
TESTED_ARCHITECTURES: frozenset[tuple[int, int]] = frozenset()
"""Compute capabilities on which tests/kernels/test_linear_loss_triton.py has passed; "auto" takes the Triton kernel
nowhere else."""


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
        biased. Labels from `kernels.linear_loss.sampling` sum to 1 and are unbiased.
    Matmuls run in hidden's dtype, under autocast in autocast's. chunk_tokens: tokens whose logits are held at a time;
    by default about 2 million logits, but no fewer than 512 tokens (1024 in 16 bits, 2048 on CUDA). backend: see the
    file's head.
    -> loss () float32 (float64 for float64 hidden), differentiable once with respect to hidden and weight; with
    return_token_loss also token_loss (N,): the plain cross-entropy CE_i of each token, unweighted, 0 where there is no
    target, without gradient.
    Raises ValueError for shapes, dtypes, devices, labels or numbers that do not fit, for an unknown backend, and for a
    backend that cannot do what is asked.
    """
    _check(hidden, weight, labels, token_weight)
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
    step = _step(backend, hidden, dtype)

    teacher, soft = None, None
    if distill_weight and _is_sparse(teacher_hidden, teacher_weight, soft_ids, soft_probabilities):
        _check_device(hidden, soft_ids=soft_ids, soft_probabilities=soft_probabilities)
        wide = torch.promote_types(torch.float32, dtype)
        soft = prepare(soft_ids, soft_probabilities, labels, vocabulary=weight.shape[0], tail=soft_tail, dtype=wide)
    elif distill_weight:
        _check_teacher(hidden, weight, teacher_hidden, teacher_weight)
        teacher = (teacher_hidden.detach(), teacher_weight.detach())
    token_weight = None if token_weight is None else token_weight.detach()
    # inside, the dtypes are explicit
    with torch.autocast(device, enabled=False):
        if step is None:
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
            )
        else:
            terms = Terms(float(z_loss), float(distill_weight), float(temperature))
            loss, token_loss = LinearCrossEntropy.apply(
                hidden, weight, labels, token_weight, teacher, soft, terms, step, chunk_tokens, dtype
            )
    return (loss, token_loss) if return_token_loss else loss


def _step(backend: str, hidden: Tensor, dtype: torch.dtype) -> Step | None:
    """What a backend does between the matmuls, None for the reference. dtype: of the logits."""
    if backend == "auto":
        backend, why = _choose(hidden, dtype)
        if not torch.compiler.is_compiling():
            announce("kernels.linear_loss", f"linear_cross_entropy backend auto: {backend}, because {why}")
    if backend == "reference":
        return None
    if backend == "cpu":
        return cpu.chunk_loss
    if backend != "triton":
        raise ValueError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    try:
        # not at the top: triton is absent on some platforms, and slow to import
        from kernels.linear_loss import triton_kernels
    except ImportError as error:
        raise ValueError(f'backend "triton" needs the package triton ({error}); use "auto" or "cpu"') from error
    triton_kernels.check(hidden, dtype)
    return triton_kernels.chunk_loss


def _choose(hidden: Tensor, dtype: torch.dtype) -> tuple[str, str]:
    """The backend that "auto" stands for, and why."""
    device = hidden.device
    if device.type != "cuda":
        return "cpu", f"hidden is on {device.type}; chunked, plain PyTorch"
    capability = torch.cuda.get_device_capability(device)
    if capability not in TESTED_ARCHITECTURES:
        return (
            "cpu",
            f"the Triton kernel's tests have not passed on compute capability {capability} yet; chunked, plain",
        )
    if dtype == torch.float64:
        return "cpu", "the Triton kernel computes in fp32 and hidden is fp64; chunked, plain PyTorch"
    return "triton", f"the Triton kernel's tests have passed on compute capability {capability}"


def _check(hidden: Tensor, weight: Tensor, labels: Tensor, token_weight: Tensor | None) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden must be (N, E) and weight (V, E); got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    _check_device(hidden, weight=weight, labels=labels, token_weight=token_weight)
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
