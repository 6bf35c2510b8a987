"""Decoding: from a prompt to an answer, token by token, on the command line or from Python.

    python -m model.generate runs/demo --image shot.png --prompt "..." --audio note.wav
    python -m model.generate runs/chat --chat --image shot.png --message "..."       (`model.chat`)

`stream_tokens` answers one prompt and yields as it goes. `transcribe` answers many, greedily and together:
prompts of unequal length are padded on the left, share every forward, and leave the batch when they have
ended; each gets the answer it would get alone. Prompts are read in chunks (`model.prefill`), and a token that follows
costs one row: local layers look back over their window and never more, global layers over all keys.

A long answer (measured, `python -m benchmarks.long_context`) is as fast at its end as at its beginning but for what
global layers read; memory is taken once, for the prompt and `max_tokens`.

On a CUDA device all of them go by `model.decode`, whose steps are equal and can be replayed as a CUDA graph, and which
says why there are two ways. There the host looks one token late, and rows that have ended stay until all have.

An answer is text: special tokens other than the end token are never chosen. Tokens are chosen by `model.sampling`:
temperature 0 is greedy, and equal seeds give equal answers on one machine, whatever else has drawn random numbers.

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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from data.closed_pipe import until_closed
from data.document import Audio, Image, Part, Text, Video, part_to_json
from data.endings import medium_of
from data.sequence import Sequence
from data.tokenizer import END_ID, SPECIALS, Tokenizer
from model.answering import Answering
from model.decode import GROUP, StaticDecoding, collect
from model.device import add_device_arguments, device_of, resolve_compute_dtype, resolve_device
from model.prefill import PREFILL_TOKENS, OnRead, Reading, eagerly, read_prompts
from model.prompt import TextFile, text_of
from model.prompt_paths import TextFileError, path_in
from model.sampling import Sampling, choose, uniforms
from model.transformer import Transformer

if TYPE_CHECKING:
    from model.load import LoadedModel


def decodes_statically(model: Transformer) -> bool:
    """Whether answers of this model go by `model.decode`."""
    return device_of(model).type == "cuda"


class Decoding:
    """One batch of prompts being continued: the cache, and where each row's next token goes."""

    def __init__(
        self,
        model: Transformer,
        reading: Reading,
        *,
        vocab_size: int | None = None,
        compute_dtype: torch.dtype | None = None,
    ):
        """reading: the prompts, see `model.prefill.read_prompts`. vocab_size: ids from here on are never chosen, for a
        model that is wider than its tokenizer. compute_dtype: of matrix products, as in reading."""
        self.model = model
        self.cache, self.hidden, self.place = reading.cache, reading.hidden, reading.place
        self.compute_dtype = compute_dtype
        ids = torch.arange(model.config.vocab_size, device=device_of(model))
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
            with eagerly(self.model, self.compute_dtype):
                self.hidden = self.model(**inputs, cache=self.cache)[:, -1]
        logits = torch.nn.functional.linear(self.hidden, self.model.head_weight).float()
        return logits.masked_fill_(self.banned, -torch.inf)

    def select(self, rows: Tensor) -> None:
        """Go on with these rows only, ascending."""
        self.cache.select(rows)
        self.hidden, self.place, self.zeros = self.hidden[rows], self.place[rows], self.zeros[rows]

    def static(self, max_tokens: int, **options) -> StaticDecoding:
        """The same, decoded statically from here on; the cache is taken over. options: of `StaticDecoding`."""
        reading = Reading(self.cache, self.hidden, self.place)
        return StaticDecoding(
            self.model, reading, banned=self.banned, max_tokens=max_tokens, compute_dtype=self.compute_dtype, **options
        )


