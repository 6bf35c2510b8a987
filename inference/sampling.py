"""Choosing the next token from logits: greedy, or drawn by temperature, top-k and top-p, from numbers given outside.

A draw needs one uniform number, and that comes from a counter, not from a device's generator: number t of row r under
a seed is that of a Philox stream keyed by (seed, r) (Salmon et al., 2011), made on the host. So a CPU and a card draw
from the same numbers, a row draws the same whatever its batch, and a CUDA graph that is replayed reads its next number
from a buffer, with no generator to be registered.

The token is where the cumulative mass passes the number. Masses are made whole numbers first, in units of 2^-52, and
summed as int64: a sum of integers does not depend on its order, so the sums of a parallel scan are exact and equal on
every machine for equal masses. A cumulative sum of floats depends on it, and has no deterministic kernel on CUDA
(`torch.use_deterministic_algorithms` refuses it). Masses themselves are a softmax in fp32, whose last bit may differ
between machines, so a number that falls on the edge between two tokens may take the other one elsewhere.

Temperature 0 takes the likeliest token. Otherwise p = softmax(logits / temperature), cut to the `top_k` likeliest
tokens and then to the fewest of those that hold `top_p` of their mass (nucleus sampling, 1904.09751, section 3.1); the
likeliest always stays. Nothing here reads anything back to the host, and shapes depend on shapes alone.

B batch, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

UNIT = 2.0**52
"""Whole numbers that a mass of 1 is divided into: as fine as a float64, and far from the end of int64."""


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are chosen. Raises ValueError, with the remedy, for settings that cannot be sampled with."""

    temperature: float = 0.0
    """0 takes the likeliest token, 1 draws as the model believes."""
    top_k: int = 0
    """Draw among so many of the likeliest tokens; 0 is no limit."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together hold this share; 1 is no limit."""
    seed: int = 0
    """Equal seeds draw equal numbers."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature = {self.temperature}: give 0 (greedy) or a positive number, for instance 0.8"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k = {self.top_k}: give a number of tokens, or 0 for no limit")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p}: give a share above 0 and at most 1 (1 keeps every token)")

    @property
    def do_sample(self) -> bool:
        """Whether chance has a say."""
        return self.temperature > 0


GREEDY = SamplingConfig()
"""The likeliest token, always."""


def uniform_samples(seed: int, num_rows: int, count: int) -> Tensor:
    """(num_rows, count) float64 in [0, 1) on the host: what row r draws its token t by. More are a continuation."""
    streams = (np.random.Philox(key=np.array([seed % 2**64, row], np.uint64)) for row in range(num_rows))
    return torch.from_numpy(np.stack([np.random.Generator(stream).random(count) for stream in streams]))


def sample_token(logits: Tensor, uniform: Tensor | None, sampling: SamplingConfig) -> Tensor:
    """Choose one token per row.

    logits: (B, V) float32, -inf for what must not be chosen. uniform: (B,) float64 in [0, 1), None where `sampling`
    does not draw. Returns (B,) int64.
    """
    if not sampling.do_sample:
        return logits.argmax(-1)
    # the largest becomes 0 first, so that no temperature is too small
    share = ((logits - logits.amax(-1, keepdim=True)) / sampling.temperature).softmax(-1)
    mass, ids = (share.double() * UNIT).long(), None
    if sampling.top_k or sampling.top_p < 1:
        mass, ids = mass.sort(dim=-1, descending=True, stable=True)
        if sampling.top_k:
            mass, ids = mass[:, : sampling.top_k], ids[:, : sampling.top_k]
    upto = mass.cumsum(-1)
    total = upto[:, -1:]
    if sampling.top_p < 1:
        # a token stays if the ones before it do not yet reach top_p; those that stay come first
        stays = (upto - mass).double() < sampling.top_p * total.double()
        total = (mass * stays).sum(-1, keepdim=True)
    # the product may round up to the whole
    target = (uniform[:, None] * total.double()).long().clamp(max=total - 1)
    place = (upto <= target).sum(-1, keepdim=True)
    return (place if ids is None else ids.gather(-1, place)).squeeze(-1)
