"""Unbiased sparse soft labels for a cache: ids sampled from the teacher's distribution, with their counts.

Random sampling (Anshumann et al. 2025, "Sparse Logit Sampling", 2503.16870) samples ids with replacement and keeps
count / samples: the expected cross-entropy and its gradient are the dense ones, since both are linear in the teacher's
probabilities. A sample is the inverse of the cumulated distribution, in fp64 and in whole numbers of 2^-60, which lose
nothing over a large vocabulary and have a deterministic sum on CUDA; labels do not depend on the size of chunks.

Legend: N tokens, C in a chunk, Et width of the teacher, V vocabulary, k samples per token.
"""

import torch
from torch import Tensor

from brine.kernels.linear_loss.autograd_function import default_chunk
from brine.kernels.linear_loss.soft_labels import merge_duplicates

UNITS = 2.0**60  # of probability 1; the sum over any vocabulary is far below 2^63


@torch.no_grad()
def sample_soft_labels(
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    num_samples: int,
    temperature: float = 1.0,
    *,
    generator: torch.Generator | None = None,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample `num_samples` ids per token from softmax(teacher logits / temperature), with replacement.

    teacher_hidden: (N, Et); teacher_weight: (V, Et); generator on their device. -> `soft_ids` (N, k) int64, distinct,
    descending, -1 unused, and `soft_probabilities` (N, k) float32, count / num_samples, 0 unused, as
    `linear_cross_entropy` takes them at the same temperature. Raises ValueError for shapes or numbers that do not fit.
    """
    if teacher_hidden.dim() != 2 or teacher_weight.dim() != 2 or teacher_hidden.shape[1] != teacher_weight.shape[1]:
        raise ValueError(
            f"teacher_hidden must be (N, Et) and teacher_weight (V, Et); got {tuple(teacher_hidden.shape)} and "
            f"{tuple(teacher_weight.shape)}"
        )
    if num_samples < 1 or temperature <= 0.0:
        raise ValueError(f"give num_samples >= 1 and a temperature above 0; got {num_samples} and {temperature}")
    num, vocab_size = teacher_hidden.shape[0], teacher_weight.shape[0]
    if chunk_tokens is None:
        # a chunk is held twice, in fp64 and in whole numbers
        chunk_tokens = max(1, default_chunk(vocab_size, teacher_hidden.device.type, torch.float64) // 2)
    elif chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, or None for the default; got {chunk_tokens}")

    shape = (num, num_samples)
    at = torch.rand(shape, dtype=torch.float64, device=teacher_hidden.device, generator=generator)
    ids = torch.empty(shape, dtype=torch.int64, device=teacher_hidden.device)
    for first in range(0, num, chunk_tokens):
        chunk = slice(first, first + chunk_tokens)
        logits = (teacher_hidden[chunk] @ teacher_weight.T).double().div_(temperature)
        cumulated = torch.softmax(logits, -1, out=logits).mul_(UNITS).long().cumsum_(-1)
        # below the sum of all, which rounding may reach
        total = cumulated[:, -1:]
        drawn = torch.minimum((at[chunk] * total).long(), total - 1)
        # right: an id of probability 0 is never met; only what is not a number reaches beyond the end
        ids[chunk] = torch.searchsorted(cumulated, drawn, right=True).clamp_(max=vocab_size - 1)
    ids, counts = merge_duplicates(ids, torch.ones(shape, device=ids.device))
    return ids, counts / num_samples
