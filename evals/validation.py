"""The small measurement that is repeated during training, and what it leaves in the record.

A `Validator` chooses its documents once and measures them whenever it is called. What it returns goes into a line of
`metrics.jsonl` under `validation`: means for people to look at, and the summed loss of every document, so that two
runs can later be compared at any cost with an interval over documents, without a checkpoint for every point.

    {"loss", "bits_per_byte", "image", "audio", "video", "none",      means, nats per target token by context
     "documents": [...], "tokens": [...]}                             sums per document, in a fixed order

The documents come from the validation split (`validation_per_cell` of each kind and level); the final numbers come
from the test split, so nothing that steers training is also what training is judged by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from evals.config import EvalConfig
from evals.loss import by_context, byte_lengths, choose_documents, measure, split_mask


class _StopAskedFor(Exception):
    """Carries a stop out of the measurement."""


class Validator:
    """Held-out loss of a model that is being trained: the `validate` of the training loop."""

    def __init__(
        self,
        corpus: Any,
        tokenizer: Any,
        config: EvalConfig,
        *,
        compute_dtype: torch.dtype | None = None,
    ):
        """corpus: an `EncodedCorpus`. compute_dtype: as in `loss.measure`. Where the validation split is empty, the
        test split is used; where that is empty too, calls return {}."""
        split = next((name for name in ("validation", "test") if split_mask(corpus, name).any()), None)
        self.corpus, self.config, self.compute_dtype = corpus, config, compute_dtype
        self.token_bytes = byte_lengths(tokenizer)
        self.documents = (
            choose_documents(corpus, split=split, per_cell=config.validation_per_cell, seed=config.seed)
            if split
            else np.zeros(0, np.int64)
        )

    def __call__(
        self, model: Any, step: int = 0, should_stop: Callable[[], bool] | None = None
    ) -> dict[str, Any] | None:
        """Measure; JSON types only. should_stop is asked after each batch: when it says yes, None comes back."""
        if not len(self.documents):
            return {}

        def look_up(_: int) -> None:
            if should_stop is not None and should_stop():
                raise _StopAskedFor

        try:
            losses = measure(
                model,
                self.corpus,
                self.documents,
                token_bytes=self.token_bytes,
                config=self.config,
                compute_dtype=self.compute_dtype,
                progress=look_up,
            )
        except _StopAskedFor:
            return None
        return {
            "loss": losses.mean(),
            "bits_per_byte": losses.bits_per_byte(),
            **by_context(losses),
            "documents": [round(value, 5) for value in losses.loss.sum(axis=1).tolist()],
            "tokens": losses.tokens.sum(axis=1).tolist(),
        }
