"""Many questions to one long context: read once, then answered side by side.

A context of 32,768 tokens costs seconds to read and its questions are ten tokens each. So the context goes through the
model once, its cache is copied for every question (keys and values of global layers; local layers keep a window), and
the copies answer greedily together. Each answer is the one that the model would give to context and question alone,
up to rounding: reading in two forwards sums in another order (a test compares the two).

Of a context only keys and values are needed, so the last layer, a global one in most models, computes nothing else: at
32,768 tokens that saves 44 % of a four-layer model's time.

`log_likelihood` scores given answers the same way, for models that rarely say a whole answer.

n questions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch
from torch import Tensor

from data.sequence import Sequence
from data.tokenizer import END_ID, SPECIALS
from model.cache import KeyValueCache
from model.prompt import batch_prompts
from model.rotary import rotate
from model.transformer import Media, Transformer


class Reader:
    """One context in the cache."""

    @torch.no_grad()
    def __init__(self, model: Transformer, context: Sequence, *, vocab_size: int | None = None):
        """vocab_size: ids from here on are never chosen, for a model that is wider than its tokenizer."""
        self.model = model
        self.cache = KeyValueCache(model.config)
        _fill(model, self.cache, **batch_prompts([context], device=model.head_weight.device))
        ids = torch.arange(model.config.vocab_size, device=model.head_weight.device)
        self.banned = (ids < len(SPECIALS)) & (ids != END_ID) | (ids >= (vocab_size or model.config.vocab_size))

    def answers(self, questions: Items[Sequence], *, max_tokens: int, stop: Items[int] = ()) -> list[list[int]]:
        """Greedy ids after each question, up to the end token, one of `stop` (left out), or `max_tokens`.

        questions: placed to follow the context. Raises ValueError for one without tokens.
        """
        found: list[list[int]] = [[] for _ in questions]
        for chosen in _alike(questions):
            cache = self.cache.repeated(len(chosen))
            logits = self._read(cache, [questions[number] for number in chosen])[:, -1]
            place = torch.tensor([float(questions[number].position[-1].max()) for number in chosen])
            going = torch.ones(len(chosen), dtype=torch.bool)
            for _ in range(max_tokens):
                token = logits.masked_fill(self.banned, -torch.inf).argmax(-1).cpu()
                going &= ~torch.isin(token, torch.tensor([END_ID, *stop]))
                if not going.any():
                    break
                for row in going.nonzero().flatten().tolist():
                    found[chosen[row]].append(int(token[row]))
                place += 1
                logits = self._step(cache, token, place)
        return found

    def log_likelihood(self, questions: Items[Sequence], answers: Items[list[int]]) -> list[float]:
        """Log-probability in nats of each answer's tokens after its question."""
        found = []
        for question, answer in zip(questions, answers, strict=True):
            cache = self.cache.repeated(1)
            logits = [self._read(cache, [question])[:, -1]]
            place = torch.tensor([float(question.position[-1].max())])
            for token in answer[:-1]:
                place += 1
                logits.append(self._step(cache, torch.tensor([token]), place))
            scores = torch.stack(logits, dim=1)[0].log_softmax(-1)
            found.append(float(scores[torch.arange(len(answer)), torch.tensor(answer)].sum()))
        return found

    @torch.no_grad()
    def _read(self, cache: KeyValueCache, questions: Items[Sequence]) -> Tensor:
        """(n, length, V) float32 logits behind every token of questions of one length."""
        hidden = self.model(**batch_prompts(questions, device=self.model.head_weight.device), cache=cache)
        return torch.nn.functional.linear(hidden, self.model.head_weight).float()

    @torch.no_grad()
    def _step(self, cache: KeyValueCache, token: Tensor, place: Tensor) -> Tensor:
        """(n, V) float32 logits after one more token a row; token (n,) int64, place (n,) float32."""
        device, column = self.model.head_weight.device, (len(token), 1)
        hidden = self.model(
            token.view(column).to(device),
            place.view(-1, 1, 1).expand(-1, 1, 3).to(device),
            torch.zeros(column, dtype=torch.int32, device=device),
            torch.zeros(column, dtype=torch.int32, device=device),
            cache=cache,
        )
        return torch.nn.functional.linear(hidden[:, -1], self.model.head_weight).float()


def _fill(
    model: Transformer,
    cache: KeyValueCache,
    token_ids: Tensor,
    position: Tensor,
    document: Tensor,
    block: Tensor,
    media: Media,
) -> None:
    """What `Transformer.forward` leaves in the cache, without what it returns."""
    spans = cache.extend(document, block)
    tables = model.rotary(position)
    x = model.embed(token_ids, media)
    far = [int(model.config.is_global(number)) for number in range(len(model.blocks))]
    for number, layer in enumerate(model.blocks[:-1]):
        x = layer(x, tables[far[number]], spans[far[number]], cache.layers[number])
    last = model.blocks[-1].attn
    num_heads, num_kv_heads, head_dim = last.heads
    qkv = last.qkv(model.blocks[-1].attn_norm(x)).unflatten(-1, (-1, head_dim))
    _, k, v = qkv.split((num_heads, num_kv_heads, num_kv_heads), dim=2)
    cache.layers[-1].append(rotate(last.k_norm(k), *tables[far[-1]]).to(v.dtype), v)


def _alike(questions: Items[Sequence]) -> list[list[int]]:
    """Places of questions of one length, together."""
    groups: dict[int, list[int]] = {}
    for number, question in enumerate(questions):
        if not len(question):
            raise ValueError(f"question {number} has no token: there is nothing to answer")
        groups.setdefault(len(question), []).append(number)
    return list(groups.values())
