"""Decoding: from a prompt to an answer, token by token, on the command line or from Python.

    python -m model.generate runs/demo --image shot.png --prompt "..." --audio note.wav

`stream_tokens` answers one prompt and yields as it goes. `transcribe` answers many, greedily and together:
prompts of unequal length are padded on the left, share every forward, and leave the batch when they have
ended; each gets the answer it would get alone. Prompts are read in chunks (`model.prefill`), and a token that follows
costs one row: local layers look back over their window and never more, global layers over all keys.

A long answer (measured, `python -m benchmarks.long_context`) is as fast at its end as at its beginning but for what
global layers read; memory is taken once, for the prompt and `max_tokens`.

An answer is text: special tokens other than the end token are never chosen. Temperature 0 is greedy;
otherwise tokens are drawn from softmax(logits / temperature), cut to the smallest set of tokens that holds
`top_p` of the mass (nucleus sampling, 1904.09751, section 3.1), by a generator of its own: equal seeds give equal
answers on one machine, whatever else has drawn random numbers.

What this does not do: beam search, repetition penalties, speculative decoding. Blocks compiled for training are run
eagerly here, since every new length would be compiled anew.

B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import argparse
import codecs
import sys
from collections.abc import Iterator
from collections.abc import Sequence as Items
from pathlib import Path

import torch
from torch import Tensor

from data.document import Audio, Image, Text, Video
from data.sequence import Sequence
from data.tokenizer import END_ID, SPECIALS, Tokenizer
from model.prefill import PREFILL_TOKENS, OnRead, Reading, eagerly, read_prompts
from model.prompt import TextFile
from model.transformer import Transformer


class Decoding:
    """One batch of prompts being continued: the cache, and where each row's next token goes."""

    def __init__(
        self,
        model: Transformer,
        reading: Reading,
        *,
        vocab_size: int | None = None,
        dtype: torch.dtype | None = None,
    ):
        """reading: the prompts, see `model.prefill.read_prompts`. vocab_size: ids from here on are never chosen, for a
        model that is wider than its tokenizer. dtype: of matrix products, as in reading."""
        self.model = model
        self.cache, self.hidden, self.place = reading.cache, reading.hidden, reading.place
        self.dtype = dtype
        ids = torch.arange(model.config.vocab_size, device=model.head_weight.device)
        self.banned = (ids < len(SPECIALS)) & (ids != END_ID) | (ids >= (vocab_size or model.config.vocab_size))
        self.zeros = torch.zeros(len(self.place), 1, dtype=torch.int32, device=ids.device)

    @torch.no_grad()
    def step(self, token: Tensor | None = None) -> Tensor:
        """Logits (B, V) float32 of the next token. token: (B,) int64, what was chosen last; None after the prompts."""
        if token is not None:
            self.place = self.place + 1
            inputs = {
                "token_ids": token[:, None],
                "position": self.place.view(-1, 1, 1).expand(-1, 1, 3),
                "document": self.zeros,
                "block": self.zeros,
            }
            with eagerly(self.model, self.dtype):
                self.hidden = self.model(**inputs, cache=self.cache)[:, -1]
        logits = torch.nn.functional.linear(self.hidden, self.model.head_weight).float()
        return logits.masked_fill_(self.banned, -torch.inf)

    def select(self, rows: Tensor) -> None:
        """Go on with these rows only, ascending."""
        self.cache.select(rows)
        self.hidden, self.place, self.zeros = self.hidden[rows], self.place[rows], self.zeros[rows]


def sample(logits: Tensor, *, temperature: float, top_p: float, generator: torch.Generator | None) -> Tensor:
    """Choose one token per row.

    logits: (B, V) float32. Temperature 0 takes the largest; otherwise draws from the nucleus of mass `top_p`, which
    always holds the likeliest token. Returns (B,) int64.
    """
    if temperature == 0:
        return logits.argmax(-1)
    # the largest becomes 0 first, so that no temperature is too small
    probability = ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)
    if top_p < 1:
        ordered, index = probability.sort(dim=-1, descending=True, stable=True)
        # a token stays if the ones before it do not yet reach top_p
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
        probability = torch.zeros_like(probability).scatter(-1, index, ordered)
    return torch.multinomial(probability, 1, generator=generator).squeeze(-1)


def check_sampling(*, max_tokens: int, temperature: float, top_p: float, prefill_tokens: int = PREFILL_TOKENS) -> None:
    """Raise ValueError, with the remedy, for settings that cannot be sampled with."""
    if prefill_tokens < 1:
        raise ValueError(f"prefill_tokens = {prefill_tokens}: give at least 1, for instance {PREFILL_TOKENS}")
    if max_tokens < 1:
        raise ValueError(f"max_tokens = {max_tokens}: give at least 1")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature = {temperature}: give 0 (greedy) or a positive number, for instance 0.8")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p = {top_p}: give a share above 0 and at most 1 (1 keeps every token)")


def stream_tokens(
    model: Transformer,
    prompt: Sequence,
    *,
    max_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    vocab_size: int | None = None,
    prefill_tokens: int = PREFILL_TOKENS,
    dtype: torch.dtype | None = None,
    on_read: OnRead = lambda num_tokens: None,
) -> Iterator[int]:
    """Yield the ids of an answer as they are chosen, without the end token; stops there or after `max_tokens`.

    prefill_tokens, dtype, on_read: how the prompt is read, see `model.prefill.read_prompts`.

    Raises ValueError, on the first `next`, for settings that cannot be sampled with.
    """
    check_sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p)
    generator = torch.Generator(model.head_weight.device).manual_seed(seed)
    reading = read_prompts(
        model, [prompt], prefill_tokens=prefill_tokens, max_tokens=max_tokens, dtype=dtype, on_read=on_read
    )
    decoding = Decoding(model, reading, vocab_size=vocab_size, dtype=dtype)
    token = None
    for _ in range(max_tokens):
        token = sample(decoding.step(token), temperature=temperature, top_p=top_p, generator=generator)
        if int(token) == END_ID:
            return
        yield int(token)


