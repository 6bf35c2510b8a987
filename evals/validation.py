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

from typing import Any

import numpy as np
import torch

from evals.config import EvalConfig
from evals.loss import byte_lengths, by_context, choose_documents, measure, split_mask


class Validator:
    """Held-out loss of a model that is being trained; call it with the model."""

    def __init__(
        self,
        corpus: Any,
        tokenizer: Any,
        config: EvalConfig,
        *,
        autocast: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ):
        """corpus: an `EncodedCorpus`. autocast: as in `loss.measure`. Where the validation split is empty, the test
        split is used; where that is empty too, calls return {}."""
        split = next((name for name in ("validation", "test") if split_mask(corpus, name).any()), None)
        self.corpus, self.config, self.autocast, self.device = corpus, config, autocast, device
        self.token_bytes = byte_lengths(tokenizer)
        self.documents = (
            choose_documents(corpus, split=split, per_cell=config.validation_per_cell, seed=config.seed)
            if split
            else np.zeros(0, np.int64)
        )

    def __call__(self, model: Any) -> dict[str, Any]:
        """Measure; JSON types only."""
        if not len(self.documents):
            return {}
        # the model has no layer that knows train from eval mode, and switching would recompile its blocks
        losses = measure(
            model,
            self.corpus,
            self.documents,
            token_bytes=self.token_bytes,
            config=self.config,
            autocast=self.autocast,
            device=self.device,
        )
        return {
            "loss": losses.mean(),
            "bits_per_byte": losses.bits_per_byte(),
            **by_context(losses),
            "documents": [round(value, 5) for value in losses.loss.sum(axis=1).tolist()],
            "tokens": losses.tokens.sum(axis=1).tolist(),
        }
