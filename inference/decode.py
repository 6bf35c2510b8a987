"""From prompts to answers, token by token.

`stream_tokens` answers one prompt and yields as it goes. `generate_batch` answers many, greedily and together: prompts
of unequal length are padded on the left, share every forward, and leave the batch when they have ended; each gets the
answer it would get alone. A token costs one query: local layers look back over their window, global layers over all
keys. On a CUDA device all of them use `brine.inference.static_decoder`, which says why there are two ways.

An answer is text: special tokens other than the end token are never chosen. Equal seeds give equal answers on one
machine. What this does not do: beam search, repetition penalties, speculative decoding. Blocks compiled for training
run eagerly here, since every new length would be compiled anew.

B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from collections.abc import Sequence as Items
from typing import Any

import torch
from torch import Tensor

from brine.data.sequence import Sequence
from brine.data.tokenizer import EOS_ID, SPECIAL_TOKENS, Tokenizer
from brine.inference.generation_config import GenerationConfig
from brine.inference.prefill import PREFILL_TOKENS, OnPrefill, PrefillResult, eager_inference, prefill_prompts
from brine.inference.sampling import SamplingConfig, sample_token, uniform_samples
from brine.inference.static_decoder import TOKENS_PER_SYNC, StaticDecoder, collect_tokens
from brine.model.device import device_of
from brine.model.inputs import Inputs
from brine.model.transformer import Transformer


def uses_static_decoder(model: Transformer) -> bool:
    """Whether answers of this model go by `brine.inference.static_decoder`."""
    return device_of(model).type == "cuda"


class DynamicDecoder:
    """One batch of prompts being continued: the cache, and where each row's next token goes."""

    def __init__(
        self,
        model: Transformer,
        prefilled: PrefillResult,
        *,
        vocab_size: int | None = None,
        compute_dtype: torch.dtype | None = None,
    ):
        """prefilled: the prompts, see `brine.inference.prefill.prefill_prompts`. vocab_size: ids from here on are never
        chosen, for a model that is wider than its tokenizer. compute_dtype: of matrix products, as in the prefill."""
        self.model = model
        self.cache, self.hidden, self.position = prefilled.cache, prefilled.hidden, prefilled.position
        self.compute_dtype = compute_dtype
        ids = torch.arange(model.config.vocab_size, device=device_of(model))
        self.suppressed = (ids < len(SPECIAL_TOKENS)) & (ids != EOS_ID) | (
            ids >= (vocab_size or model.config.vocab_size)
        )
        self.zeros = torch.zeros(len(self.position), 1, dtype=torch.int32, device=ids.device)

    @torch.no_grad()
    def step(self, token: Tensor | None = None) -> Tensor:
        """Logits (B, V) float32 of the next token. token: (B,) int64, what was chosen last; None after the prompts."""
        if token is not None:
            self.position = self.position + 1
            position = self.position.view(-1, 1, 1).expand(-1, 1, 3)
            inputs = Inputs(token[:, None], position, self.zeros, self.zeros)
            with eager_inference(self.model, self.compute_dtype):
                self.hidden = self.model(inputs, cache=self.cache)[:, -1]
        logits = torch.nn.functional.linear(self.hidden, self.model.head_weight).float()
        return logits.masked_fill_(self.suppressed, -torch.inf)

    def select(self, rows: Tensor) -> None:
        """Go on with these rows only, ascending."""
        self.cache.select(rows)
        self.hidden, self.position, self.zeros = self.hidden[rows], self.position[rows], self.zeros[rows]

    def static(self, max_tokens: int, **options) -> StaticDecoder:
        """The same, decoded statically from here on; the cache is taken over. options: of `StaticDecoder`."""
        prefilled = PrefillResult(self.cache, self.hidden, self.position)
        return StaticDecoder(
            self.model,
            prefilled,
            suppressed=self.suppressed,
            max_tokens=max_tokens,
            compute_dtype=self.compute_dtype,
            **options,
        )


