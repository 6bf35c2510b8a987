"""Decoding: from a prompt to an answer, token by token, on the command line or from Python.

    python -m model.generate runs/demo --image shot.png --prompt "..." --audio note.wav

`stream_tokens` answers one prompt and yields as it goes. `transcribe` answers many, greedily and together:
prompts of unequal length are padded on the left, share every forward, and leave the batch when they have
ended; each gets the answer it would get alone. Both read the prompt in one forward (so no media block is ever
cut) and go on with the key/value cache.

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
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from data.document import Audio, Image, Text, Video
from data.sequence import Sequence
from data.tokenizer import END_ID, SPECIALS, Tokenizer
from model.cache import KeyValueCache
from model.prompt import batch_prompts
from model.transformer import Transformer


class Decoding:
    """One batch of prompts being continued: the cache, and where each row's next token goes."""

    def __init__(self, model: Transformer, prompts: Items[Sequence], *, vocab_size: int | None = None):
        """vocab_size: ids from here on are never chosen, for a model that is wider than its tokenizer."""
        self.model = model
        self.cache = KeyValueCache(model.config)
        ids = torch.arange(model.config.vocab_size, device=model.head_weight.device)
        self.banned = (ids < len(SPECIALS)) & (ids != END_ID) | (ids >= (vocab_size or model.config.vocab_size))
        self.batch = batch_prompts(prompts, device=model.head_weight.device)
        # text after a medium is already placed behind all of it, so the last token decides
        self.place = self.batch["position"][:, -1].amax(-1)

    @torch.no_grad()
    def step(self, token: Tensor | None = None) -> Tensor:
        """Logits (B, V) float32 of the next token. token: (B,) int64, what was chosen last; None reads the prompts."""
        if token is None:
            inputs = self.batch
        else:
            self.place = self.place + 1
            column = (len(token), 1)
            inputs = {
                "token_ids": token.view(column),
                "position": self.place.view(-1, 1, 1).expand(-1, 1, 3),
                "document": torch.zeros(column, dtype=torch.int32, device=token.device),
                "block": torch.zeros(column, dtype=torch.int32, device=token.device),
            }
        with _eagerly():
            hidden = self.model(**inputs, cache=self.cache)[:, -1]
        logits = torch.nn.functional.linear(hidden, self.model.head_weight).float()
        return logits.masked_fill(self.banned, -torch.inf)

    def select(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.cache.select(rows)
        self.place = self.place[rows]


def _eagerly() -> AbstractContextManager:
    """Runs compiled blocks as they were written."""
    # the compiler takes seconds to import, and where nobody has imported it nothing is compiled
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


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


def check_sampling(*, max_tokens: int, temperature: float, top_p: float) -> None:
    """Raise ValueError, with the remedy, for settings that cannot be sampled with."""
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
) -> Iterator[int]:
    """Yield the ids of an answer as they are chosen, without the end token; stops there or after `max_tokens`.

    Raises ValueError, on the first `next`, for settings that cannot be sampled with.
    """
    check_sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p)
    generator = torch.Generator(model.head_weight.device).manual_seed(seed)
    decoding = Decoding(model, [prompt], vocab_size=vocab_size)
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
) -> list[list[int]]:
    """Greedy answers to many prompts, decoded together.

    sequences: prompts without an end token (slices of encoded documents will do). Returns the ids of each answer in the
    order of the prompts, without the end token, at most `max_tokens` each. Prompts of like length share a
    batch of `batch_size`; rows that have ended leave it. Raises ValueError for an empty prompt.
    """
    check_sampling(max_tokens=max_tokens, temperature=0.0, top_p=1.0)
    answers: list[list[int]] = [[] for _ in sequences]
    by_length = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
    for first in range(0, len(by_length), batch_size):
        # the number of the prompt that each row of the batch answers
        rows = by_length[first : first + batch_size]
        decoding = Decoding(model, [sequences[number] for number in rows], vocab_size=vocab_size)
        token = None
        for _ in range(max_tokens):
            token = decoding.step(token).argmax(-1)
            going = [row for row, chosen in enumerate(token.tolist()) if chosen != END_ID]
            for row in going:
                answers[rows[row]].append(int(token[row]))
            if not going:
                break
            if len(going) < len(rows):
                keep = torch.tensor(going, device=token.device)
                decoding.select(keep)
                token, rows = token[keep], [rows[row] for row in going]
    return answers


class _Append(argparse.Action):
    """Collects parts of all kinds in one list, in the order of the command line."""

    def __call__(self, parser, namespace, value, option_string=None):
        kind = {"--prompt": Text, "--image": Image, "--audio": Audio, "--video": Video}[self.option_strings[0]]
        namespace.parts = [*(namespace.parts or []), kind(value)]


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
    ):
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} (default %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print the answer as it comes. A user's mistake ends with one line on standard error and status 2."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if not options.parts:
        parser.error("the prompt is empty: give --prompt, --image, --audio or --video")
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
