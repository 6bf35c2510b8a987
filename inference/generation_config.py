"""How a prompt is answered: every setting of an answer, with its default, in one place.

`LoadedModel.generate` and `chat`, `brine.inference.decode.stream_tokens` and the command line take these by name and
repeat no default. What is about the caller and not about the answer (a progress bar, who is told of each token) is
theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

from brine.inference.prefill import PREFILL_TOKENS
from brine.inference.sampling import SamplingConfig


@dataclass(frozen=True)
class GenerationConfig(SamplingConfig):
    """Settings of an answer: how its tokens are chosen, and these. Raises ValueError, with the remedy, for what cannot
    be."""

    max_tokens: int = 256
    """Longest answer, in tokens; it stops at the end token before that."""
    prefill_tokens: int = PREFILL_TOKENS
    """The prompt is read in pieces of at most so many tokens; fewer take less memory (`brine.inference.prefill`)."""
    compute_dtype: torch.dtype | None = None
    """Of matrix products; None is the weights' own."""
    compile_blocks: bool = False
    """Fuse the blocks first (`brine.inference.static_decoder.StaticDecoder`); without effect on a CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, example in (("max_tokens", ""), ("prefill_tokens", f", for instance {PREFILL_TOKENS}")):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: give at least 1{example}")

    @classmethod
    def of(cls, **options: Any) -> GenerationConfig:
        """From the options of a call. Raises TypeError naming one that does not exist, as any function would."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(options) - set(known)):
            raise TypeError(f"no option {unknown[0]!r} of an answer: there are {', '.join(known)}")
        return cls(**options)