def stream_text(tokens: Iterator[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Turn ids into pieces of text, holding bytes back until their character is whole."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        if piece := decoder.decode(tokenizer.token_bytes(token)):
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest


def transcribe(
    model: Transformer,
    sequences: Items[Sequence],
    max_tokens: int,
    *,
    batch_size: int = 32,
    vocab_size: int | None = None,
    prefill_tokens: int = PREFILL_TOKENS,
    dtype: torch.dtype | None = None,
) -> list[list[int]]:
    """Greedy answers to many prompts, decoded together.

    sequences: prompts without an end token (slices of encoded documents will do). Returns the ids of each answer in the
    order of the prompts, without the end token, at most `max_tokens` each. Prompts of like length share a
    batch of `batch_size`; rows that have ended leave it. prefill_tokens, dtype: see `model.prefill.read_prompts`.
    Raises ValueError for an empty prompt.
    """
    check_sampling(max_tokens=max_tokens, temperature=0.0, top_p=1.0)
    answers: list[list[int]] = [[] for _ in sequences]
    by_length = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
    for first in range(0, len(by_length), batch_size):
        # the number of the prompt that each row of the batch answers
        rows = by_length[first : first + batch_size]
        reading = read_prompts(
            model,
            [sequences[number] for number in rows],
            prefill_tokens=prefill_tokens,
            max_tokens=max_tokens,
            dtype=dtype,
        )
        found = greedy(Decoding(model, reading, vocab_size=vocab_size, dtype=dtype), max_tokens)
        for number, answer in zip(rows, found, strict=True):
            answers[number] = answer
    return answers


def greedy(decoding: Decoding, max_tokens: int, *, stop: Items[int] = ()) -> list[list[int]]:
    """The likeliest ids of each row, up to the end token or one of `stop` (left out), at most `max_tokens`; rows that
    have ended leave the batch."""
    rows, token = list(range(len(decoding.place))), None
    answers: list[list[int]] = [[] for _ in rows]
    for _ in range(max_tokens):
        token = decoding.step(token).argmax(-1)
        going = [row for row, chosen in enumerate(token.tolist()) if chosen not in (END_ID, *stop)]
        for row in going:
            answers[rows[row]].append(int(token[row]))
        if not going:
            break
        if len(going) < len(rows):
            keep = torch.tensor(going, device=token.device)
            decoding.select(keep)
            token, rows = token[keep], [rows[row] for row in going]
    return answers


KINDS = {"--prompt": Text, "--prompt-file": TextFile, "--image": Image, "--audio": Audio, "--video": Video}


class _Append(argparse.Action):
    """Collects parts of all kinds in one list, in the order of the command line."""

    def __call__(self, parser, namespace, value, option_string=None):
        namespace.parts = [*(namespace.parts or []), KINDS[self.option_strings[0]](value)]


def build_parser() -> argparse.ArgumentParser:
    """The command line of `python -m model.generate`."""
    parser = argparse.ArgumentParser(
        prog="python -m model.generate",
        description="Let a trained model go on from a prompt of texts, pictures, sounds and videos.",
        epilog="Parts may be given several times; they reach the model in the order of the command line, just as "
        'written. Example: python -m model.generate runs/demo --image shot.png --prompt "def "',
        allow_abbrev=False,
    )
    parser.add_argument("folder", help="a run (runs/demo), one of its stages, or a model folder")
    for name, metavar, text in (
        ("prompt", "TEXT", "a text"),
        ("prompt-file", "FILE", "the whole text of a file, in UTF-8"),
        ("image", "FILE", "a picture (PNG, JPEG, WebP, ...)"),
        ("audio", "FILE", "a sound (WAV, FLAC, OGG, MP3, ...)"),
        ("video", "FILE", "a video (MP4, WebM, ...), with its sound track"),
    ):
        parser.add_argument(f"--{name}", metavar=metavar, action=_Append, dest="parts", help=text)
    for name, default, text in (
        ("max-tokens", 256, "longest answer, in tokens"),
        ("temperature", 0.0, "0 takes the likeliest token, 1 draws as the model believes"),
        ("top-p", 1.0, "draw among the likeliest tokens that together hold this share"),
        ("seed", 0, "equal seeds give equal answers"),
        (
            "prefill-tokens",
            PREFILL_TOKENS,
            "the prompt is read in pieces of at most so many tokens; fewer take less memory",
        ),
    ):
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} (default %(default)s)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of matrix products, keys and values; bfloat16 halves what long contexts take (default %(default)s)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print the answer as it comes. A user's mistake ends with one line on standard error and status 2."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if not options.parts:
        parser.error("the prompt is empty: give --prompt, --prompt-file, --image, --audio or --video")
    # imported here because model.load imports this file
    from model.load import load

    try:
        model = load(Path(options.folder))
        pieces = model.generate(
            options.parts,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
            prefill_tokens=options.prefill_tokens,
            dtype=getattr(torch, options.dtype),
            progress=True,
        )
        for piece in pieces:
            print(piece, end="", flush=True)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
