"""The small evaluation that is repeated during training, on a fixed choice of documents of the validation split.

Its result goes under `validation` into a line of `metrics.jsonl`: human-readable means, and the summed loss of every
document, so that two runs can be compared at any cost with an interval over documents. Final numbers come from the
test split.

    {"loss", "bits_per_byte", "image", "audio", "video", "none",      means, nats per target token by context
     "documents": [...], "tokens": [...]}                             sums per document, in a fixed order
"""

from collections.abc import Callable
from typing import Any

import torch

from brine.evals.config import EvalConfig
from brine.evals.loss import choose_documents, loss_by_modality_context, measure_losses, split_mask, token_byte_lengths


class _StopRequested(Exception):
    """Carries a stop out of the measurement."""


class Validator:
    """Held-out loss of a model that is being trained: the `validate` of the training loop."""

    def __init__(self, corpus: Any, tokenizer: Any, config: EvalConfig, *, compute_dtype: torch.dtype | None = None):
        """corpus: an `EncodedCorpus`; where its validation split is empty, the test split is used, and where that is
        empty too, calls return {}. compute_dtype: as in `loss.measure_losses`."""
        split = next((name for name in ("validation", "test") if split_mask(corpus, name).any()), "test")
        self.corpus, self.config, self.compute_dtype = corpus, config, compute_dtype
        self.token_bytes = token_byte_lengths(tokenizer)
        self.documents = choose_documents(corpus, split=split, per_cell=config.validation_per_cell, seed=config.seed)

    def __call__(
        self, model: Any, step: int = 0, should_stop: Callable[[], bool] | None = None
    ) -> dict[str, Any] | None:
        """Measure; JSON types only. None where should_stop, called after each batch, says yes."""
        if not len(self.documents):
            return {}

        def check_stop(_: int) -> None:
            if should_stop is not None and should_stop():
                raise _StopRequested

        try:
            losses = measure_losses(
                model, self.corpus, self.documents, token_bytes=self.token_bytes, config=self.config,
                compute_dtype=self.compute_dtype, progress=check_stop,
            )  # fmt: skip
        except _StopRequested:
            return None
        return {
            "loss": losses.mean(),
            "bits_per_byte": losses.bits_per_byte(),
            **loss_by_modality_context(losses),
            "documents": [round(value, 5) for value in losses.loss.sum(axis=1).tolist()],
            "tokens": losses.tokens.sum(axis=1).tolist(),
        }