def stream_tokens(
    model: Transformer,
    prompt: Sequence,
    *,
    vocab_size: int | None = None,
    on_read: OnRead = lambda num_tokens: None,
    **options: Any,
) -> Iterator[int]:
    """Yield the ids of an answer as they are chosen, without the end token; stops there or after `max_tokens`.

    options: of `model.answering.Answering`. on_read: how the prompt is read, see `model.prefill.read_prompts`.

    Raises ValueError, on the first `next`, for settings that cannot be sampled with.
    """
    settings = Answering.of(**options)
    reading = read_prompts(
        model,
        [prompt],
        prefill_tokens=settings.prefill_tokens,
        max_tokens=settings.max_tokens,
        compute_dtype=settings.compute_dtype,
        on_read=on_read,
    )
    decoding = Decoding(model, reading, vocab_size=vocab_size, compute_dtype=settings.compute_dtype)
    if decodes_statically(model):
        groups = decoding.static(settings.max_tokens, sampling=settings, compiled=settings.compiled).groups()
        tokens = (int(group) for group in groups)
    else:
        tokens = _drawn(decoding, settings, settings.max_tokens)
    for token in tokens:
        if token == END_ID:
            return
        yield token


def _drawn(decoding: Decoding, sampling: Sampling, max_tokens: int) -> Iterator[int]:
    """Up to `max_tokens` ids of a single row."""
    numbers, token = uniforms(sampling.seed, 1, max_tokens) if sampling.draws else None, None
    for turn in range(max_tokens):
        logits = decoding.step(token)
        token = choose(logits, None if numbers is None else numbers[:, turn].to(logits.device), sampling)
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
    compute_dtype: torch.dtype | None = None,
) -> list[list[int]]:
    """Greedy answers to many prompts, decoded together.

    sequences: prompts without an end token (slices of encoded documents will do). Returns the ids of each answer in the
    order of the prompts, without the end token, at most `max_tokens` each. Prompts of like length share a
    batch of `batch_size`. prefill_tokens, compute_dtype: see `model.prefill.read_prompts`.
    Raises ValueError for an empty prompt.
    """
    Answering(max_tokens=max_tokens, prefill_tokens=prefill_tokens)
    answers: list[list[int]] = [[] for _ in sequences]
    by_length = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
    longest = max((len(sequence) for sequence in sequences), default=0)
    static: StaticDecoding | None = None
    for first in range(0, len(by_length), batch_size):
        # the number of the prompt that each row of the batch answers
        rows = by_length[first : first + batch_size]
        reading = read_prompts(
            model,
            [sequences[number] for number in rows],
            prefill_tokens=prefill_tokens,
            max_tokens=max_tokens,
            compute_dtype=compute_dtype,
        )
        if static is not None and static.fits(reading):
            static.restart(reading)
        else:
            decoding = Decoding(model, reading, vocab_size=vocab_size, compute_dtype=compute_dtype)
            static = None
            if decodes_statically(model):
                # later batches are of longer prompts, and may use the same buffers and graph
                static = decoding.static(max_tokens, capacity=longest + max_tokens)
        found = greedy(decoding, max_tokens) if static is None else collect(static.groups(GROUP), len(rows))
        for number, answer in zip(rows, found, strict=True):
            answers[number] = answer
    return answers


def greedy(decoding: Decoding, max_tokens: int, *, stop: Items[int] = ()) -> list[list[int]]:
    """The likeliest ids of each row, up to the end token or one of `stop` (left out), at most `max_tokens`; the cache
    is used up."""
    rows, token = list(range(len(decoding.place))), None
    if decodes_statically(decoding.model):
        return collect(decoding.static(max_tokens, stop=stop).groups(GROUP), len(rows), stop=stop)
    answers: list[list[int]] = [[] for _ in rows]
    for _ in range(max_tokens):
        token = decoding.step(token).argmax(-1)
        chosen = token.tolist()
        going = [row for row, one in enumerate(chosen) if one not in (END_ID, *stop)]
        for row in going:
            answers[rows[row]].append(chosen[row])
        if not going:
            break
        if len(going) < len(rows):
            keep = torch.tensor(going, device=token.device)
            decoding.select(keep)
            token, rows = token[keep], [rows[row] for row in going]
    return answers


KINDS = {
    "--prompt": Text, "--prompt-file": TextFile, "--image": Image, "--audio": Audio, "--video": Video, "--message": Text
}  # fmt: skip


class _Append(argparse.Action):
    """Collects parts of all kinds in one list, in the order of the command line."""

    def __call__(self, parser, namespace, value, option_string=None):
        option = self.option_strings[0]
        namespace.parts = [*(namespace.parts or []), KINDS[option](value)]
        namespace.given = {*getattr(namespace, "given", ()), option}


