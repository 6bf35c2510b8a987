"""Many questions to one long context, which is read once.

The context goes through the model once, its cache is copied for every question, and the copies are decoded greedily
together. Each answer is the one that the model would give to context and question alone, up to rounding. Of the
context only keys and values are needed, so the last layer computes nothing else. `log_likelihood` scores given answers
the same way.
"""

from collections.abc import Sequence

import torch

from brine.data.sequence import EncodedDocument
from brine.inference.decode import DynamicDecoder, greedy_decode
from brine.inference.prefill import ChunkedPrefill, PrefillResult
from brine.inference.prompt import batch_prompts
from brine.model.transformer import Transformer


class PrefixDecoder:
    """A model with one context in its cache."""

    def __init__(self, model: Transformer, haystack: EncodedDocument, *, vocab_size: int | None = None):
        """vocab_size: ids from here on are never generated, for a model with more than its tokenizer."""
        self.model, self.vocab_size = model, vocab_size
        prefill = ChunkedPrefill(model, haystack, cache_only=True)
        while prefill.prefill_chunk():
            pass
        self.cache = prefill.cache

    def generate_greedy(
        self, questions: Sequence[EncodedDocument], *, max_tokens: int, stop: Sequence[int] = ()
    ) -> list[list[int]]:
        """Greedy ids after each question, up to the end token, one of `stop` (excluded), or `max_tokens`.

        questions: with positions that follow the context. Raises ValueError for one without tokens.
        """
        found: list[list[int]] = [[] for _ in questions]
        for chosen in _group_by_length(questions):
            decoder = self._prefill_questions([questions[number] for number in chosen])
            for number, answer in zip(chosen, greedy_decode(decoder, max_tokens, stop=stop), strict=True):
                found[number] = answer
        return found

    @torch.no_grad()
    def log_likelihood(self, questions: Sequence[EncodedDocument], answers: Sequence[list[int]]) -> list[float]:
        """Log-probability in nats of each answer's tokens after its question."""
        found = []
        for question, answer in zip(questions, answers, strict=True):
            decoder = self._prefill_questions([question])
            hidden = [decoder.hidden]
            for token in answer[:-1]:
                decoder.step(torch.tensor([token], device=decoder.hidden.device))
                hidden.append(decoder.hidden)
            scores = torch.nn.functional.linear(torch.cat(hidden), self.model.head_weight).float().log_softmax(-1)
            found.append(float(scores[torch.arange(len(answer)), torch.tensor(answer)].sum()))
        return found

    @torch.no_grad()
    def _prefill_questions(self, questions: Sequence[EncodedDocument]) -> DynamicDecoder:
        """Prefill questions of one length after the context, each in a copy of its cache."""
        cache = self.cache.batch_repeat_interleave(len(questions))
        inputs = batch_prompts(questions, device=self.cache.block.device)
        hidden = self.model(inputs, cache=cache)[:, -1]
        prefilled = PrefillResult(cache, hidden, inputs.position[:, -1].amax(-1))
        return DynamicDecoder(self.model, prefilled, vocab_size=self.vocab_size)


def _group_by_length(questions: Sequence[EncodedDocument]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for number, question in enumerate(questions):
        if not len(question):
            raise ValueError(f"question {number} has no token: there is nothing to answer")
        groups.setdefault(len(question), []).append(number)
    return list(groups.values())
