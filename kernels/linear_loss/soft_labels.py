"""Sparse soft labels: for each token a few vocabulary ids with the teacher's probabilities, as they come from a cache.

The probabilities are of the teacher's distribution softened by the temperature. What a token's sum lacks to 1 is its
*tail*: the probability of all ids that are not listed, kept as one event ("bucket") or given to the listed ids in
proportion ("renormalise", biased). Within the rounding of its dtype there is no tail, as for sampled labels. The form
after checking: distinct ids of a token, in descending order, -1 in unused entries, fp32 at least.

Legend: N tokens, k entries of a token, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TAILS = ("bucket", "renormalise")
UNUSED = -1  # the id of an unused entry


@dataclass(frozen=True, eq=False)
class SoftLabels:
    """Checked sparse soft labels of N tokens; those of tokens without target are empty."""

    ids: Tensor  # (N, k) int64, distinct for each token; -1 in unused entries
    probabilities: Tensor  # (N, k) float32 or float64, 0 in unused entries
    tail: Tensor  # (N, 1), probability of the ids that are not listed

    def select(self, at: slice | Tensor) -> SoftLabels:
        return SoftLabels(self.ids[at], self.probabilities[at], self.tail[at])


def rounding(probabilities: Tensor) -> float:
    """How far a token's sum may be from 1 by rounding alone: in its dtype, and in fp32 where it was normalised."""
    return torch.finfo(probabilities.dtype).eps + probabilities.shape[1] * torch.finfo(torch.float32).eps


def split_listed(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Set the listed logits (R, V) to -inf in place, so that what is summed is the rest; ids: (R, k), -1 unused.

    -> is_listed (R, k) bool; index (R, k), the id, 0 where unused; listed (R, k), the logits, -inf where unused.
    """
    is_listed, index = ids >= 0, ids.clamp(min=0)
    listed = logits.gather(1, index).masked_fill_(~is_listed, -torch.inf)
    # added, not stored: unused entries point at id 0, which must stay
    logits.scatter_add_(1, index, logits.new_zeros(index.shape).masked_fill_(is_listed, -torch.inf))
    return is_listed, index, listed


def merge_duplicates(ids: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """ids (N, k), values (N, k) -> each id of a token once, in descending order, its values added; then -1 and 0."""
    ids, order = ids.sort(dim=1, descending=True)
    values = values.gather(1, order)
    fresh = torch.ones_like(ids, dtype=torch.bool)
    fresh[:, 1:] = ids[:, 1:] != ids[:, :-1]
    # on the host a look is cheaper than the copies; elsewhere it would need a sync
    if ids.device.type == "cpu" and bool((fresh | (ids == UNUSED)).all()):
        return ids, values
    index = fresh.cumsum(1) - 1
    return torch.full_like(ids, UNUSED).scatter_(1, index, ids), torch.zeros_like(values).scatter_add_(1, index, values)


def prepare_soft_labels(
    ids: Tensor, probabilities: Tensor, labels: Tensor, *, vocab_size: int, tail: str, dtype: torch.dtype,
    validate: bool = True,
) -> SoftLabels:  # fmt: skip
    """The soft labels of `linear_cross_entropy` in the form that backends take, of `dtype`. Raises ValueError.

    ids (N, k) int64 in [0, V), or -1; probabilities (N, k); labels (N,): tokens without target are not looked at.
    validate: look at the values too.
    """
    if tail not in TAILS:
        raise ValueError(f"soft_tail must be one of {', '.join(TAILS)}; got {tail!r}")
    num = labels.shape[0]
    if ids.dim() != 2 or ids.shape[0] != num or ids.shape[1] == 0 or ids.dtype != torch.int64:
        raise ValueError(f"soft_ids must be (N, k) = ({num}, k) int64, k > 0; got {tuple(ids.shape)} of {ids.dtype}")
    if probabilities.shape != ids.shape or not probabilities.is_floating_point():
        raise ValueError(
            f"soft_probabilities must be floating and (N, k) = {tuple(ids.shape)} as soft_ids; got "
            f"{tuple(probabilities.shape)} of {probabilities.dtype}"
        )
    slack = rounding(probabilities)
    target = (labels >= 0)[:, None]
    ids = ids.where(target, UNUSED)
    probability = probabilities.detach().where(target, 0.0).to(dtype)
    # written so that NaN fails
    check = raise_where if validate else _trust
    check((ids < UNUSED) | (ids >= vocab_size), f"must lie in [0, {vocab_size}), or be -1 where unused", soft_ids=ids)
    check(~(probability >= 0.0), "must be at least 0", soft_probabilities=probability)
    check((ids == UNUSED) & (probability != 0.0), "must be 0 where soft_ids is -1", soft_probabilities=probability)
    mass = probability.sum(1, keepdim=True)
    named = {"soft_probabilities.sum(1, keepdim=True)": mass}
    check(~(mass <= 1.0 + slack), "must be at most 1", **named)

    ids, probability = merge_duplicates(ids, probability)
    if tail == "renormalise":
        check((mass == 0.0) & target, 'must be above 0 under soft_tail="renormalise"', **named)
        return SoftLabels(ids, probability / mass.where(mass > 0.0, 1.0), torch.zeros_like(mass))
    rest = (1.0 - mass).where(target, 0.0)
    rest = rest.where(rest > slack, 0.0)
    if ids.shape[1] >= vocab_size:
        full = (ids >= 0).sum(1, keepdim=True) == vocab_size
        check(full & (rest > 0.0), "must be 1 where the whole vocabulary is listed", **named)
    return SoftLabels(ids, probability, rest)


def raise_where(wrong: Tensor, rule: str, **named: Tensor) -> None:
    """Raise ValueError for the first element where `wrong`; on a GPU an assertion ends the process, without a sync."""
    ((name, values),) = named.items()
    if wrong.device.type != "cpu":
        torch._assert_async(~wrong.any(), f"{name} {rule}")
    elif bool(wrong.any()):
        at = wrong.nonzero()[0].tolist()
        raise ValueError(f"{name} {rule}; {name}[{', '.join(map(str, at))}] is {values[tuple(at)].item()}")


def _trust(wrong: Tensor, rule: str, **named: Tensor) -> None:
    """Instead of `raise_where`, for values that are known to be right."""