def check_words(parts: Items[Part | TextFile]) -> None:
    """Raise ValueError for words of the command line that are, or look like, the path of a medium."""
    literally = "to give these words as text, write them to a file and give --prompt-file"
    for part in parts:
        if not isinstance(part, Text):
            continue
        try:
            path = path_in(part.text, literally=literally)
        except TextFileError:
            raise ValueError(
                f"{part.text} is a file, but no medium: give its text with --prompt-file, and a medium that is named "
                f"otherwise with --image, --audio or --video; {literally}"
            ) from None
        if path is not None:
            option = next(name for name, kind in KINDS.items() if kind is medium_of(path))
            raise ValueError(f"{path} is the path of a file: give it with {option}; {literally}")


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
        ("message", "TEXT", "with --chat: what the user says"),
    ):
        parser.add_argument(f"--{name}", metavar=metavar, action=_Append, dest="parts", help=text)
    parser.add_argument(
        "--chat", action="store_true",
        help="ask as in the conversations of training and stop where the answer ends; without --message or "
        "--prompt-file, questions are read from standard input, a line each",
    )  # fmt: skip
    parser.add_argument("--system", metavar="TEXT", help="with --chat: what the model is told before the conversation")
    for name, text in (
        ("max-tokens", "longest answer, in tokens"),
        ("temperature", "0 takes the likeliest token, 1 draws as the model believes"),
        ("top-k", "draw among so many of the likeliest tokens; 0 is no limit"),
        ("top-p", "draw among the likeliest tokens that together hold this share"),
        ("seed", "equal seeds give equal answers"),
        ("prefill-tokens", "the prompt is read in pieces of at most so many tokens; fewer take less memory"),
    ):
        default = getattr(Answering, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} (default %(default)s)")
    add_device_arguments(parser)
    parser.add_argument(
        "--compile", action="store_true", help="on a GPU: fuse the blocks first, which takes a while and is faster then"
    )
    return parser


@until_closed
def main(argv: list[str] | None = None) -> int:
    """Print the answer as it comes. A user's mistake ends with one line on standard error and status 2."""
    parser = build_parser()
    options = parser.parse_args(argv)
    given = getattr(options, "given", set())
    if options.chat and "--prompt" in given:
        parser.error("--prompt is words to go on from; with --chat give --message")
    if not options.chat and ("--message" in given or options.system is not None):
        parser.error("--message and --system belong to a conversation: give --chat, or --prompt to go on from words")
    if not options.parts and not options.chat:
        parser.error("the prompt is empty: give --prompt, --prompt-file, --image, --audio or --video")
    # imported here because model.load imports this file
    from model.load import load

    try:
        parts = options.parts or []
        check_words([*parts, *([Text(options.system)] if options.system else [])])
        device = resolve_device(options.device)
        model = load(Path(options.folder), device=device)
        settings = {
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "top_k": options.top_k,
            "seed": options.seed,
            "prefill_tokens": options.prefill_tokens,
            "compute_dtype": resolve_compute_dtype(options.dtype, device),
            "compiled": options.compile,
            "progress": True,
        }
        if options.chat:
            _chat(model, parts, asked=bool(given & {"--message", "--prompt-file"}), system=options.system, **settings)
            return 0
        for piece in model.generate(parts, **settings):
            print(piece, end="", flush=True)
        print(flush=True)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError:
        print(
            f"error: {device} has too little memory for this prompt: give --dtype bfloat16, fewer --prefill-tokens or "
            "--max-tokens, or --device cpu",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 0


def _chat(loaded: LoadedModel, parts: Items[Part | TextFile], *, asked: bool, system: str | None, **settings) -> None:
    """Answer one question, or where none is on the command line, those of standard input."""
    from model.chat import converse, typed_questions

    known = [
        Text(text_of(part, number, loaded.encode_config)) if isinstance(part, TextFile) else part
        for number, part in enumerate(parts)
    ]
    content = [part_to_json(part) for part in known]
    converse(
        loaded,
        content,
        check=lambda question: check_words([Text(question)]),
        system=system,
        questions=None if asked else typed_questions(),
        **settings,
    )


if __name__ == "__main__":
    sys.exit(main())
