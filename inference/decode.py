"""From prompts to answers, token by token.

`stream_tokens` answers one prompt and yields as it decodes. `generate_batch` answers many greedily: prompts are padded
on the left, share every forward, and leave the batch when they have ended; each gets the answer it would get alone. On
a CUDA device `brine.inference.static.decoder` decodes. Special tokens other than the end token are never chosen. Equal
seeds give equal answers on one machine. No beam search or speculative decoding. B batch, V vocabulary.
"""

import codecs
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from brine.data.sequence import EncodedDocument
from brine.data.tokenizer import EOS_ID, SPECIAL_TOKENS, Tokenizer
from brine.inference.prefill import PREFILL_TOKENS, OnPrefill, PrefillResult, eager_inference, prefill_prompts
from brine.inference.sampling import GREEDY, GenerationConfig, SamplingConfig, sample_token, uniform_samples
from brine.inference.static.decoder import TOKENS_PER_SYNC, StaticDecoder, collect_tokens
from brine.model.device import device_of
from brine.model.inputs import Inputs
from brine.model.transformer import Transformer


def uses_static_decoder(model: Transformer) -> bool:
    """Whether answers of this model are decoded by `brine.inference.static.decoder`."""
    return device_of(model).type == "cuda"


class DynamicDecoder:
    """A batch of prompts being continued: their cache, and the position of each row's next token."""

    def __init__(
        self, model: Transformer, prefilled: PrefillResult, *, vocab_size: int | None = None,
        compute_dtype: torch.dtype | None = None,
    ):  # fmt: skip
        """prefilled: the prompts (`brine.inference.prefill`). vocab_size: ids from here on are never chosen, for a
        model that is wider than its tokenizer. compute_dtype: of matmuls, as in the prefill."""
        self.model, self.compute_dtype = model, compute_dtype
        self.cache, self.hidden, self.position = prefilled.cache, prefilled.hidden, prefilled.position
        ids = torch.arange(model.config.vocab_size, device=device_of(model))
        self.suppressed = (ids < len(SPECIAL_TOKENS)) & (ids != EOS_ID) | (ids >= (vocab_size or len(ids)))
        self.zeros = torch.zeros(len(self.position), 1, dtype=torch.int32, device=ids.device)

    @torch.no_grad()
    def step(self, token: Tensor | None = None) -> Tensor:
        """Logits (B, V) float32 of the next token. token: (B,) int64, chosen last; None after the prompts."""
        if token is not None:
            self.position = self.position + 1
            position = self.position.view(-1, 1, 1).expand(-1, 1, 3)
            inputs = Inputs(token[:, None], position, self.zeros, self.zeros)
            with eager_inference(self.model, self.compute_dtype):
                self.hidden = self.model(inputs, cache=self.cache)[:, -1]
        logits = torch.nn.functional.linear(self.hidden, self.model.head_weight).float()
        return logits.masked_fill_(self.suppressed, -torch.inf)

    def select(self, rows: Tensor) -> None:
        """Continue these rows only, ascending."""
        self.cache.select(rows)
        self.hidden, self.position, self.zeros = self.hidden[rows], self.position[rows], self.zeros[rows]

    def static(self, max_tokens: int, **options: Any) -> StaticDecoder:
        """A static decoder that takes over the cache. options: of `StaticDecoder`."""
        prefilled = PrefillResult(self.cache, self.hidden, self.position)
        options |= {"suppressed": self.suppressed, "compute_dtype": self.compute_dtype}
        return StaticDecoder(self.model, prefilled, max_tokens=max_tokens, **options)

    def groups(
        self, max_tokens: int, *, sampling: SamplingConfig = GREEDY, stop: Sequence[int] = (), every: int = 1,
        **static_options: Any,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Yield (B, n) int64 ids on the host until there are `max_tokens` or all rows have ended, at the end token or
        one of `stop`; a row that has ended continues with end tokens. The cache is used up. On a CUDA device a
        `StaticDecoder` decodes, `every` tokens at a time, with static_options."""
        if uses_static_decoder(self.model):
            yield from self.static(max_tokens, sampling=sampling, stop=stop, **static_options).groups(every)
            return
        num_rows, ends = len(self.position), torch.tensor([EOS_ID, *stop])
        uniform = uniform_samples(sampling.seed, num_rows, max_tokens) if sampling.do_sample else None
        rows, token = torch.arange(num_rows), None
        for step in range(max_tokens):
            logits = self.step(token)
            token = sample_token(logits, None if uniform is None else uniform[rows, step].to(logits.device), sampling)
            chosen, group = token.cpu(), torch.full((num_rows, 1), EOS_ID)
            group[rows, 0] = chosen
            yield group
            going = torch.isin(chosen, ends, invert=True).nonzero().flatten()
            if not len(going):
                return
            if len(going) < len(rows):
                keep = going.to(token.device)
                self.select(keep)
                token, rows = token[keep], rows[going]


def stream_tokens(
    model: Transformer, prompt: EncodedDocument, *, vocab_size: int | None = None,
    on_prefill: OnPrefill = lambda num_tokens: None, **options: Any,
) -> Iterator[int]:  # fmt: skip
    """Yield the ids of an answer as they are chosen, without the end token; stops there or after `max_tokens`.

    options: of `GenerationConfig`. on_prefill: called with the prompt tokens of each forward. Raises ValueError, on the
    first `next`, for settings that cannot be sampled with.
    """
    settings = GenerationConfig.of(**options)
    dtype, max_tokens = settings.compute_dtype, settings.max_tokens
    prefilled = prefill_prompts(
        model, [prompt], prefill_tokens=settings.prefill_tokens, max_tokens=max_tokens, compute_dtype=dtype,
        on_prefill=on_prefill,
    )  # fmt: skip
    decoder = DynamicDecoder(model, prefilled, vocab_size=vocab_size, compute_dtype=dtype)
    for token in map(int, decoder.groups(max_tokens, sampling=settings, compile_blocks=settings.compile)):
        if token == EOS_ID:
            return
        yield token


def stream_text(tokens: Iterator[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Turn ids into chunks of text, holding bytes back until their character is whole."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        if chunk := decoder.decode(tokenizer.token_bytes(token)):
            yield chunk
    if rest := decoder.decode(b"", final=True):
        yield rest


def generate_batch(
    model: Transformer, sequences: Sequence[EncodedDocument], max_tokens: int, *, batch_size: int = 32,
    vocab_size: int | None = None, prefill_tokens: int = PREFILL_TOKENS,
) -> list[list[int]]:  # fmt: skip
    """Greedy answers to many prompts, decoded together.

    sequences: prompts without an end token (slices of encoded documents will do). Returns the ids of each answer in the
    order of the prompts, without the end token, at most `max_tokens` each. Prompts of similar length share a batch.
    Raises ValueError for an empty prompt.
    """
    GenerationConfig(max_tokens=max_tokens, prefill_tokens=prefill_tokens)
    answers: list[list[int]] = [[] for _ in sequences]
    by_length = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
    longest = max(map(len, sequences), default=0)
    static: StaticDecoder | None = None
    for first in range(0, len(by_length), batch_size):
        # the number of the prompt that each row of the batch answers
        rows = by_length[first : first + batch_size]
        prefilled = prefill_prompts(
            model, [sequences[number] for number in rows], prefill_tokens=prefill_tokens, max_tokens=max_tokens
        )
        if static is not None and static.fits(prefilled):
            static.restart(prefilled)
        else:
            decoder = DynamicDecoder(model, prefilled, vocab_size=vocab_size)
            # later batches are of longer prompts, and may use the same buffers and graph
            capacity = longest + max_tokens
            static = decoder.static(max_tokens, capacity=capacity) if uses_static_decoder(model) else None
        groups = decoder.groups(max_tokens) if static is None else static.groups(TOKENS_PER_SYNC)
        for number, answer in zip(rows, collect_tokens(groups, len(rows)), strict=True):
            answers[number] = answer
    return answers


def greedy_decode(decoder: DynamicDecoder, max_tokens: int, *, stop: Sequence[int] = ()) -> list[list[int]]:
    """The likeliest ids of each row, up to the end token or one of `stop` (left out), at most `max_tokens`; the cache
    is used up."""
    groups = decoder.groups(max_tokens, stop=stop, every=TOKENS_PER_SYNC)
    return collect_tokens(groups, len(decoder.position), stop=stop)
