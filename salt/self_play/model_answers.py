"""What self-play asks of a model: how unsure it is of a question, several sampled answers, the score of the right one,
and a text of its own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch

from brine.data.document import Part, Text, modality_of
from brine.data.encode import assemble_chunks
from brine.data.media.decode import Decoded, decode_part
from brine.data.sequence import EncodedDocument
from brine.data.tokenizer import EOS_ID
from brine.inference.decode import DynamicDecoder
from brine.inference.load import LoadedModel
from brine.inference.prefill import prefill_prompts
from brine.inference.sampling import SamplingConfig
from brine.inference.static.decoder import TOKENS_PER_SYNC, collect_tokens
from brine.model.device import autocast, device_of
from brine.salt.pseudo_label import mean_log_probabilities


class ModelAnswers:
    """A model with the media of one folder. batch_size: prompts of one forward; compute_dtype: of matmuls."""

    def __init__(
        self, loaded: LoadedModel, root: Path, *, temperature: float, batch_size: int = 32,
        compute_dtype: torch.dtype | None = None,
    ):  # fmt: skip
        self.loaded, self.root, self.compute_dtype = loaded, Path(root).resolve(), compute_dtype
        self.temperature, self.batch_size = temperature, batch_size
        self.vocab_size = loaded.tokenizer.vocab_size
        # an answer is over at a line end
        self.stop = [n for n in range(self.vocab_size) if loaded.tokenizer.token_bytes(n).startswith(b"\n")]
        self._decoded: dict[str, Decoded] = {}

    def encode(self, parts: Sequence[Part]) -> EncodedDocument:
        """A prompt as a training document is encoded, without the end token."""
        chunks: list[list[int] | tuple[str, Decoded]] = []
        for part in parts:
            if isinstance(part, Text):
                chunks.append(self.loaded.tokenizer.encode(part.text))
                continue
            if part.path not in self._decoded:
                self._decoded[part.path] = decode_part(part, self.root, self.loaded.encode_config)
            chunks.append((modality_of(part), self._decoded[part.path]))
        return assemble_chunks(chunks, self.loaded.encode_config)

    def forget(self) -> None:
        """Drop decoded media."""
        self._decoded.clear()

    @torch.no_grad()
    def entropy(self, prompts: Sequence[EncodedDocument]) -> np.ndarray:
        """(n,) float64: entropy in nats of the first token after each prompt."""
        found = np.zeros(len(prompts))
        order = sorted(range(len(prompts)), key=lambda number: (len(prompts[number]), number))
        for first in range(0, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size]
            decoder = self._prefill([prompts[number] for number in chosen], 1)
            with self._autocast():
                share = decoder.step().double().softmax(-1)
            found[chosen] = torch.special.entr(share).sum(-1).cpu().numpy()
        return found

    def sample(
        self, prompts: Sequence[EncodedDocument], *, num_answers: int, max_tokens: int, seed: int
    ) -> list[list[str]]:
        """Answers to each prompt up to a line end, `num_answers` each, sampled at the temperature."""
        answers: list[list[str]] = [[] for _ in prompts]
        tokenizer = self.loaded.tokenizer
        rows = [number for number in range(len(prompts)) for _ in range(num_answers)]
        for batch, first in enumerate(range(0, len(rows), self.batch_size)):
            chosen = rows[first : first + self.batch_size]
            decoder = self._prefill([prompts[number] for number in chosen], max_tokens)
            sampling = SamplingConfig(self.temperature, seed=seed + batch)
            groups = decoder.groups(max_tokens, sampling=sampling, stop=self.stop, every=TOKENS_PER_SYNC)
            with self._autocast():
                found = collect_tokens(groups, len(chosen), stop=self.stop)
            for number, ids in zip(chosen, found, strict=True):
                answers[number].append(tokenizer.decode(ids))
        return answers

    def target_ids(self, target: str) -> list[int]:
        """Token ids of a target as it is learned: up to its line end, or with the end token."""
        ids = self.loaded.tokenizer.encode(target)
        return ids if target.endswith("\n") else [*ids, EOS_ID]

    def confidence(self, prompts: Sequence[EncodedDocument], targets: Sequence[str]) -> np.ndarray:
        """(n,) float64: mean log-probability of each target's tokens, nats, at most 0."""
        ids = [self.target_ids(target) for target in targets]
        with self._autocast():
            scores, _flops = mean_log_probabilities(self.loaded, list(prompts), ids, batch_size=self.batch_size)
        return np.minimum(scores, 0.0)

    def write(self, leads: Sequence[str], *, max_tokens: int, seed: int) -> list[str]:
        """The model's own continuation of each text up to the line end."""
        prompts = [self.encode((Text(lead, loss_mask=False),)) for lead in leads]
        return [answer for (answer,) in self.sample(prompts, num_answers=1, max_tokens=max_tokens, seed=seed)]

    def _autocast(self) -> AbstractContextManager:
        # media are decoded outside, in float32
        return autocast(device_of(self.loaded.model), self.compute_dtype)

    def _prefill(self, prompts: list[EncodedDocument], max_tokens: int) -> DynamicDecoder:
        with self._autocast():
            prefilled = prefill_prompts(self.loaded.model, prompts, max_tokens=max_tokens)
        return DynamicDecoder(self.loaded.model, prefilled, vocab_size=self.vocab_size)
