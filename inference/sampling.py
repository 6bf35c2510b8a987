"""Settings of an answer, and the choice of the next token: greedy, or sampled by temperature, top-k and top-p.

Number t of row r under a seed is that of a Philox stream keyed by (seed, r) (Salmon et al., 2011), made on the host, so
a CPU and a GPU sample from the same numbers, whatever the batch. The token is where the cumulative mass passes the
number. Masses are int64 in units of 2^-52, whose sums do not depend on their order: a parallel scan is exact, and float
cumulative sums have no deterministic kernel on CUDA. Nothing here reads back to the host. Nucleus sampling: 1904.09751,
section 3.1; the likeliest token always stays. B batch, V vocabulary.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brine.inference.prefill import PREFILL_TOKENS

UNIT = 2.0**52
"""Whole numbers that a mass of 1 is divided into: as fine as a float64, and far from the end of int64."""


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are chosen. Raises ValueError for settings that cannot be sampled with."""

    temperature: float = 0.0
    """0 takes the likeliest token, 1 samples from the model's distribution."""
    top_k: int = 0
    """Sample from this many of the likeliest tokens; 0: no limit."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together have this probability; 1: no limit."""
    seed: int = 0
    """Equal seeds give equal answers."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature = {self.temperature}: give 0 (greedy) or a positive number such as 0.8")
        if self.top_k < 0:
            raise ValueError(f"top_k = {self.top_k}: give a number of tokens, or 0 for no limit")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p}: give a probability above 0 and at most 1 (no limit)")

    @property
    def do_sample(self) -> bool:
        """Whether tokens are sampled."""
        return self.temperature > 0


GREEDY = SamplingConfig()


@dataclass(frozen=True)
class GenerationConfig(SamplingConfig):
    """Every setting of an answer, with its default, in one place: `generate`, `chat`, `stream_tokens` and the command
    line take these by name. Raises ValueError for settings that cannot work."""

    max_tokens: int = 256
    """Longest answer, in tokens; it stops at the end token before that."""
    prefill_tokens: int = PREFILL_TOKENS
    """The prompt is read in chunks of at most this many tokens; fewer take less memory."""
    compute_dtype: torch.dtype | None = None
    """Of matmuls; None is the weights' dtype."""
    compile: bool = False
    """Compile the blocks first, which pays for long answers; no effect on a CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_tokens", "prefill_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: give at least 1")

    @classmethod
    def of(cls, **options: Any) -> "GenerationConfig":
        """From the options of a call. Raises TypeError naming one that does not exist, as any function would."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(options) - set(known)):
            raise TypeError(f"no option {unknown[0]!r} of an answer: there are {', '.join(known)}")
        return cls(**options)


def uniform_samples(seed: int, num_rows: int, count: int) -> Tensor:
    """(num_rows, count) float64 in [0, 1) on the host: number t of row r samples its token t."""
    streams = (np.random.Philox(key=np.array([seed % 2**64, row], np.uint64)) for row in range(num_rows))
    return torch.from_numpy(np.stack([np.random.Generator(stream).random(count) for stream in streams]))


def sample_token(logits: Tensor, uniform: Tensor | None, sampling: SamplingConfig) -> Tensor:
    """The next token of each row, (B,) int64.

    logits: (B, V) float32, -inf for ids never chosen. uniform: (B,) float64 in [0, 1), None where nothing is
    sampled.
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
    index = (upto <= target).sum(-1, keepdim=True)
    return (index if ids is None else ids.gather(-1, index)).squeeze(-1)