def stream_tokens(
    model: Transformer,
    prompt: Sequence,
    *,
    vocab_size: int | None = None,
    on_prefill: OnPrefill = lambda num_tokens: None,
    **options: Any,
) -> Iterator[int]:
    """Yield the ids of an answer as they are chosen, without the end token; stops there or after `max_tokens`.

    options: of `brine.inference.generation_config.GenerationConfig`. on_prefill: how the prompt is read, see
    `brine.inference.prefill.prefill_prompts`.

    Raises ValueError, on the first `next`, for settings that cannot be sampled with.
    """
    settings = GenerationConfig.of(**options)
    prefilled = prefill_prompts(
        model,
        [prompt],
        prefill_tokens=settings.prefill_tokens,
        max_tokens=settings.max_tokens,
        compute_dtype=settings.compute_dtype,
        on_prefill=on_prefill,
    )
    decoding = DynamicDecoder(model, prefilled, vocab_size=vocab_size, compute_dtype=settings.compute_dtype)
    if uses_static_decoder(model):
        groups = decoding.static(
            settings.max_tokens, sampling=settings, compile_blocks=settings.compile_blocks
        ).groups()
        tokens = (int(group) for group in groups)
    else:
        tokens = _sample_tokens(decoding, settings, settings.max_tokens)
    for token in tokens:
        if token == EOS_ID:
            return
        yield token


def _sample_tokens(decoding: DynamicDecoder, sampling: SamplingConfig, max_tokens: int) -> Iterator[int]:
    """Up to `max_tokens` ids of a single row."""
    numbers, token = uniform_samples(sampling.seed, 1, max_tokens) if sampling.do_sample else None, None
    for step in range(max_tokens):
        logits = decoding.step(token)
        token = sample_token(logits, None if numbers is None else numbers[:, step].to(logits.device), sampling)
        yield int(token)


def stream_text(tokens: Iterator[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Turn ids into pieces of text, holding bytes back until their character is whole."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        if piece := decoder.decode(tokenizer.token_bytes(token)):
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest


def generate_batch(
    model: Transformer,
    sequences: Items[Sequence],
    max_tokens: int,
    *,
    batch_size: int = 32,
    vocab_size: int | None = None,
    prefill_tokens: int = PREFILL_TOKENS,
    compute_dtype: torch.dtype | None = None,
) -> list[list[int]]:
    """Greedy answers to many prompts, decoded together.

    sequences: prompts without an end token (slices of encoded documents will do). Returns the ids of each answer in the
    order of the prompts, without the end token, at most `max_tokens` each. Prompts of like length share a
    batch of `batch_size`. prefill_tokens, compute_dtype: see `brine.inference.prefill.prefill_prompts`.
    Raises ValueError for an empty prompt.
    """
    GenerationConfig(max_tokens=max_tokens, prefill_tokens=prefill_tokens)
    answers: list[list[int]] = [[] for _ in sequences]
    by_length = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
    longest = max((len(sequence) for sequence in sequences), default=0)
    static: StaticDecoder | None = None
    for first in range(0, len(by_length), batch_size):
        # the number of the prompt that each row of the batch answers
        rows = by_length[first : first + batch_size]
        prefilled = prefill_prompts(
            model,
            [sequences[number] for number in rows],
            prefill_tokens=prefill_tokens,
            max_tokens=max_tokens,
            compute_dtype=compute_dtype,
        )
        if static is not None and static.fits(prefilled):
            static.restart(prefilled)
        else:
            decoding = DynamicDecoder(model, prefilled, vocab_size=vocab_size, compute_dtype=compute_dtype)
            static = None
            if uses_static_decoder(model):
                # later batches are of longer prompts, and may use the same buffers and graph
                static = decoding.static(max_tokens, capacity=longest + max_tokens)
        found = (
            greedy_decode(decoding, max_tokens)
            if static is None
            else collect_tokens(static.groups(TOKENS_PER_SYNC), len(rows))
        )
        for number, answer in zip(rows, found, strict=True):
            answers[number] = answer
    return answers


def greedy_decode(decoding: DynamicDecoder, max_tokens: int, *, stop: Items[int] = ()) -> list[list[int]]:
    """The likeliest ids of each row, up to the end token or one of `stop` (left out), at most `max_tokens`; the cache
    is used up."""
    rows, token = list(range(len(decoding.position))), None
    if uses_static_decoder(decoding.model):
        return collect_tokens(decoding.static(max_tokens, stop=stop).groups(TOKENS_PER_SYNC), len(rows), stop=stop)
    answers: list[list[int]] = [[] for _ in rows]
    for _ in range(max_tokens):
        token = decoding.step(token).argmax(-1)
        chosen = token.tolist()
        going = [row for row, one in enumerate(chosen) if one not in (EOS_ID, *stop)]
        for row in going:
            answers[rows[row]].append(chosen[row])
        if not going:
            break
        if len(going) < len(rows):
            keep = torch.tensor(going, device=token.device)
            decoding.select(keep)
            token, rows = token[keep], [rows[row] for row in going]
    return answers
