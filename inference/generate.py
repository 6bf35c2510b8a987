"""The command `brine generate`: continue a prompt, or answer as a chat, and print the answer as it comes.

    python -m brine.inference.generate runs/demo --image shot.png --prompt "..." --audio note.wav
    python -m brine.inference.generate runs/chat --chat --image shot.png --message "..."       (`brine.inference.chat`)

Parts of a prompt keep the order of the command line, which is why this is argparse: tyro gathers each option by itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any

import torch

from brine.common.closed_pipe import exit_on_closed_pipe
from brine.data.document import Audio, Image, Part, Text, Video, part_to_json
from brine.data.files.extensions import media_type_of
from brine.inference.sampling import GenerationConfig
from brine.inference.load import LoadedModel, load
from brine.inference.prompt import TextFile, read_text_file
from brine.inference.prompt_paths import TextFileError, media_path_in
from brine.model.device import add_device_arguments, resolve_compute_dtype, resolve_device

KINDS = {
    "--prompt": Text, "--prompt-file": TextFile, "--image": Image, "--audio": Audio, "--video": Video, "--message": Text
}  # fmt: skip


class _Append(argparse.Action):
    """Collects parts of all kinds in one list, in the order of the command line."""

    def __call__(self, parser, namespace, value, option_string=None):
        option = self.option_strings[0]
        namespace.parts = [*(namespace.parts or []), KINDS[option](value)]
        namespace.given = {*getattr(namespace, "given", ()), option}


def check_prompt_text(parts: Items[Part | TextFile]) -> None:
    """Raise ValueError for words of the command line that are, or look like, the path of a medium."""
    literal_hint = "to give these words as text, write them to a file and give --prompt-file"
    for part in parts:
        if not isinstance(part, Text):
            continue
        try:
            path = media_path_in(part.text, literal_hint=literal_hint)
        except TextFileError:
            raise ValueError(
                f"{part.text} is a file, but no medium: give its text with --prompt-file, and a medium that is named "
                f"otherwise with --image, --audio or --video; {literal_hint}"
            ) from None
        if path is not None:
            option = next(name for name, kind in KINDS.items() if kind is media_type_of(path))
            raise ValueError(f"{path} is the path of a file: give it with {option}; {literal_hint}")


def build_parser() -> argparse.ArgumentParser:
    """The command line of `python -m brine.inference.generate`."""
    parser = argparse.ArgumentParser(
        prog="python -m brine.inference.generate",
        description="Let a trained model go on from a prompt of texts, pictures, sounds and videos.",
        epilog="Parts may be given several times; they reach the model in the order of the command line, just as "
        'written. Example: python -m brine.inference.generate runs/demo --image shot.png --prompt "def "',
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
        default = getattr(GenerationConfig, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} (default %(default)s)")
    add_device_arguments(parser)
    parser.add_argument(
        "--compile", action="store_true", help="on a GPU: fuse the blocks first, which takes a while and is faster then"
    )
    return parser


@exit_on_closed_pipe
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
    try:
        parts = options.parts or []
        check_prompt_text([*parts, *([Text(options.system)] if options.system else [])])
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
            "compile_blocks": options.compile,
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
    known = [
        Text(read_text_file(part, number, loaded.encode_config)) if isinstance(part, TextFile) else part
        for number, part in enumerate(parts)
    ]
    content = [part_to_json(part) for part in known]
    run_chat(
        loaded,
        content,
        check=lambda question: check_prompt_text([Text(question)]),
        system=system,
        questions=None if asked else read_questions(),
        **settings,
    )


def run_chat(
    loaded: LoadedModel,
    content: list[dict[str, Any]],
    *,
    check: Callable[[str], None],
    system: str | None = None,
    questions: Iterable[str] | None = None,
    **options: Any,
) -> None:
    """Print answers as they come: to `content`, the parts of one question, or with `questions` to each of those, what
    `content` holds standing before the first. check: raises ValueError for a question that was not meant as words.
    options: of `LoadedModel.generate`."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for question in [None] if questions is None else questions:
        try:
            if question is not None:
                check(question)
        except ValueError as error:
            if not _is_interactive():
                raise
            print(f"error: {error}", file=sys.stderr)
            continue
        asked = content if question is None else [*content, {"type": "text", "text": question}]
        messages.append({"role": "user", "content": asked})
        answer = loaded.chat(messages, **options)
        for piece in answer:
            print(piece, end="", flush=True)
        print(flush=True)
        messages.append(answer.message)
        content = []


def _is_interactive() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def read_questions() -> Iterator[str]:
    """Lines of standard input that are not empty, until it ends; none where it is closed."""
    while sys.stdin is not None:
        if _is_interactive():
            print("> ", end="", file=sys.stderr, flush=True)
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input is no text in UTF-8 ({error.reason}): convert it") from None
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")


if __name__ == "__main__":
    sys.exit(main())
